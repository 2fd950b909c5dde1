"""`sdcli inspect-unet`: the structure, work and memory of a UNet, from its config or a file's header."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from sdcli import terminal
from sdcli.cli.answer import print_json
from sdcli.errors import Usage
from sdcli.files import save
from sdcli.models.model import BYTES
from sdcli.request.jobs import parse_sides
from sdcli.request.options import OUTPUT, Option
from sdcli.request.options import command as make
from sdcli.terminal import plain, put, say, show, tell

FEW, MANY = 6, 40  # rows of a module's first table
TABLES, SIZE, COMPARE = "Tables", "Size", "Compare and run"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags as given."""

    model: str | None = None
    at: str | None = None
    batch: int = 1
    tokens: int = 77
    dtype: str = "fp16"
    layers: bool = False
    depth: int | None = None
    by: str | None = None
    sort: str | None = None
    pattern: str | None = None
    diff: str | None = None
    lora: str | None = None
    measure: bool = False
    device: str = "auto"
    module: str | None = None
    inputs: Sequence[str] = ()
    json: bool = False
    csv: bool = False
    markdown: bool = False
    svg: str | None = None
    html: str | None = None
    ascii: bool = False
    debug: bool = False  # read where errors are shown


OPTIONS = (
    Option(field="model", metavar="MODEL"),
    Option(field="model_option", flags=("--model", "-m"), metavar="NAME|PATH", help="The same as MODEL."),
    Option(field="at", flags=("--at",), metavar="WxH", panel=SIZE, help="Image size in pixels."),
    Option(field="batch", flags=("--batch",), metavar="N", kind=int, default=Flags.batch, panel=SIZE,
           help="Latents per call."),
    Option(field="tokens", flags=("--tokens",), metavar="N", kind=int, default=Flags.tokens, panel=SIZE,
           help="Text tokens."),
    Option(field="dtype", flags=("--dtype",), metavar="TYPE", default=Flags.dtype, panel=SIZE,
           help="fp32, fp16, bf16 or fp8."),
    Option(field="layers", flags=("--layers",), switch=True, panel=TABLES, help="List every layer."),
    Option(field="depth", flags=("--depth",), metavar="N", kind=int, panel=TABLES,
           help="Sum the layers N modules deep."),
    Option(field="by", flags=("--by",), metavar="kind|block", panel=TABLES,
           help="Sum the layers by what they do, or by block."),
    Option(field="sort", flags=("--sort",), metavar="COLUMN", panel=TABLES,
           help="call, name, kind, parameters, bytes, macs or activation."),
    Option(field="pattern", flags=("--filter",), metavar="REGEX", panel=TABLES, help="Only names that match."),
    Option(field="diff", flags=("--diff",), metavar="OTHER", panel=COMPARE, help="Compare with another."),
    Option(field="lora", flags=("--lora",), metavar="FILE", panel=COMPARE, help="Show the layers a LoRA changes."),
    Option(field="measure", flags=("--measure",), switch=True, panel=COMPARE, help="Build it and run one call here."),
    Option(field="device", flags=("--device",), metavar="NAME", default=Flags.device, panel=COMPARE,
           help="Where --measure runs."),
    Option(field="module", flags=("--module",), metavar="PKG.MOD:FACTORY", panel=COMPARE,
           help="Inspect any torch module instead; runs its code."),
    Option(field="inputs", flags=("--input",), metavar="1,3,256,256", repeatable=True, panel=COMPARE,
           help="Shape for --module."),
    Option(field="json", flags=("--json",), switch=True, panel=OUTPUT, help="One JSON object on stdout."),
    Option(field="csv", flags=("--csv",), switch=True, panel=OUTPUT, help="Print the table as CSV."),
    Option(field="markdown", flags=("--markdown",), switch=True, panel=OUTPUT, help="Print the table in Markdown."),
    Option(field="svg", flags=("--svg",), metavar="FILE", panel=OUTPUT, help="Save a diagram of the UNet."),
    Option(field="html", flags=("--html",), metavar="FILE", panel=OUTPUT, help="Save a page with every layer."),
    Option(field="ascii", flags=("--ascii",), switch=True, panel=OUTPUT, help="Plain characters only."),
    Option(field="debug", flags=("--debug",), switch=True, panel=OUTPUT, help="Show tracebacks."),
)  # fmt: skip


