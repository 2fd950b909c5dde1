"""`sdcli config`: the saved settings, where each value comes from, and how to change one."""

import sys
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any

import typer

from sdcli import schema
from sdcli.asking.planning import default_model, look_for_model, read_sources, settings
from sdcli.cli.answer import print_json
from sdcli.errors import ModelMissing, SdcliError, Usage
from sdcli.machine.folders import config_file
from sdcli.models.families import find
from sdcli.models.model import Model
from sdcli.models.resolve import family_of
from sdcli.request import config
from sdcli.request.config import Sources
from sdcli.request.options import flag_of
from sdcli.request.request import Request
from sdcli.terminal import cells, folded, say, show, tell, width

Name = Annotated[str, typer.Argument(metavar="NAME", help="A setting, as in `sdcli config show`.")]


@dataclass(frozen=True, kw_only=True)
class SettingInForce:
    """`value` as on the command line; `where` is the variable or the file that it was read from."""

    name: str
    value: Any
    origin: str
    where: str | None


@dataclass(frozen=True, kw_only=True)
class SettingsInForce:
    schema: str = "sdcli.config/1"
    values: tuple[SettingInForce, ...]


def command() -> typer.Typer:
    program = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
    program.command("show")(_show)
    program.command("set")(_set)
    program.command("unset")(_unset)
    program.command("path")(_path)
    return program


def _show(json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Every setting, its value and where that comes from."""
    sources = read_sources({})
    try:
        model, problem = look_for_model(sources), ""
    except SdcliError as error:  # a saved name that is no longer valid must show here
        model, problem = None, error.message
    rows = _rows(sources, model)
    if json:
        print_json(schema.to_json(SettingsInForce(values=rows)))
        return
    widest = max(len(row.name) for row in rows)
    for row in rows:
        value = "-" if row.value is None else show(schema.to_json(row.value), 60)
        for line in _row(row.name, widest, value, row.origin, width(sys.stdout)):
            tell(line)
    for line in _explained(model, problem, width()):
        say(line)


def _row(name: str, widest: int, value: str, origin: str, columns: int) -> list[str]:
    """On one line, or with the origin on the next where the width requires it."""
    line = f"{name:<{widest}}  {value:<{min(24, max(8, columns - widest - 18))}} {origin}"
    return [line] if cells(line) <= columns else [f"{name:<{widest}}  {value}", f"{'':<{widest}}  {origin}"]


def _explained(model: Model | None, problem: str, columns: int) -> list[str]:
    if model is None:
        text = f"The model was not found, so its settings are omitted: {problem}"
    else:
        text = f"Settings for {show(model.name, 60)}. family: the defaults of {family_of(model).title}; model: "
        text += "from the model's files; default: sdcli's default."
    return folded(f"{text.rstrip('.')}. Change one: sdcli config set steps 30", columns)


def _set(name: Name, value: Annotated[str, typer.Argument(metavar="VALUE", help="The value.")]) -> None:
    """Save a value for later runs: sdcli config set steps 30."""
    if name == "model" and value.strip():
        _check_known(value)
    try:
        config.set_value(config_file(), name, value)
    except Usage as error:
        flag, _, better = error.hint.partition(" ")
        if flag == flag_of(name) and better:  # worded as for generate
            error.hint = f"sdcli config set {name} {better}"
        raise
    say(f"{name} = {show(value, 60)}, saved in {show(config_file())}")


def _check_known(model: str) -> None:
    """A model on this machine, or one that the Hub may have."""
    try:
        look_for_model(Sources(flag={"model": model}))
    except ModelMissing as error:
        if not error.details.get("repository"):
            raise


def _unset(name: Name) -> None:
    """Remove a saved value."""
    config.unset_value(config_file(), name)
    say(f"{name} is no longer set in {show(config_file())}")


def _path() -> None:
    """Print the path of the config file."""
    tell(str(config_file()))


def _rows(sources: Sources, model: Model | None) -> tuple[SettingInForce, ...]:
    """The settings of a run without flags."""
    if model is None:
        values, origins = config.resolve(sources, family=dict.fromkeys(find("sd15").defaults), model={})
    else:
        values, origins = settings(sources, model)
    values = {**_defaults(), **values}
    return tuple(
        SettingInForce(
            name=name,
            value=values[name],
            origin=origins.get(name, "default"),
            where=_where(name, origins.get(name, "default")),
        )
        for name in sorted(values)
        if name in config.SETTINGS and name not in config.NOT_KEPT
    )


def _defaults() -> dict[str, Any]:
    """Of the fields whose default does not depend on the model; pins are shown slot by slot only where set."""
    plain = {f.name: f.default for f in fields(Request) if f.default is not MISSING}
    return {**plain, "model": default_model()}


def _where(name: str, origin: str) -> str | None:
    if origin == "environment":
        return f"SDCLI_{name.upper()}"
    return str(config_file()) if origin == "user" else None
