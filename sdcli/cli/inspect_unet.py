"""`sdcli inspect-unet`: the structure, work and memory of a UNet, from its config or a file's header."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli import terminal
from sdcli.errors import Usage
from sdcli.files import save
from sdcli.terminal import plain, put, say, show, tell

FEW, MANY = 6, 40  # rows of a module's first table
TABLES, FILES, SIZE, COMPARE = "Tables", "Output", "Size", "Compare and run"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the flags say, before anything is looked up."""

    model: str | None
    at: str | None
    batch: int
    tokens: int
    dtype: str
    layers: bool
    depth: int | None
    by: str | None
    sort: str | None
    pattern: str | None
    as_json: bool
    as_csv: bool
    as_markdown: bool
    ascii: bool


def command() -> Callable[..., None]:
    """What the program registers as `inspect-unet`."""
    return inspect_unet


def inspect_unet(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="sd15, sdxl, sd2, refiner, builtin, unet2015, a Hub id in the cache, a folder, a .safetensors file "
            "or a config.json.",
            show_default=False,
        ),
    ] = None,
    model_option: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME|PATH", help="The same as MODEL.", show_default=False)
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="WxH", help="Picture size in pixels.", rich_help_panel=SIZE, show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Latents per call.", rich_help_panel=SIZE)] = 1,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Text tokens.", rich_help_panel=SIZE)] = 77,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="TYPE", help="fp32, fp16, bf16 or fp8.", rich_help_panel=SIZE)
    ] = "fp16",
    layers: Annotated[bool, typer.Option("--layers", help="Every layer.", rich_help_panel=TABLES)] = False,
    depth: Annotated[
        int | None,
        typer.Option("--depth", metavar="N", help="Sums N modules deep.", rich_help_panel=TABLES, show_default=False),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="kind|block", help="Sums.", rich_help_panel=TABLES, show_default=False),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="COLUMN",
            help="call, name, kind, parameters, bytes, macs or activation.",
            rich_help_panel=TABLES,
            show_default=False,
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--filter", metavar="REGEX", help="Only names that match.", rich_help_panel=TABLES, show_default=False
        ),
    ] = None,
    diff: Annotated[
        str | None,
        typer.Option(
            "--diff", metavar="OTHER", help="Compare with another.", rich_help_panel=COMPARE, show_default=False
        ),
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(
            "--lora", metavar="FILE", help="What a LoRA touches.", rich_help_panel=COMPARE, show_default=False
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Build it and run one call here.", rich_help_panel=COMPARE)
    ] = False,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="Where --measure runs.", rich_help_panel=COMPARE)
    ] = "auto",
    module: Annotated[
        str | None,
        typer.Option(
            "--module",
            metavar="PKG.MOD:FACTORY",
            help="Any torch module instead; its code is run.",
            rich_help_panel=COMPARE,
            show_default=False,
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="1,3,256,256", help="Shape for --module.", rich_help_panel=COMPARE, show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.", rich_help_panel=FILES)] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="The table as CSV.", rich_help_panel=FILES)] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="The table in Markdown.", rich_help_panel=FILES)
    ] = False,
    svg: Annotated[
        str | None,
        typer.Option("--svg", metavar="FILE", help="Draw the U.", rich_help_panel=FILES, show_default=False),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(
            "--html", metavar="FILE", help="The U with all layers.", rich_help_panel=FILES, show_default=False
        ),
    ] = None,
    ascii: Annotated[bool, typer.Option("--ascii", help="Plain characters only.", rich_help_panel=FILES)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks.", rich_help_panel=FILES)] = False,
) -> None:
    """See a UNet: layers, sizes, work and skips, from its config or a file's header. Nothing is loaded."""
    if sum((as_json, as_csv, as_markdown)) > 1:
        raise Usage(
            "--json, --csv and --markdown each want stdout for themselves",
            hint="the same command without --csv --markdown",
        )
    if model and model_option and model != model_option:
        raise Usage(
            f"two models: {show(model, 60)} and {show(model_option, 60)}", hint="sdcli inspect-unet sd15 --diff sdxl"
        )
    asked = Asked(
        model=model or model_option,
        at=at,
        batch=batch,
        tokens=tokens,
        dtype=dtype,
        layers=layers,
        depth=depth,
        by=by,
        sort=sort,
        pattern=pattern,
        as_json=as_json,
        as_csv=as_csv,
        as_markdown=as_markdown,
        ascii=ascii or not terminal.speaks_unicode(sys.stdout),
    )
    if module is not None:
        _module(asked, module, given or [])
    elif lora is not None:
        _lora(asked, lora)
    elif diff is not None:
        _diff(asked, diff)
    else:
        _unet(asked, measure=measure, device=device, svg=svg, html=html)


# one UNet


def _unet(asked: Asked, *, measure: bool, device: str, svg: str | None, html: str | None) -> None:
    from sdcli.inspect import facts, source

    if asked.model is None:
        raise Usage("which UNet?", hint="sdcli inspect-unet sd15   (sdxl, sd2, refiner, unet2015, or a path)")
    found = source.find(asked.model)
    if isinstance(found, source.LoraFile):
        _show_lora(asked, found, None)
        return
    look = facts.inspect(found, _at(asked, found))
    if measure:
        from sdcli.inspect.measure import measure as run

        look = run(look, device)
    for path, kind in ((svg, "svg"), (html, "html")):
        if path is not None:
            _draw(look, path, kind)
    _answer(asked, look, drawn=bool(svg or html))
    if found.fault is not None:
        if asked.as_json:
            raise typer.Exit(found.fault.code)
        raise found.fault


def _at(asked: Asked, found: Any) -> Any:
    from sdcli.inspect import facts

    width, height = facts.native_size(found)
    if asked.at is not None:
        match = re.fullmatch(r"(\d{1,6})(?:[xX×](\d{1,6}))?", asked.at.strip())
        if not match:
            raise Usage(f"--at {show(asked.at, 40)} is no size", hint="--at 768x512")
        width, height = int(match[1]), int(match[2] or match[1])
    if asked.dtype not in facts.DTYPE_BYTES:
        raise Usage(
            f"--dtype {show(asked.dtype, 40)} is none of {', '.join(facts.DTYPE_BYTES)}",
            hint="--dtype bf16",
        )
    for flag, value in (("--batch", asked.batch), ("--tokens", asked.tokens)):
        if not 1 <= value <= 100_000:
            raise Usage(f"{flag} {value} is outside 1 to 100000", hint=f"{flag} 1")
    return facts.At(width=width, height=height, batch=asked.batch, tokens=asked.tokens, dtype=asked.dtype)


def _answer(asked: Asked, look: Any, *, drawn: bool) -> None:
    """The document, a table or the screen, on stdout."""
    from sdcli.inspect import facts, screen, tables

    rows, view = _rows(asked, look)
    if asked.as_json:
        from sdcli.cli.answer import print_json

        print_json(facts.to_json(look))
        return
    if asked.as_csv or asked.as_markdown:
        _print(tables.as_csv(rows) if asked.as_csv else tables.as_markdown(rows))
        return
    if view is not None:
        _lines(asked, tables.text(rows, look, _wide(), view=view))
    elif not drawn:
        colour = terminal.colour(sys.stdout) and not asked.ascii
        for line in screen.draw(look, terminal.width(sys.stdout), colour=colour, ascii=asked.ascii):
            tell(line)
    if look.measured is not None and view is None:
        _lines(asked, ["", *tables.text(tables.by_block(look, tables.layers(look)), look, _wide(), view="blocks")])
        _lines(asked, screen.measured(look))
    _lines(asked, screen.faults(look.source))


def _rows(asked: Asked, look: Any) -> tuple[list[Any], str | None]:
    """The rows asked for, and how they are shown; no view where no table was asked for."""
    from sdcli.inspect import tables

    leaves = tables.matching(tables.layers(look), asked.pattern)
    wanted = [flag for flag in (asked.layers, asked.depth is not None, asked.by is not None) if flag]
    if len(wanted) > 1:
        raise Usage(
            "--layers, --depth and --by are three tables; one at a time", hint="the same command without --depth --by"
        )
    view: str | None = None
    if asked.depth is not None:
        if asked.depth < 1:
            raise Usage(f"--depth {asked.depth} is below 1", hint="--depth 2")
        rows, view = tables.by_depth(leaves, asked.depth), "sums"
    elif asked.by is not None:
        if asked.by not in ("kind", "block"):
            raise Usage(f"--by {show(asked.by, 40)} is none of kind, block", hint="--by kind")
        rows, view = (
            (tables.by_kind(leaves), "sums") if asked.by == "kind" else (tables.by_block(look, leaves), "blocks")
        )
    else:
        rows = leaves
        if asked.layers or asked.sort or asked.pattern:
            view = "layers"
    return tables.ordered(rows, asked.sort), view


def _wide() -> int:
    """Columns for a table: the terminal's; a file or pipe has no end of line to mind."""
    import os

    return terminal.width(sys.stdout) if terminal.is_terminal(sys.stdout) or os.environ.get("COLUMNS") else 160


def _lines(asked: Asked, lines: list[str]) -> None:
    for line in lines:
        tell(plain(line) if asked.ascii else line)


def _print(text: str) -> None:
    """CSV and Markdown, in UTF-8 whatever the console speaks."""
    put(text.encode("utf-8", "backslashreplace"))


def _draw(look: Any, path: str, kind: str) -> None:
    from sdcli.inspect import page, picture

    drawing = picture.svg(look) if kind == "svg" else page.html(look)
    save(Path(path).expanduser(), drawing, hint="sdcli inspect-unet sd15 --svg u.svg", make_folder=False)
    say(f"{kind.upper()} written: {show(path, 200)}")


# comparisons and other modules


def _diff(asked: Asked, other: str) -> None:
    from sdcli.inspect import diff, source

    if asked.model is None:
        raise Usage("compare what?", hint="sdcli inspect-unet sd15 --diff sdxl")
    sides = []
    for name in (asked.model, other):
        found = source.find(name)
        if isinstance(found, source.LoraFile):
            raise Usage(
                f"{show(name, 80)} is a LoRA; --diff compares UNets", hint="sdcli inspect-unet sd15 --lora FILE"
            )
        sides.append(found)
    result = diff.compare(sides[0], sides[1])
    if asked.as_json:
        from sdcli.cli.answer import print_json

        print_json(diff.to_json(result))
        return
    _lines(asked, diff.text(result, terminal.width(sys.stdout)))


def _lora(asked: Asked, path: str) -> None:
    from sdcli.inspect import source

    found = source.find_lora(path)
    base = None
    if asked.model is not None:
        base = source.find(asked.model)
        if isinstance(base, source.LoraFile):
            raise Usage(f"{show(asked.model, 80)} is a LoRA itself", hint="sdcli inspect-unet sd15 --lora FILE")
    _show_lora(asked, found, base)


def _show_lora(asked: Asked, found: Any, base: Any) -> None:
    from sdcli.inspect import lora

    result = lora.inspect(found, base)
    if asked.as_json:
        from sdcli.cli.answer import print_json

        print_json(lora.to_json(result))
        return
    _lines(asked, lora.text(result, terminal.width(sys.stdout), every=asked.layers))


def _module(asked: Asked, name: str, given: list[str]) -> None:
    from sdcli.inspect import modules, tables

    look = modules.inspect(name, given, dtype=asked.dtype)
    if asked.as_json or asked.as_csv or asked.as_markdown:
        _answer(asked, look, drawn=False)
        return
    rows, view = _rows(asked, look)
    _lines(asked, modules.summary(look))
    if view is None:
        rows, view = _rolled_up(rows), "sums"
    _lines(asked, ["", *tables.text(rows, look, _wide(), view=view)])


def _rolled_up(leaves: list[Any]) -> list[Any]:
    """Sums one module deep, or as deep as it takes to show some parts."""
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
