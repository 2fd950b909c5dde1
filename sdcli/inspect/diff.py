"""Two UNets side by side: structure always; for files also shape, dtype and values of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from sdcli import schema
from sdcli.errors import BadFile, SdcliError
from sdcli.inspect import figures
from sdcli.inspect.facts import At, Inspection, Source, Stored, inspect, native_size
from sdcli.inspect.numbers import PIECE, decoded
from sdcli.models.expected import tensors_of
from sdcli.models.unet import Block
from sdcli.terminal import fit, show, size_text

SOME = 3


@dataclass(frozen=True, kw_only=True)
class Change:
    name: str
    a: tuple[int, ...] | str
    b: tuple[int, ...] | str


@dataclass(frozen=True, kw_only=True)
class ValueGap:
    """How far apart the values of one tensor are; NaN counts as infinitely far."""

    name: str
    max_abs: float
    mean_abs: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    a: Inspection
    b: Inspection
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    shape: tuple[Change, ...]
    dtype: tuple[Change, ...]
    values: tuple[ValueGap, ...]  # tensors that differ, the furthest first
    compared: int  # tensors whose values were read

    @property
    def identical(self) -> bool:
        return not (self.only_a or self.only_b or self.shape or self.dtype or self.values)


def compare(first: Source, second: Source) -> Difference:
    """Names and shapes; where both are files, dtypes and values too."""
    shapes_a, shapes_b = _shapes(first), _shapes(second)
    both = [name for name in shapes_a if name in shapes_b]
    values: list[ValueGap] = []
    dtypes: list[Change] = []
    compared = 0
    for name in both:
        a, b = first.tensors.get(name), second.tensors.get(name)
        if a is None or b is None:
            continue
        if a.dtype != b.dtype:
            dtypes.append(Change(name=name, a=a.dtype, b=b.dtype))
        if a.shape == b.shape:
            compared += 1
            gap = _gap_of(a, b)
            if gap is not None:
                values.append(gap)
    return Difference(
        a=_look(first),
        b=_look(second),
        only_a=tuple(name for name in shapes_a if name not in shapes_b),
        only_b=tuple(name for name in shapes_b if name not in shapes_a),
        shape=tuple(
            Change(name=name, a=shapes_a[name], b=shapes_b[name]) for name in both if shapes_a[name] != shapes_b[name]
        ),
        dtype=tuple(dtypes),
        values=tuple(sorted(values, key=lambda one: -one.max_abs)),
        compared=compared,
    )


def _look(source: Source) -> Inspection:
    width, height = native_size(source)
    return inspect(source, At(width=width, height=height))


def _shapes(source: Source) -> Mapping[str, tuple[int, ...]]:
    if source.tensors:
        return {name: tensor.shape for name, tensor in source.tensors.items()}
    return tensors_of(_look(source).unet.leaves)


def _gap_of(a: Stored, b: Stored) -> ValueGap | None:
    """None if every value is equal; bytes are compared first, numbers only where bytes differ."""
    import numpy

    count = 1
    for side in a.shape:
        count *= side
    if not count:
        return None
    width_a, width_b = (a.end - a.start) // count, (b.end - b.start) // count
    if not width_a or not width_b:
        return None  # a damaged file, of which only names and shapes can be read
    step = PIECE // 8
    furthest, total = 0.0, 0.0
    try:
        with open(a.file, "rb") as file_a, open(b.file, "rb") as file_b:
            for start in range(0, count, step):
                size = min(step, count - start)
                file_a.seek(a.start + start * width_a)
                file_b.seek(b.start + start * width_b)
                raw_a, raw_b = file_a.read(size * width_a), file_b.read(size * width_b)
                if a.dtype == b.dtype and raw_a == raw_b:
                    continue
                gap = numpy.abs(
                    decoded(raw_a, a.stored).astype(numpy.float64) - decoded(raw_b, b.stored).astype(numpy.float64)
                )
                gap = numpy.where(numpy.isnan(gap), numpy.inf, gap)
                furthest = max(furthest, float(gap.max()))
                total += float(gap.sum())
    except (OSError, ValueError) as error:
        raise BadFile(f"the values of {show(a.name, 120)} cannot be read: {show(error, 120)}") from None
    return ValueGap(name=a.name, max_abs=furthest, mean_abs=total / count) if furthest else None


class SizeObject(TypedDict):
    width: int
    height: int


class SideObject(TypedDict):
    name: str
    kind: str
    family: str | None
    parameters: int
    macs: int
    at: SizeObject
    activation_peak_bytes: int
    skips: int
    text_channels: int
    text_enters: int
    stored_bytes: int | None
    stored_dtypes: dict[str, int]


class DiffDocument(TypedDict):
    """`values` has the tensors whose values differ, of the `compared` ones that were read."""

    schema: Literal["sdcli.unet-diff/1"]
    a: SideObject
    b: SideObject
    only_a: list[str]
    only_b: list[str]
    shape: list[Change]
    dtype: list[Change]
    values: list[ValueGap]
    compared: int
    identical: bool


def to_json(difference: Difference) -> DiffDocument:
    return {
        "schema": "sdcli.unet-diff/1",
        "a": _side(difference.a),
        "b": _side(difference.b),
        "only_a": list(difference.only_a),
        "only_b": list(difference.only_b),
        "shape": schema.to_json(difference.shape),
        "dtype": schema.to_json(difference.dtype),
        "values": schema.to_json(difference.values),
        "compared": difference.compared,
        "identical": difference.identical,
    }


def _side(look: Inspection) -> SideObject:
    source, unet = look.source, look.unet
    return {
        "name": source.name,
        "kind": source.kind,
        "family": source.family or None,
        "parameters": unet.parameters,
        "macs": unet.macs,
        "at": {"width": look.at.width, "height": look.at.height},
        "activation_peak_bytes": look.peak_bytes,
        "skips": len(unet.skips),
        "text_channels": unet.text_channels,
        "text_enters": unet.text_enters,
        "stored_bytes": source.stored_bytes,
        "stored_dtypes": dict(source.stored_dtypes),
    }


def text(difference: Difference, width: int) -> list[str]:
    """Both side by side, then what differs, with a few names of each kind."""
    a, b = difference.a, difference.b
    rows = [
        ("", fit(show(a.source.name, 40), 26), fit(show(b.source.name, 40), 26)),
        ("parameters", f"{a.unet.parameters:,}", f"{b.unet.parameters:,}"),
        ("GMAC a call", f"{a.unet.macs / 1e9:,.1f} at {_size(a)}", f"{b.unet.macs / 1e9:,.1f} at {_size(b)}"),
        *_at_one_size(a, b),
        ("activations, fp16", size_text(a.peak_bytes), size_text(b.peak_bytes)),
        ("levels × width", _widths(a), _widths(b)),
        ("skips", str(len(a.unet.skips)), str(len(b.unet.skips))),
        ("text", _text(a), _text(b)),
        ("work", figures.shares(a.unet.macs_by_kind), figures.shares(b.unet.macs_by_kind)),
    ]
    if a.source.tensors or b.source.tensors:
        rows.insert(2, ("stored", _stored(a.source), _stored(b.source)))
    room = max(20, (width - 20) // 2)
    lines = [f"{head:<18}{fit(x, room - 2):<{room}}{fit(y, room - 2)}".rstrip() for head, x, y in rows]
    lines.append("")
    if difference.identical:
        what = f"every value of {difference.compared:,} tensors" if difference.compared else "every layer and shape"
        return [*lines, f"identical: {what}"]
    if a.unet.blocks != b.unet.blocks:
        lines += [*_blocks(a, b), ""]
    lines += _names("only in the first", difference.only_a)
    lines += _names("only in the second", difference.only_b)
    lines += _names(
        "with different shapes", [f"{one.name}  {_shown(one.a)} → {_shown(one.b)}" for one in difference.shape], width
    )
    if difference.dtype:
        kinds = sorted({(str(one.a), str(one.b)) for one in difference.dtype})
        lines.append(f"{len(difference.dtype):,} stored in another dtype: " + ", ".join(f"{x} → {y}" for x, y in kinds))
    if difference.compared:
        same = difference.compared - len(difference.values)
        lines.append(f"values: {same:,} of {difference.compared:,} tensors are equal; the furthest apart (max, mean):")
        for one in difference.values[:SOME]:
            lines.append(f"  {one.max_abs:9.3g} {one.mean_abs:9.3g}  {show(one.name, 200)}")
    return [fit(line, width) for line in lines]


def _at_one_size(a: Inspection, b: Inspection) -> list[tuple[str, str, str]]:
    """Work at the smaller of the two native sizes, if both can run at it."""
    if (a.at.width, a.at.height) == (b.at.width, b.at.height):
        return []
    small = min(a.at, b.at, key=lambda at: at.width * at.height)
    try:
        both = [inspect(look.source, small).unet.macs for look in (a, b)]
    except SdcliError:
        return []
    return [(f"  at {small.width}×{small.height}", f"{both[0] / 1e9:,.1f}", f"{both[1] / 1e9:,.1f}")]


def _blocks(a: Inspection, b: Inspection) -> list[str]:
    """Block by block: parameters and type of each side, differences marked."""
    sides = [{block.name: block for block in look.unet.blocks} for look in (a, b)]
    names = [*sides[0], *(name for name in sides[1] if name not in sides[0])]
    order = {"in": 1, "time": 0, "down": 2, "mid": 3, "up": 4, "out": 5}
    names.sort(key=lambda name: order.get((sides[0].get(name) or sides[1][name]).role, 9))
    lines = []
    for name in names:
        cells = [_block(side.get(name)) for side in sides]
        mark = "  " if cells[0] == cells[1] else "≠ "
        lines.append(f"{mark}{figures.short(name):<16}{cells[0]:<31}{cells[1]}".rstrip())
    return lines


def _block(block: Block | None) -> str:
    if block is None:
        return "–"
    kind = block.type.removesuffix("Block2D").removeprefix("UNet").removeprefix("MidBlock2D")
    return f"{figures.count(block.parameters):>8}  {fit(kind or 'plain', 14)} {block.out_channels}"


def _size(look: Inspection) -> str:
    return f"{look.at.width}×{look.at.height}"


def _shown(shape: tuple[int, ...] | str) -> str:
    return shape if isinstance(shape, str) else figures.shape(shape)


def _widths(look: Inspection) -> str:
    widths = [block.out_channels for block in look.unet.blocks if block.role == "down"]
    return f"{len(widths)} × {', '.join(map(str, widths))}"


def _text(look: Inspection) -> str:
    unet = look.unet
    return f"{unet.text_channels} wide, {unet.text_enters} places" if unet.text_enters else "none"


def _stored(source: Source) -> str:
    return f"{', '.join(source.stored_dtypes)} {size_text(source.stored_bytes or 0)}" if source.tensors else "no file"


def _names(what: str, names: Any, width: int = 200) -> list[str]:
    if not names:
        return []
    more = [f"  and {len(names) - SOME:,} more (--json lists all)"] if len(names) > SOME else []
    return [f"{len(names):,} {what}:", *[f"  {show(name, 200)}" for name in names[:SOME]], *more]
