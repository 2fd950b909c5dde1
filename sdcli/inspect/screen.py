"""One screen: the summary, the U with its levels, bars and skips, and one line of insight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sdcli.inspect import figures
from sdcli.inspect.facts import Inspection, Source, native_size
from sdcli.models.unet import Block, Unet
from sdcli.terminal import cells, counted, disk_text, fit, folded, plain, seconds_text, show, size_text

NARROWEST, ROOMY, WIDEST = 60, 76, 112
STYLES = {"down": "36", "up": "35", "mid": "33", "skip": "2", "bold": "1", "dim": "2"}  # ANSI


@dataclass(frozen=True)
class Span:
    """Some text in one style of STYLES, or plain."""

    text: str
    style: str = ""


Line = Sequence[Span]


def draw(look: Inspection, width: int, *, colour: bool = False, ascii: bool = False) -> list[str]:
    """The whole screen, at most `width` columns wide."""
    width = max(NARROWEST, min(width, WIDEST))
    lines: list[Line] = [
        *_summary(look, width),
        (),
        *the_u(look.unet, width, ascii=ascii),
        (),
        *_legend(look, width),
        *_sentence(insight(look, ascii=ascii), width, " ", "bold"),
        *_sentence(_more(look), width, " ", "dim"),
    ]
    painted = [_painted(line, colour) for line in lines]
    return [plain(line)[:width] for line in painted] if ascii else painted


def _sentence(text: str, width: int, indent: str = "", style: str = "") -> Iterable[Line]:
    return ((Span(line, style),) for line in folded(text, width, indent, indent + "  "))


def _painted(line: Line, colour: bool) -> str:
    painted = "".join(
        f"\x1b[{STYLES[span.style]}m{span.text}\x1b[0m" if colour and span.style and span.text.strip() else span.text
        for span in line
    )
    return painted.rstrip()


def _summary(look: Inspection, width: int) -> Iterable[Line]:
    source, at, unet = look.source, look.at, look.unet
    sizes = (
        f"{size_text(4 * unet.parameters)} fp32, {size_text(2 * unet.parameters)} fp16 or bf16, "
        f"{size_text(unet.parameters)} fp8"
    )
    title = fit(show(source.title, 60), width)
    if cells(f"{title} · {source.origin}") <= width:
        yield (Span(title, "bold"), Span(f" · {source.origin}"))
    else:
        yield (Span(title, "bold"),)
        yield from _sentence(source.origin, width, "  ")
    if source.stored_bytes is not None:
        yield from _sentence(_as_stored(look), width, "  ")
    yield from _sentence(f"{unet.parameters:,} parameters: {sizes}", width)
    batch = f", batch {at.batch}" if at.batch > 1 else ""
    call = f"{work_text(unet.macs)} a call at {at.width}×{at.height}{batch}"
    yield from _sentence(f"{call} · {size_text(look.peak_bytes)} of activations, {at.dtype}", width)
    weights = {kind: n for kind, n in figures.parameters_by_kind(unet).items() if kind in ("convolution", "linear")}
    text = f"work: {figures.shares(unet.macs_by_kind)} · weights: {figures.shares(weights)}"
    yield from _sentence(text if cells(text) + 2 <= width else text.replace("convolution", "conv"), width, "  ")


def _as_stored(look: Inspection) -> str:
    source = look.source
    dtypes = sorted(source.stored_dtypes.items(), key=lambda item: -item[1])
    kinds = dtypes[0][0] if len(dtypes) == 1 else ", ".join(f"{name} {figures.count(n)}" for name, n in dtypes)
    stored = f"stored: {disk_text(source.stored_bytes or 0)}, {kinds or 'no weights'}"
    return stored + (f" · beside it: {', '.join(source.beside)}" if source.beside else "")


def work_text(macs: int) -> str:
    """Multiply-adds of a call, and the same as floating-point operations."""
    for least, unit, letter in ((9_999_500_000_000, 1e12, "T"), (50_000_000, 1e9, "G"), (0, 1e6, "M")):
        if macs >= least:
            return f"{macs / unit:,.1f} {letter}MAC = {2 * macs / unit:,.1f} {letter}FLOP"
    return ""


# the U


@dataclass(frozen=True)
class Level:
    """One resolution: its blocks on the way down and up, and the skips between them."""

    number: int
    down: Block | None
    up: Block | None
    skips: tuple[int, ...]  # channels, in the order they were stored


def levels(unet: Unet) -> list[Level]:
    by_level: dict[int, dict[str, Block]] = {}
    for block in unet.blocks:
        if block.role in ("down", "up"):
            by_level.setdefault(block.level, {})[block.role] = block
    rows = []
    for number in sorted(by_level):
        down, up = by_level[number].get("down"), by_level[number].get("up")
        skips = [skip.channels for skip in unet.skips if up is not None and skip.target.startswith(up.name + ".")]
        rows.append(Level(number, down, up, tuple(reversed(skips))))
    return rows


def the_u(unet: Unet, width: int, *, ascii: bool = False) -> Iterable[Line]:
    """Levels from large to small, one bar in each direction, in proportion to the work, joined by the skips."""
    rows = levels(unet)
    sizes = [figures.size(row.down.resolution, ascii=ascii) if row.down else "" for row in rows]
    mid = next((block for block in unet.blocks if block.role == "mid"), None)
    deeper = mid is not None and rows and mid.level > rows[-1].number  # the classic U turns one level below
    if deeper and mid is not None:
        sizes.append(figures.size(mid.resolution, ascii=ascii))
    margin = max([4, *map(len, sizes)])
    left = margin + 8
    step = 3 if len(rows) <= 5 else 2 if len(rows) <= 9 else 1
    yield _headings(unet, width, left)
    yield _ends(unet, width, left)
    unit = _unit(rows, width, left, step)
    for row, size in zip(rows, sizes, strict=False):
        channels = row.down.out_channels if row.down else row.up.out_channels if row.up else 0
        indent = step * row.number
        yield _level(row, f"{size:>{margin}} {channels:>5}  ", indent, width, unit)
        yield _costs(row, left, indent, width)
    if mid is not None:
        label = f"{sizes[-1]:>{margin}} {mid.out_channels:>5}  " if deeper else " " * left
        yield _turn(mid, label, step * rows[-1].number if rows else 0, width, unit)
    else:
        yield _plain_turn(left, step * rows[-1].number if rows else 0, width)


def _headings(unet: Unet, width: int, left: int) -> Line:
    skips = counted(len(unet.skips), "skip")
    down, up = ("down: smaller, deeper", "up: larger, finer") if width >= ROOMY else ("down", "up")
    text = f"{'size width':<{left}}{down}"
    middle = max(len(text) + 2, (left + width) // 2 - len(skips) // 2)
    text = f"{text:<{middle}}{skips}"
    return (Span(f"{text}{up:>{max(1, width - len(text))}}", "dim"),)


def _ends(unet: Unet, width: int, left: int) -> Line:
    noise = "noisy latent" if unet.time_channels else "image"
    result = "prediction" if unet.time_channels else "result"
    output = unet.leaves[-1].output_shape[1:]
    text = f"{'':<{left}}{noise} {figures.shape(unet.latent)}"
    return (Span(f"{text}{f'{result} {figures.shape(output)}':>{max(1, width - len(text))}}"),)


def _left_name(block: Block) -> str:
    return f"{figures.short(block.name)} {_mark(block)} "


def _right_name(block: Block) -> str:
    return f" {_mark(block)} {figures.short(block.name)}"


def _mark(block: Block) -> str:
    return "T" if figures.reads_text(block) else "A" if figures.attends(block) else "·"


def _label(skips: tuple[int, ...], longest: int = 26) -> str:
    """The widths of the skips, shortened where they do not fit."""
    text = " · ".join(map(str, skips))
    if len(text) <= longest:
        return text
    few = f"{len(skips)} × {skips[0]}" if len(set(skips)) == 1 else f"{len(skips)} × {min(skips)}–{max(skips)}"
    return few if len(few) <= longest else f"{len(skips)}"


def _longest(width: int) -> int:
    return 26 if width >= ROOMY else 10


def _unit(rows: list[Level], width: int, left: int, step: int) -> float:
    """Multiply-adds per cell of a bar, so that every row has room for its bars and a line between them."""
    unit = 1.0
    for row in rows:
        used = left + 2 * step * row.number + len(_label(row.skips, _longest(width))) + 10
        used += len(_left_name(row.down)) if row.down else 0
        used += len(_right_name(row.up)) if row.up else 0
        macs = (row.down.macs if row.down else 0) + (row.up.macs if row.up else 0)
        unit = max(unit, macs / max(2, width - used))
    return unit


def _bar(macs: int, unit: float) -> str:
    halves = max(1, round(2 * macs / unit)) if macs else 0
    return "█" * (halves // 2) + "▌" * (halves % 2)


def _level(row: Level, prefix: str, indent: int, width: int, unit: float) -> Line:
    spans = [Span(prefix + " " * indent)]
    if row.down:
        spans.append(Span(f"{_left_name(row.down)}{_bar(row.down.macs, unit)}", "down"))
    right = f"{_bar(row.up.macs, unit)}{_right_name(row.up)}" if row.up else ""
    room = width - indent - sum(cells(span.text) for span in spans) - cells(right)
    label = _label(row.skips, min(_longest(width), max(1, room - 8)))
    line = max(0, room - 4 - len(label) - 2)
    before = line // 2
    spans.append(Span(f" ├{'─' * before} {label} {'─' * (line - before)}▶ ", "skip"))
    spans.append(Span(right, "up"))
    return spans


def _costs(row: Level, left: int, indent: int, width: int) -> Line:
    down = f"│ {_cost(row.down)}" if row.down else ""
    up = f"{_cost(row.up)} ▲" if row.up else ""
    start = left + indent + 1
    gap = max(1, width - indent - start - len(down) - len(up))
    return (Span(" " * start), Span(down, "down"), Span(" " * gap), Span(up, "up"))


def _cost(block: Block) -> str:
    return f"{figures.count(block.parameters)} {figures.work(block.macs)}"


def _turn(mid: Block, prefix: str, indent: int, width: int, unit: float) -> Line:
    text = f" mid {_mark(mid)} {_bar(mid.macs, unit)} {_cost(mid)} "
    start = len(prefix) + indent + 1
    line = max(4, width - indent - start - 2 - cells(text))
    before = line // 2
    return (
        Span(prefix + " " * (indent + 1)),
        Span("╰" + "─" * before, "down"),
        Span(text, "mid"),
        Span("─" * (line - before) + "╯", "up"),
    )


def _plain_turn(left: int, indent: int, width: int) -> Line:
    start = left + indent + 1
    text = " no middle "
    line = max(4, width - indent - start - 2 - len(text))
    return (Span(" " * start), Span("╰" + "─" * (line // 2) + text + "─" * (line - line // 2) + "╯", "mid"))


# words


def _legend(look: Inspection, width: int) -> Iterable[Line]:
    unet = look.unet
    signs = "M million parameters  G billion multiply-adds (bars)  ├▶ joined channel-wise"
    yield from _sentence(signs, width, " ", "dim")
    notes = []
    if unet.text_enters:
        notes.append(f"T text enters: cross-attention, {unet.tokens}×{unet.text_channels}, {unet.text_enters} places")
    if unet.time_enters:
        notes.append(f"time is added in {unet.time_enters} ResNets")
    if any(_mark(block) == "A" for block in unet.blocks):
        notes.append("A attention between pixels")
    if not notes:
        notes.append("no text and no time step: an image in, a map out")
    yield from _sentence("; ".join(notes), width, " ", "dim")


def insight(look: Inspection, *, ascii: bool = False) -> str:
    """One sentence from the numbers of this UNet."""
    unet = look.unet
    rows: dict[int, list[Block]] = {}
    for block in unet.blocks:
        if block.role in ("down", "mid", "up"):
            rows.setdefault(block.level, []).append(block)
    if not rows or not unet.macs or not unet.parameters:
        return "Nothing to compare: this UNet has only one level"

    def share(level: int) -> tuple[float, float]:
        blocks = rows[level]
        return sum(b.parameters for b in blocks) / unet.parameters, sum(b.macs for b in blocks) / unet.macs

    def size(level: int) -> str:
        return figures.size(rows[level][0].resolution, ascii=ascii)

    heaviest = max(rows, key=lambda level: share(level)[0])
    weights, macs = share(heaviest)
    if len(rows) > 1 and weights > 0.5 and macs > 0.5:
        return (
            f"Most of it is one level: {size(heaviest)} holds {figures.percent(weights, 1)} of the weights "
            f"and does {figures.percent(macs, 1)} of the work"
        )
    top = min(rows)
    weights, macs = share(top)
    if macs > 2 * weights:
        return (
            f"Weights sit deep, work sits wide: the {size(top)} level holds {figures.percent(weights, 1)}, "
            f"does {figures.percent(macs, 1)}"
        )
    return (
        f"The {size(top)} level holds {figures.percent(weights, 1)} of the weights "
        f"and does {figures.percent(macs, 1)} of the work"
    )


def _more(look: Inspection) -> str:
    source = look.source
    other = "sd15" if source.family == "sdxl" else "sdxl"
    width, height = native_size(source)
    at = "768x512" if source.pixels_per_latent > 1 else f"{width * 3 // 2 // 4 * 4}x{height}"
    return f"More: --layers  --by kind  --at {at}  --diff {other}  --lora FILE  --svg u.svg"


def faults(source: Source) -> list[str]:
    """How the file differs from the structure, with a few names of each kind."""
    lines = []
    if source.missing:
        lines.append(f"missing, {len(source.missing)}:")
        lines += [f"  {show(name, 120)}" for name in source.missing[:SOME]] + _others(len(source.missing))
    if source.mismatched:
        lines.append(f"wrong shape, {len(source.mismatched)}:")
        for one in source.mismatched[:SOME]:
            lines.append(f"  {show(one.name, 100)} {figures.shape(one.shape)}, expected {figures.shape(one.expected)}")
        lines += _others(len(source.mismatched))
    if source.unexpected:
        lines.append(f"not part of this UNet, {len(source.unexpected)}:")
        lines += [f"  {show(name, 120)}" for name in source.unexpected[:SOME]] + _others(len(source.unexpected))
    return ["", *lines] if lines else []


SOME = 8


def _others(count: int) -> list[str]:
    return [f"  and {count - SOME} more (--json lists all)"] if count > SOME else []


def measured(look: Inspection) -> list[str]:
    """One real call beside its prediction."""
    run = look.measured
    if run is None:
        return []
    rate = 2 * look.unet.macs / run.seconds / 1e9 if run.seconds else 0.0
    predicted = look.unet.activation_peak(4 if run.dtype == "fp32" else 2)
    return [
        f"one call on {show(run.device, 60)} in {run.dtype}: {seconds_text(run.seconds)}, {rate:,.0f} GFLOP/s",
        f"activations: predicted {figures.memory(predicted)}, measured {figures.memory(run.activation_peak_bytes)}",
    ]
