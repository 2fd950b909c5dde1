"""The UNet as a diagram for a talk: one self-contained SVG, light and dark, with figures on hover."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from sdcli.inspect import figures
from sdcli.inspect.facts import Inspection
from sdcli.inspect.screen import Level, insight, levels
from sdcli.models.unet import Block
from sdcli.terminal import show, size_text

WIDTH, MARGIN, BOX, TALL, ROW = 1200, 40, 190, 74, 112
TOP = 172
STYLE = """
svg.unet{--paper:#fff;--ink:#1c2430;--soft:#5d6b7e;--line:#c9d2de;--card:#f5f7fa;--work:#2f6fdb;--weights:#e08a1e;
--down:#0e8a8a;--up:#a63fa0;--mid:#7a6a12;--text:#1d8a4a;font-family:system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;background:var(--paper);color:var(--ink)}
@media (prefers-color-scheme:dark){svg.unet{--paper:#12161c;--ink:#e8edf4;--soft:#9aa8ba;--line:#3a4656;--card:#1c232d;
--work:#6ea2ff;--weights:#f0ac55;--down:#3fc4c4;--up:#d982d3;--mid:#d8c65a;--text:#5ccf8a}}
svg.unet text{fill:var(--ink);font-size:14px}
svg.unet .soft{fill:var(--soft)} svg.unet .title{font-size:27px;font-weight:650}
svg.unet .small{font-size:12.5px;fill:var(--soft)} svg.unet .name{font-weight:650;font-size:15px}
svg.unet .card{fill:var(--card);stroke:var(--line)} svg.unet .skip{stroke:var(--soft);fill:none;stroke-width:1.4}
svg.unet .flow{fill:none;stroke-width:3} svg.unet .down{stroke:var(--down)} svg.unet .up{stroke:var(--up)}
svg.unet .head{fill:var(--soft)} svg.unet .work{fill:var(--work)} svg.unet .weights{fill:var(--weights)}
svg.unet .chip{fill:var(--text)} svg.unet .chiptext{font-size:11.5px;fill:var(--paper);font-weight:650}
svg.unet g.block:hover .card{stroke:var(--ink);stroke-width:2}
svg.unet g.skips:hover .skip{stroke:var(--ink)} svg.unet .num{font-variant-numeric:tabular-nums;font-size:12.5px}
"""


@dataclass(frozen=True)
class Scale:
    """The largest work and weights of any block: full bars."""

    macs: int
    parameters: int


def svg(look: Inspection) -> str:
    """A complete file for browsers and slides; it fetches nothing."""
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + inline(look)


def inline(look: Inspection) -> str:
    """The `<svg>` element, as the HTML page embeds it."""
    rows = levels(look.unet)
    height = TOP + ROW * len(rows) + 210
    body = [*_heading(look), *_rows(look, rows), *_ending(look, height)]
    label = escape(f"{show(look.source.title, 80)}: {look.unet.parameters:,} parameters")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="unet" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{label}">\n<style>{STYLE}</style>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="var(--paper)"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    styled = f' class="{style}"' if style else ""
    anchored = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{styled}{anchored}>{escape(words)}</text>'


def _heading(look: Inspection) -> Iterable[str]:
    unet, at = look.unet, look.at
    yield _text(MARGIN, 58, show(look.source.title, 80), "title")
    yield _text(
        MARGIN,
        88,
        f"{unet.parameters:,} parameters · {size_text(look.weight_bytes)} in {at.dtype} · "
        f"{unet.macs / 1e9:,.1f} billion multiply-adds a call at {at.width}×{at.height} · "
        f"{size_text(look.peak_bytes)} of activations",
        "soft",
    )
    noise = "noisy latent" if unet.time_channels else "image"
    result = "prediction" if unet.time_channels else "result"
    yield _text(MARGIN, 140, f"{noise} {figures.shape(unet.latent)} ↓", "name")
    yield _text(
        WIDTH - MARGIN, 140, f"↑ {result} {figures.shape(unet.leaves[-1].output_shape[1:])}", "name", anchor="end"
    )
    yield _text(
        (WIDTH + 92) / 2,
        140,
        f"{len(unet.skips)} skip connections carry the finer detail across",
        "small",
        anchor="middle",
    )


def _left_edges(row: int, count: int) -> tuple[float, float]:
    """Left edges of the boxes going down and up in this row."""
    step = min(56.0, 168.0 / max(1, count - 1))
    return MARGIN + 92 + step * row, WIDTH - MARGIN - BOX - step * row


def _rows(look: Inspection, rows: list[Level]) -> Iterable[str]:
    blocks = look.unet.blocks
    scale = Scale(max((b.macs for b in blocks), default=1) or 1, max((b.parameters for b in blocks), default=1) or 1)
    for number, row in enumerate(rows):
        left, right = _left_edges(number, len(rows))
        y = TOP + ROW * number
        block = row.down or row.up
        if block is not None:
            yield _text(MARGIN, y + 32, figures.size(block.resolution), "name")
            yield _text(MARGIN, y + 52, f"{block.out_channels} wide", "small")
        yield from _skips(look, row, left + BOX, right, y)
        yield from _flows(number, rows, y)
        if row.down:
            yield from _box(look, row.down, left, y, scale, "down")
        if row.up:
            yield from _box(look, row.up, right, y, scale, "up")
    yield from _turn(look, rows, scale)


def _skips(look: Inspection, row: Level, start: float, end: float, y: float) -> Iterable[str]:
    """One line per skip, in the order they are joined; crowds share a line."""
    shown = row.skips if len(row.skips) <= 4 else row.skips[:1]
    names = [
        f"{skip.source} → {skip.target}: {skip.channels} channels at {figures.size(skip.resolution)}, joined to "
        f"{skip.concatenated_channels}"
        for skip in look.unet.skips
        if row.up is not None and skip.target.startswith(row.up.name + ".")
    ]
    if not shown:
        return
    yield f'<g class="skips"><title>{escape(chr(10).join(names))}</title>'
    gap = min(22.0, 60.0 / len(shown))
    top = y + TALL / 2 - gap * (len(shown) - 1) / 2
    for number, channels in enumerate(shown):
        line = top + gap * number
        words = (
            f"{channels}" if len(shown) == len(row.skips) else f"{len(row.skips)} × {min(row.skips)}–{max(row.skips)}"
        )
        middle = (start + end) / 2
        room = 7.5 * len(words) / 2 + 8
        both = f"M{start + 6:.0f} {line:.1f}H{middle - room:.0f}M{middle + room:.0f} {line:.1f}H{end - 12:.0f}"
        yield f'<path class="skip" d="{both}"/>'
        yield f'<path class="head" d="M{end - 6:.0f} {line:.1f}l-9 -4v8z"/>'
        yield _text(middle, line + 4.5, words, "small", anchor="middle")
    yield "</g>"


def _flows(number: int, rows: list[Level], y: float) -> Iterable[str]:
    """From this row's box down to the next one's, and back up."""
    if number == len(rows) - 1:
        return
    left, right = _left_edges(number, len(rows))
    below_left, below_right = _left_edges(number + 1, len(rows))
    bottom, top = y + TALL, y + ROW
    bend = (bottom + top) / 2
    yield f'<path class="flow down" d="M{left + 24:.0f} {bottom}V{bend:.0f}H{below_left + 24:.0f}V{top}"/>'
    start, end = right + BOX - 24, below_right + BOX - 24
    yield f'<path class="flow up" d="M{start:.0f} {bottom}V{bend:.0f}H{end:.0f}V{top}"/>'


def _turn(look: Inspection, rows: list[Level], scale: Scale) -> Iterable[str]:
    """The middle, at the bottom of the U."""
    y = TOP + ROW * len(rows)
    left, right = _left_edges(len(rows) - 1, len(rows)) if rows else (WIDTH / 2 - BOX, WIDTH / 2)
    middle = (left + right) / 2
    mid = next((block for block in look.unet.blocks if block.role == "mid"), None)
    centre = y + TALL / 2
    start, end = left + 24, right + BOX - 24
    if mid is None:
        if rows:
            yield f'<path class="flow down" d="M{start:.0f} {y - ROW + TALL}V{centre:.0f}H{end:.0f}V{y - ROW + TALL}"/>'
        return
    if rows:
        yield f'<path class="flow down" d="M{start:.0f} {y - ROW + TALL}V{centre:.0f}H{middle:.0f}"/>'
        yield f'<path class="flow up" d="M{middle + BOX:.0f} {centre:.0f}H{end:.0f}V{y - ROW + TALL}"/>'
        if mid.level > rows[-1].number:
            yield _text(MARGIN, y + 32, figures.size(mid.resolution), "name")
            yield _text(MARGIN, y + 52, f"{mid.out_channels} wide", "small")
    yield from _box(look, mid, middle, y, scale, "mid")


def _box(look: Inspection, block: Block, x: float, y: float, scale: Scale, role: str) -> Iterable[str]:
    """Name, whether text enters, and two bars: work and weights."""
    wide = BOX
    name = figures.short(block.name)
    yield f'<g class="block" data-block="{escape(block.name)}"><title>{escape(about(look, block))}</title>'
    yield f'<rect class="card" x="{x:.0f}" y="{y:.0f}" width="{wide}" height="{TALL}" rx="7"/>'
    yield f'<rect x="{x:.0f}" y="{y + 6:.0f}" width="4" height="{TALL - 12}" rx="2" fill="var(--{role})"/>'
    yield _text(x + 14, y + 22, name, "name")
    if figures.attends(block):
        words = "text" if figures.reads_text(block) else "attention"
        chip = 7 * len(words) + 12
        yield f'<rect class="chip" x="{x + wide - chip - 10:.0f}" y="{y + 9:.0f}" width="{chip}" height="17" rx="8.5"/>'
        yield _text(x + wide - chip / 2 - 10, y + 21.5, words, "chiptext", anchor="middle")
    for line, (style, part, full, words) in enumerate(
        (
            ("work", block.macs, scale.macs, figures.work(block.macs)),
            ("weights", block.parameters, scale.parameters, figures.count(block.parameters)),
        )
    ):
        top = y + 34 + 18 * line
        long = max(1.5, 92 * part / full)
        yield f'<rect class="{style}" x="{x + 14:.0f}" y="{top:.0f}" width="{long:.1f}" height="11" rx="2"/>'
        yield _text(x + wide - 10, top + 10, words, "num", anchor="end")
    yield "</g>"


def about(look: Inspection, block: Block) -> str:
    """The hover text of a block."""
    unet, size = look.unet, look.at.dtype_bytes
    lines = [
        f"{block.name} · {block.type}",
        f"{block.in_channels} → {block.out_channels} channels at {figures.size(block.resolution)}",
        f"{block.parameters:,} parameters ({figures.percent(block.parameters, unet.parameters)}), "
        f"{figures.memory(block.parameters * size)} in {look.at.dtype}",
        f"{block.macs / 1e9:,.2f} G multiply-adds ({figures.percent(block.macs, unet.macs)})",
        f"{figures.memory(block.elements * size)} live at its peak",
    ]
    if look.measured is not None:
        seconds = {one.name: one.seconds for one in look.measured.blocks}.get(block.name)
        if seconds is not None:
            lines.append(f"{seconds * 1000:,.1f} ms on {show(look.measured.device, 40)}")
    return "\n".join(lines)


def _ending(look: Inspection, height: float) -> Iterable[str]:
    unet = look.unet
    y = height - 78
    yield f'<rect class="work" x="{MARGIN}" y="{y - 10:.0f}" width="26" height="11" rx="2"/>'
    yield _text(MARGIN + 34, y, "work: multiply-adds of a call (G billion)", "small")
    yield f'<rect class="weights" x="{MARGIN + 300}" y="{y - 10:.0f}" width="26" height="11" rx="2"/>'
    yield _text(MARGIN + 334, y, "weights: parameters (M million)", "small")
    conditions = []
    if unet.text_enters:
        conditions.append(
            f"text ({unet.tokens}×{unet.text_channels}) enters in {unet.text_enters} places by cross-attention"
        )
    if unet.time_enters:
        conditions.append(f"time is added in {unet.time_enters} ResNets")
    yield _text(MARGIN, y + 24, "; ".join(conditions) or "no text and no time step: an image in, a map out", "small")
    yield _text(MARGIN, y + 50, insight(look), "name")
    yield _text(WIDTH - MARGIN, y + 50, "sdcli inspect-unet", "small", anchor="end")