def command() -> Callable[..., None]:
    return make(
        _inspect, OPTIONS, name="inspect-unet",
        help="Show a UNet's layers, sizes, compute and skips, from its config or a file's header. Nothing is loaded.",
    )  # fmt: skip


def _inspect(typed: dict[str, Any]) -> None:
    word, option = typed.pop("model", None), typed.pop("model_option", None)
    ascii = typed.pop("ascii", False) or not terminal.speaks_unicode(sys.stdout)
    flags = Flags(model=word or option, ascii=ascii, **typed)
    if flags.json + flags.csv + flags.markdown > 1:
        raise Usage(
            "--json, --csv and --markdown each write to stdout; use one",
            hint="the same command without --csv --markdown",
        )
    if word and option and word != option:
        raise Usage(f"two models: {show(word, 60)} and {show(option, 60)}", hint="sdcli inspect-unet sd15 --diff sdxl")
    if flags.module is not None:
        _module(flags, flags.module)
    elif flags.lora is not None:
        _lora(flags, flags.lora)
    elif flags.diff is not None:
        _diff(flags, flags.diff)
    else:
        _unet(flags)


# one UNet


def _unet(flags: Flags) -> None:
    from sdcli.inspect import facts, source

    if flags.model is None:
        raise Usage("which UNet?", hint="sdcli inspect-unet sd15   (sdxl, sd2, refiner, unet2015, or a path)")
    unet = source.find(flags.model)
    if isinstance(unet, source.LoraFile):
        _show_lora(flags, unet, None)
        return
    look = facts.inspect(unet, _at(flags, unet))
    if flags.measure:
        from sdcli.inspect.measure import measure

        look = measure(look, flags.device)
    for path, kind in ((flags.svg, "svg"), (flags.html, "html")):
        if path is not None:
            _draw(look, path, kind)
    _answer(flags, look, drawn=bool(flags.svg or flags.html))
    if unet.fault is not None:
        if flags.json:
            raise typer.Exit(unet.fault.code)
        raise unet.fault


def _at(flags: Flags, unet: Any) -> Any:
    from sdcli.inspect import facts

    width, height = facts.native_size(unet)
    if flags.at is not None:
        width, height = parse_sides(flags.at, "--at")
    if flags.dtype not in BYTES:
        raise Usage(
            f"--dtype {show(flags.dtype, 40)} is not one of {', '.join(BYTES)}",
            hint="--dtype bf16",
        )
    for flag, value in (("--batch", flags.batch), ("--tokens", flags.tokens)):
        if not 1 <= value <= 100_000:
            raise Usage(f"{flag} {value} is outside 1 to 100000", hint=f"{flag} 1")
    return facts.At(width=width, height=height, batch=flags.batch, tokens=flags.tokens, dtype=flags.dtype)


def _answer(flags: Flags, look: Any, *, drawn: bool) -> None:
    """The document, a table or the screen, on stdout."""
    from sdcli.inspect import facts, screen, tables

    rows, view = _rows(flags, look)
    if flags.json:
        print_json(facts.to_json(look))
        return
    if flags.csv or flags.markdown:
        _print(tables.as_csv(rows) if flags.csv else tables.as_markdown(rows))
        return
    if view is not None:
        _lines(flags, tables.text(rows, look, _wide(), view=view))
    elif not drawn:
        colour = terminal.colour(sys.stdout) and not flags.ascii
        for line in screen.draw(look, terminal.width(sys.stdout), colour=colour, ascii=flags.ascii):
            tell(line)
    if look.measured is not None and view is None:
        _lines(flags, ["", *tables.text(tables.by_block(look, tables.layers(look)), look, _wide(), view="blocks")])
        _lines(flags, screen.measured(look))
    _lines(flags, screen.faults(look.source))


