"""`sdcli config`: the settings that stay, where each value comes from, and how to change one."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli.cli.answer import print_json
from sdcli.machine import state
from sdcli.request import config
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
    config.set_value(file(), name, value)
    say(f"{name} = {show(value, 60)}, kept in {show(file())}")


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
    raise NotImplementedError(os)
