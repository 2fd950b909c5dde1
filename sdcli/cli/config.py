"""`sdcli config`: the settings that stay, where each value comes from, and how to change one."""

import os
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli import schema
from sdcli.cli.answer import print_json
from sdcli.cli.ask import default_model, find_model
from sdcli.errors import ModelMissing
from sdcli.machine import state
from sdcli.models.families import find
from sdcli.request import config
from sdcli.request.request import Request
from sdcli.terminal import say, show

Name = Annotated[str, typer.Argument(metavar="NAME", help="A setting, as in `sdcli config show`.")]


def command() -> typer.Typer:
    program = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
    program.command("show")(_show)
    program.command("set")(_set)
    program.command("unset")(_unset)
    program.command("path")(_path)
    return program


def _show(json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Every setting, its value and where that comes from."""
    rows = _rows()
    if json:
        print_json({"schema": "sdcli.config/1", "values": rows})
        return
    widest = max(len(row["name"]) for row in rows)
    for row in rows:
        value = "-" if row["value"] is None else show(row["value"], 60)
        say(f"{row['name']:<{widest}}  {value:<24} {row['origin']}", sys.stdout)
    say("family: the default of the model's family, here SD1.5's. Change one: sdcli config set steps 30")


def _set(name: Name, value: Annotated[str, typer.Argument(metavar="VALUE", help="Its value.")]) -> None:
    """Keep a value for later runs: sdcli config set steps 30."""
    if name == "model" and value.strip():
        _check_known(value)
    config.set_value(file(), name, value)
    say(f"{name} = {show(value, 60)}, kept in {show(file())}")


def _check_known(model: str) -> None:
    """A model on this machine, or one that the Hub may have."""
    try:
        find_model(config.Sources(flag={"model": model}))
    except ModelMissing as error:
        if not error.details.get("repository"):
            raise


def _unset(name: Name) -> None:
    """Forget a value that was kept."""
    config.unset_value(file(), name)
    say(f"{name} is no longer set in {show(file())}")


def _path() -> None:
    """Where the settings are kept."""
    say(str(file()), sys.stdout)


def file() -> Path:
    return state.config_folder() / "config.toml"


def _rows() -> list[dict[str, Any]]:
    """What a run without any flags would use, for a model of SD1.5's family."""
    user, environment = config.from_user(file()), config.from_environment(os.environ)
    sources = config.Sources(user=user, environment=environment)
    values, origins = config.resolve(sources, family={**_defaults(), **find("sd15").defaults}, model={})
    places = {"user": str(file()), "environment": "environment"}
    return [
        {
            "name": name,
            "value": schema.to_json(values[name]),
            "origin": origins.get(name, "family"),
            "where": _where(name, origins.get(name, "family"), places),
        }
        for name in sorted(values)
        if name in config.SETTINGS and name not in config.NOT_KEPT
    ]


def _defaults() -> dict[str, Any]:
    """Of the fields that have one whatever the family; pins are shown slot by slot only where set."""
    plain = {f.name: f.default for f in fields(Request) if f.default is not MISSING}
    return {**plain, "model": default_model()}


def _where(name: str, origin: str, places: dict[str, str]) -> str | None:
    return f"SDCLI_{name.upper()}" if origin == "environment" else places.get(origin)
