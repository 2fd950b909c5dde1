"""The Typer program. Only the command asked for is imported; the others stand as a name and a line of help."""

import importlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
import typer.core

from sdcli import __version__
from sdcli.terminal import folded, in_columns, tell, width

LONGEST_LABEL = 28  # of an option; what is said of a longer one stands below it

# name → where its maker is ("module:function", giving what Typer registers) and its line of help
COMMANDS: dict[str, tuple[str, str]] = {
    "generate": ("sdcli.cli.generate:command", "Draw pictures from prompts."),
    "plan": ("sdcli.cli.plan:command", "Show what a picture would need, before anything is loaded."),
    "models": ("sdcli.cli.models:command", "List the models that are here; add folders; check one."),
    "pull": ("sdcli.cli.pull:command", "Fetch a model from the Hugging Face Hub."),
    "samplers": ("sdcli.cli.samplers:command", "List the samplers and their names elsewhere."),
    "presets": ("sdcli.cli.presets:command", "List the presets: named sets of settings."),
    "bench": ("sdcli.cli.bench:command", "Benchmark time per step; compare results."),
    "inspect-unet": ("sdcli.cli.inspect_unet:command", "Show a UNet's layers, sizes, compute and skips."),
    "doctor": ("sdcli.cli.doctor:command", "Check this machine: GPU, versions, models, disk."),
    "config": ("sdcli.cli.config:command", "Show or change saved settings."),
    "help": ("sdcli.cli.help:command", "Read about exit codes, environment, memory or formats."),
}


def _write(rows: list[tuple[str, str]], formatter: Any) -> None:
    """As Typer would, but broken between words only: `placement=group-offload` is to be pasted."""
    columns = min(80, width(sys.stdout))
    room = min(LONGEST_LABEL, max(len(label) for label, _ in rows)) + 4
    for label, text in rows:
        if len(label) + 4 <= room:
            lines = in_columns(f"  {label}", text, room, columns)
        else:
            lines = [*folded(label, columns, "  "), *in_columns(" " * room, text, room, columns)]
        formatter.write("".join(f"{line}\n" for line in lines if line))


class Panels:
    """Keeps the options of --help in their panels, in plain text."""

    def panels(self: Any, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and parameter.param_type_name != "argument":
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(record)
        for name, rows in panels.items():
            with formatter.section(name):
                _write(rows, formatter)


class Grouped(Panels, typer.core.TyperCommand):
    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.panels(ctx, formatter)


class GroupedGroup(Panels, typer.core.TyperGroup):
    """A command that has subcommands besides."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.panels(ctx, formatter)
        lines = [(name, command.help or "") for name, command in self.commands.items() if not command.hidden]
        with formatter.section("Commands"):
            _write(lines, formatter)


def build(only: str | None = None) -> typer.Typer:
    """The program with the command `only` filled in; None fills in all of them (completion, tests of the docs)."""
    program = typer.Typer(
        name="sdcli",
        cls=GroupedGroup,
        help="Stable Diffusion on your own machine, with a plan before loading and figures one can trust.",
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
    )
    program.callback(invoke_without_command=True)(_front_page)
    for name, (where, line) in COMMANDS.items():
        if only is not None and name != only:
            program.command(name, help=line)(_stand_in)
            continue
        made = _load(where)
        if isinstance(made, typer.Typer):
            for inner in made.registered_commands:
                inner.cls = Grouped
            program.add_typer(made, name=name, help=line, cls=GroupedGroup)
        else:
            program.command(name, cls=Grouped)(made)
    return program


def call(program: typer.Typer, words: list[str]) -> Any:
    """Run without Typer's own way of ending: errors come out as exceptions, an exit code as a value."""
    return typer.main.get_command(program).main(args=words, prog_name="sdcli", standalone_mode=False)


def _front_page(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    if version:
        tell(f"sdcli {__version__}")
    elif context.invoked_subcommand is None:
        tell(context.get_help())


def _stand_in() -> None:
    """Listed in --help only."""


def _load(where: str) -> Any:
    module, maker = where.split(":")
    found: Callable[[], Any] = getattr(importlib.import_module(module), maker)
    return found()
