"""The Typer program. Only the requested command is imported; the others are a name and a line of help."""

import importlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
import typer.core

from sdcli import __version__
from sdcli.terminal import folded, in_columns, tell, width

LONGEST_LABEL = 28  # of an option; the help of a longer one goes on the next line

# name → its factory ("module:function", which returns what Typer registers) and its line of help
COMMANDS: dict[str, tuple[str, str]] = {
    "generate": ("sdcli.cli.generate:command", "Draw images from prompts."),
    "again": ("sdcli.cli.again:command", "Draw images again from their own settings, or with some changed."),
    "diff": ("sdcli.cli.diff:command", "Show the settings and pixels in which two images differ."),
    "plan": ("sdcli.cli.plan:command", "Show what an image would need, before anything is loaded."),
    "resume": ("sdcli.cli.resume:command", "Draw what an interrupted run has not drawn yet."),
    "verify": ("sdcli.cli.verify:command", "Draw an image again and compare; say what explains a difference."),
    "meta": ("sdcli.cli.meta:command", "Show the settings in images, or make copies without them."),
    "runs": ("sdcli.cli.runs:command", "List runs and how far each came."),
    "serve": ("sdcli.cli.serve:command", "Serve images over HTTP to other programs."),
    "upscale": ("sdcli.cli.upscale:command", "Enlarge images with a model for that."),
    "models": ("sdcli.cli.models:command", "List local models; add folders; check a model."),
    "pull": ("sdcli.cli.pull:command", "Download a model from the Hugging Face Hub."),
    "samplers": ("sdcli.cli.samplers:command", "List the samplers and their names in other programs."),
    "presets": ("sdcli.cli.presets:command", "List the presets: named sets of settings."),
    "bench": ("sdcli.cli.bench:command", "Benchmark time per step; compare results."),
    "inspect-unet": ("sdcli.cli.inspect_unet:command", "Show a UNet's layers, sizes, compute and skips."),
    "doctor": ("sdcli.cli.doctor:command", "Check this machine: GPU, versions, models, disk."),
    "config": ("sdcli.cli.config:command", "Show or change saved settings."),
    "help": ("sdcli.cli.help:command", "Read about exit codes, environment, memory, formats or JSON."),
}


def _write(rows: list[tuple[str, str]], formatter: Any) -> None:
    """As Typer would, but broken only at spaces, so that `placement=group-offload` can be pasted."""
    columns = min(80, width(sys.stdout))
    room = min(LONGEST_LABEL, max(len(label) for label, _ in rows)) + 4
    for label, text in rows:
        if len(label) + 4 <= room:
            lines = in_columns(f"  {label}", text, room, columns)
        else:
            lines = [*folded(label, columns, "  "), *in_columns(" " * room, text, room, columns)]
        formatter.write("".join(f"{line}\n" for line in lines if line))


class Panels:
    """Groups the options of --help by panel, in plain text."""

    def panels(self: Any, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and parameter.param_type_name != "argument":
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(record)
        for name, rows in panels.items():
            with formatter.section(name):
                _write(rows, formatter)


class AsTyped:
    """Takes text and switches as they were typed, for sdcli converts text itself. In its place Typer would load
    pydantic, to see that text is text, and that takes longer than a plan."""

    def coerce(self, value: Any, **where: Any) -> Any:
        return value


def as_typed(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if parameter.type_descriptor.annotation in (str, bool, list[str]):
            parameter.get_runtime_param = AsTyped
    return parameters


class Grouped(Panels, typer.core.TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return as_typed(super().get_params(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.panels(ctx, formatter)


class GroupedGroup(Panels, typer.core.TyperGroup):
    """A command that also has subcommands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return as_typed(super().get_params(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.panels(ctx, formatter)
        lines = [(name, command.help or "") for name, command in self.commands.items() if not command.hidden]
        with formatter.section("Commands"):
            _write(lines, formatter)


def build(only: str | None = None) -> typer.Typer:
    """The program with only the command `only` imported; None imports all of them (completion, tests of the docs)."""
    program = typer.Typer(
        name="sdcli",
        cls=GroupedGroup,
        help="Stable Diffusion on your own machine, with a plan before loading and measurements you can trust.",
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
    )
    program.callback(invoke_without_command=True)(_front_page)
    for name, (factory, line) in COMMANDS.items():
        if only is not None and name != only:
            program.command(name, help=line)(_placeholder)
            continue
        command = _load(factory)
        if isinstance(command, typer.Typer):
            for subcommand in command.registered_commands:
                subcommand.cls = Grouped
            program.add_typer(command, name=name, help=line, cls=GroupedGroup)
        else:
            program.command(name, cls=Grouped)(command)
    return program


def call(program: typer.Typer, words: list[str]) -> Any:
    """Run without letting Typer end the process: errors are raised, an exit code is returned."""
    return typer.main.get_command(program).main(args=words, prog_name="sdcli", standalone_mode=False)


def _front_page(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    if version:
        tell(f"sdcli {__version__}")
    elif context.invoked_subcommand is None:
        tell(context.get_help())


def _placeholder() -> None:
    """Only listed in --help."""


def _load(factory: str) -> Any:
    module, name = factory.split(":")
    command: Callable[[], Any] = getattr(importlib.import_module(module), name)
    return command()