def _rows(flags: Flags, look: Any) -> tuple[list[Any], str | None]:
    """The requested rows, and how they are shown; no view where no table was requested."""
    from sdcli.inspect import tables

    leaves = tables.matching(tables.layers(look), flags.pattern)
    chosen = [flag for flag in (flags.layers, flags.depth is not None, flags.by is not None) if flag]
    if len(chosen) > 1:
        raise Usage(
            "--layers, --depth and --by are three tables; one at a time", hint="the same command without --depth --by"
        )
    view: str | None = None
    if flags.depth is not None:
        if flags.depth < 1:
            raise Usage(f"--depth {flags.depth} is below 1", hint="--depth 2")
        rows, view = tables.by_depth(leaves, flags.depth), "sums"
    elif flags.by is not None:
        if flags.by not in ("kind", "block"):
            raise Usage(f"--by {show(flags.by, 40)} is neither kind nor block", hint="--by kind")
        rows, view = (
            (tables.by_kind(leaves), "sums") if flags.by == "kind" else (tables.by_block(look, leaves), "blocks")
        )
    else:
        rows = leaves
        if flags.layers or flags.sort or flags.pattern:
            view = "layers"
    return tables.ordered(rows, flags.sort), view


def _wide() -> int:
    """Columns for a table: the terminal's; a file or pipe has no width."""
    import os

    return terminal.width(sys.stdout) if terminal.is_terminal(sys.stdout) or os.environ.get("COLUMNS") else 160


def _lines(flags: Flags, lines: list[str]) -> None:
    for line in lines:
        tell(plain(line) if flags.ascii else line)


def _print(text: str) -> None:
    """CSV and Markdown, in UTF-8 whatever the console's encoding."""
    put(text.encode("utf-8", "backslashreplace"))


def _draw(look: Any, path: str, kind: str) -> None:
    from sdcli.inspect import diagram, page

    content = diagram.svg(look) if kind == "svg" else page.html(look)
    save(Path(os.path.expanduser(path)), content, hint="sdcli inspect-unet sd15 --svg u.svg", make_folder=False)
    say(f"{kind.upper()} written: {show(path, 200)}")


# comparisons and other modules


def _diff(flags: Flags, other: str) -> None:
    from sdcli.inspect import diff, source

    if flags.model is None:
        raise Usage("compare what?", hint="sdcli inspect-unet sd15 --diff sdxl")
    sides = []
    for name in (flags.model, other):
        unet = source.find(name)
        if isinstance(unet, source.LoraFile):
            raise Usage(
                f"{show(name, 80)} is a LoRA; --diff compares UNets", hint="sdcli inspect-unet sd15 --lora FILE"
            )
        sides.append(unet)
    result = diff.compare(sides[0], sides[1])
    if flags.json:
        print_json(diff.to_json(result))
        return
    _lines(flags, diff.text(result, terminal.width(sys.stdout)))


def _lora(flags: Flags, path: str) -> None:
    from sdcli.inspect import source

    lora = source.find_lora(path)
    base = None
    if flags.model is not None:
        base = source.find(flags.model)
        if isinstance(base, source.LoraFile):
            raise Usage(f"{show(flags.model, 80)} is a LoRA itself", hint="sdcli inspect-unet sd15 --lora FILE")
    _show_lora(flags, lora, base)


def _show_lora(flags: Flags, file: Any, base: Any) -> None:
    from sdcli.inspect import lora

    result = lora.inspect(file, base)
    if flags.json:
        print_json(lora.to_json(result))
        return
    _lines(flags, lora.text(result, terminal.width(sys.stdout), every=flags.layers))


def _module(flags: Flags, name: str) -> None:
    from sdcli.inspect import modules, tables

    look = modules.inspect(name, flags.inputs, dtype=flags.dtype)
    if flags.json or flags.csv or flags.markdown:
        _answer(flags, look, drawn=False)
        return
    rows, view = _rows(flags, look)
    _lines(flags, modules.summary(look))
    if view is None:
        rows, view = _rolled_up(rows), "sums"
    _lines(flags, ["", *tables.text(rows, look, _wide(), view=view)])


def _rolled_up(leaves: list[Any]) -> list[Any]:
    """Sums one module deep, or as deep as it takes for a table of some rows."""
    from sdcli.inspect import tables

    rows = tables.by_depth(leaves, 1)
    for depth in (2, 3, 4):
        if len(rows) >= FEW:
            break
        deeper = tables.by_depth(leaves, depth)
        if len(deeper) > MANY:
            break
        rows = deeper
    return rows
