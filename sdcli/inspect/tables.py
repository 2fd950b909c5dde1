"""Every layer, or layers summed by block, depth or kind: rows once, shown as text, CSV or Markdown."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from sdcli.errors import Usage
from sdcli.inspect import figures
from sdcli.inspect.facts import Inspection
from sdcli.models.trace import Leaf
from sdcli.terminal import cells, fit, show

SORTS = ("call", "name", "parameters", "bytes", "macs", "activation", "kind")


@dataclass(frozen=True)
class Row:
    """One line of any table. Sums leave shape and output empty and count their leaves."""

    name: str
    type: str
    kind: str
    weight_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    parameters: int
    bytes: int
    output_shape: tuple[int, ...]
    macs: int
    activation_bytes: int
    leaves: int = 1
    stored: str = ""  # dtype in the file


# the parts of a UNet, for people; the first pattern that matches a leaf's name decides
PARTS: tuple[tuple[str, str], ...] = (
    (
        r"\.attn1\.attention$|\.attentions\.\d+\.attention$|^mid_block\.attentions\.0\.attention$",
        "self-attention products",
    ),
    (r"\.attention$", "cross-attention products"),
    (r"\.attn1\.|\.attentions\.\d+\.(to_|group_norm)", "self-attention projections"),
    (r"\.attn2\.|\.add_[kv]_proj$|\.norm_cross$", "cross-attention projections"),
    (r"\.ff\.", "feed-forward"),
    (r"\.(proj_in|proj_out)$", "into and out of transformers"),
    (r"\.(downsamplers|upsamplers)\.|\.up$", "down- and upsampling"),
    (r"\.time_emb_proj$|^(time|add|class)_(embedding|proj)|^encoder_hid_proj", "time and conditions"),
    (r"\.(resnets)\.|\.conv[12]$", "ResNets"),
    (r"^conv_(in|out|norm_out)", "in and out"),
)


def layers(look: Inspection) -> list[Row]:
    """Every leaf in call order; attention products are rows, so that the rows add up to the whole."""
    size, tensors = look.at.dtype_bytes, look.source.tensors
    rows = []
    for leaf in look.unet.leaves:
        stored = tensors.get(f"{leaf.name}.weight")
        rows.append(_row(leaf, size, stored.dtype if stored else ""))
    return rows


def _row(leaf: Leaf, size: int, stored: str) -> Row:
    return Row(
        name=leaf.name,
        type=leaf.type,
        kind=leaf.kind,
        weight_shape=leaf.weight_shape,
        kernel=leaf.kernel,
        parameters=leaf.parameters,
        bytes=leaf.parameters * size,
        output_shape=leaf.output_shape,
        macs=leaf.macs,
        activation_bytes=leaf.elements * size,
        stored=stored,
    )


def part(name: str) -> str:
    """Which of PARTS a leaf belongs to."""
    for pattern, meaning in PARTS:
        if re.search(pattern, name):
            return meaning
    return "norms and others"


def grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> list[Row]:
    """Rows summed by a key, in the order in which the keys first occur."""
    sums: dict[str, Row] = {}
    for row in rows:
        name = key(row)
        total = sums.get(name)
        if total is None:
            sums[name] = replace(
                row, name=name, type="", kind=row.kind, weight_shape=(), kernel=(), output_shape=(), stored=""
            )
            continue
        sums[name] = replace(
            total,
            kind=total.kind if total.kind == row.kind else "",
            parameters=total.parameters + row.parameters,
            bytes=total.bytes + row.bytes,
            macs=total.macs + row.macs,
            activation_bytes=total.activation_bytes + row.activation_bytes,
            leaves=total.leaves + 1,
        )
    return list(sums.values())


def by_depth(rows: Iterable[Row], depth: int) -> list[Row]:
    """Summed by the first `depth` parts of the name; a number belongs to the list before it."""

    def key(row: Row) -> str:
        parts: list[str] = []
        for word in row.name.split("."):
            if word.isdigit() and parts:
                parts[-1] += f".{word}"
            else:
                parts.append(word)
        return ".".join(parts[:depth])

    return grouped(rows, key)


def by_block(look: Inspection, rows: Sequence[Row]) -> list[Row]:
    """One row per block, with its type; activation bytes are the most alive at once while it runs."""
    if look.source.kind == "module":  # whose parts may take turns
        return by_depth(rows, 1)
    by_name = {row.name: row for row in rows}
    size = look.at.dtype_bytes
    summed = []
    for block in look.unet.blocks:
        inside = [by_name[leaf.name] for leaf in look.unet.leaves[block.first : block.last] if leaf.name in by_name]
        for one in grouped(inside, lambda row: ""):
            summed.append(
                replace(one, name=block.name, type=block.type, kind=block.role, activation_bytes=block.elements * size)
            )
    return summed


def by_kind(rows: Iterable[Row]) -> list[Row]:
    """What the layers do, the most work first."""
    return sorted(grouped(rows, lambda row: part(row.name)), key=lambda row: -row.macs)


def matching(rows: list[Row], pattern: str | None) -> list[Row]:
    """The rows whose name matches a regular expression somewhere."""
    if pattern is None:
        return rows
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise Usage(
            f"--filter {show(pattern, 80)} is not a regular expression: {show(error, 80)}",
            hint="sdcli inspect-unet sd15 --layers --filter attn2",
        ) from None
    return [row for row in rows if regex.search(row.name)]


def ordered(rows: list[Row], sort: str | None) -> list[Row]:
    """The largest first; names and kinds from a to z."""
    if sort is None or sort == "call":
        return rows
    if sort not in SORTS:
        raise Usage(
            f"--sort {show(sort, 40)} is not one of {', '.join(SORTS)}",
            hint="sdcli inspect-unet sd15 --layers --sort macs",
        )
    if sort in ("name", "kind"):
        return sorted(rows, key=lambda row: (getattr(row, sort), row.name))
    field = "activation_bytes" if sort == "activation" else sort
    return sorted(rows, key=lambda row: -int(getattr(row, field)))


# as text


def text(rows: Sequence[Row], whole: Inspection, width: int, *, view: str) -> list[str]:
    """A table for people, at most `width` columns wide, with its sums at the end. view: layers, blocks or sums."""
    if view == "layers":
        lines = _layer_lines(rows, width)
    else:
        lines = _sum_lines(rows, whole, width, "live peak" if view == "blocks" else "outputs")
    leaves, parameters = sum(row.leaves for row in rows), sum(row.parameters for row in rows)
    macs = sum(row.macs for row in rows)
    total = (
        f"{f'{len(rows):,} rows, ' if leaves != len(rows) else ''}{leaves:,} layers: {parameters:,} parameters, "
        f"{macs / 1e9:,.2f} GMAC ({figures.percent(macs, whole.unet.macs)})"
    )
    return [*lines, "", fit(total, width)]


def _sum_lines(rows: Sequence[Row], whole: Inspection, width: int, last: str) -> list[str]:
    unet = whole.unet
    heads: tuple[str, ...] = ("parameters", "", "bytes", "MACs", "", last)
    numbers: list[tuple[str, ...]] = [
        (
            f"{row.parameters:,}",
            figures.percent(row.parameters, unet.parameters),
            figures.memory(row.bytes),
            figures.work(row.macs),
            figures.percent(row.macs, unet.macs),
            figures.memory(row.activation_bytes),
        )
        for row in rows
    ]
    measured = whole.measured
    if measured is not None and last == "live peak":
        heads = (*heads, "measured", "")
        seconds = {block.name: block.seconds for block in measured.blocks}
        total = sum(seconds.values())
        numbers = [(*line, *_measured(seconds.get(row.name), total)) for line, row in zip(numbers, rows, strict=True)]
    names = [show(row.name, 200) for row in rows]
    return _columns(names, heads, numbers, width)


def _measured(seconds: float | None, total: float) -> tuple[str, str]:
    return (f"{seconds * 1000:,.1f} ms", figures.percent(seconds, total)) if seconds is not None else ("–", "")


def _columns(
    names: Sequence[str], heads: Sequence[str], lines: Sequence[Sequence[str]], width: int, gap: str = "  "
) -> list[str]:
    """Names to the left, cut where necessary; everything else right-aligned."""
    widths = _widths(heads, lines)
    room = max([8, min(width - sum(widths) - len(gap) * len(widths), max(map(cells, names), default=0))])
    out = []
    for name, line in zip(("", *names), (heads, *lines), strict=True):
        name = fit(name, room)
        row = name + " " * (room - cells(name))
        for value, size in zip(line, widths, strict=True):
            row += gap + " " * (size - cells(value)) + value
        out.append(fit(row.rstrip(), width))
    return out


def _widths(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[int]:
    return [max([cells(head), *(cells(line[i]) for line in lines)]) for i, head in enumerate(heads)]


HEADS = ("weight", "parameters", "bytes", "output", "MACs", "activation")
SHORT_HEADS = ("weight", "params", "bytes", "output", "MACs", "activ.")


def _layer_lines(rows: Sequence[Row], width: int) -> list[str]:
    """A line per leaf, with its full name if there is room, else grouped under its module."""
    exact = [_layer_cells(row, exact=True) for row in rows]
    names = [show(row.name, 200) for row in rows]
    if max(map(cells, names), default=0) + sum(_widths(HEADS, exact)) + 2 * len(HEADS) <= width:
        return _columns(names, HEADS, exact, width)
    split = [_split(name) for name in names]
    names = [("  " if module else "") + last for module, last in split]
    table = _columns(names, SHORT_HEADS, [_layer_cells(row, exact=False) for row in rows], width, " ")
    out, above = [table[0]], ""
    for (module, _), line in zip(split, table[1:], strict=True):
        if module and module != above:
            out.append(fit(module, width))
        above = module
        out.append(line)
    return out


def _split(name: str) -> tuple[str, str]:
    """The module a leaf is listed under, and the rest of its name; to_out.0 stays together."""
    module, _, last = name.rpartition(".")
    if last.isdigit() or module.rpartition(".")[2] == "net":
        module, _, before = module.rpartition(".")
        last = f"{before}.{last}"
    if last == "proj" and module.endswith("ff.net.0"):
        module, last = module.removesuffix(".net.0"), "net.0.proj"
    return module, last


def _layer_cells(row: Row, *, exact: bool) -> tuple[str, ...]:
    kind = "attention" if row.kind == "attention" else row.type
    weight = f"{kind} {figures.shape(row.weight_shape)}".rstrip() + (f" {row.stored}" if row.stored else "")
    output = row.output_shape[1:] if row.output_shape[:1] == (1,) else row.output_shape
    number = f"{row.parameters:,}" if exact else figures.count(row.parameters)
    return (
        weight,
        number if row.parameters else "–",
        figures.memory(row.bytes) if row.bytes else "–",
        figures.shape(output) or "1",
        figures.work(row.macs) if row.macs else "–",
        figures.memory(row.activation_bytes),
    )


# for other programs

FIELDS = (
    "name", "type", "kind", "weight_shape", "kernel", "parameters", "bytes", "output_shape", "macs",
    "activation_bytes", "leaves",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    values = []
    for name in FIELDS:
        value = getattr(row, name)
        values.append("x".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return values


def as_csv(rows: Iterable[Row]) -> str:
    """RFC 4180, one row per line, numbers plain; a name that a spreadsheet would run as a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(FIELDS)
    for row in rows:
        writer.writerow([f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell for cell in _cells(row)])
    return out.getvalue()


def as_markdown(rows: Iterable[Row]) -> str:
    """A GitHub table; a bar in a name does not end its cell."""
    lines = ["| " + " | ".join(FIELDS) + " |", "|" + "|".join("---" for _ in FIELDS) + "|"]
    for row in rows:
        cleaned = [show(cell, 300).replace("|", "\\|") for cell in _cells(row)]
        lines.append("| " + " | ".join(cleaned) + " |")
    return "\n".join(lines) + "\n"
