"""The grid as one image: a column for each value of the first axis, a row for each of the others, labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdcli.explore.cells import Cell, Sweep
from sdcli.record import encode
from sdcli.terminal import show

LARGEST = 4096  # pixels of a side, labels apart: the grid of ten thousand cells takes no more memory than that of ten
LARGEST_CELL, SMALLEST_CELL = 512, 8
GAP, MARGIN, FONT = 4, 12, 18
LONGEST_LABEL = 60


def png(sweep: Sweep, folder: Path) -> bytes:
    """One image of a cell is open at a time."""
    from PIL import Image, ImageDraw, ImageFont

    rows, columns = sweep.rows, sweep.columns.values
    drawn = max(max(cell.width or 0, cell.height or 0) for cell in sweep.cells)
    side = max(SMALLEST_CELL, min(LARGEST_CELL, drawn, LARGEST // len(columns), LARGEST // len(rows)))
    font = ImageFont.load_default(FONT)
    above = [_label(sweep.columns.name, value) for value in columns]
    beside = [_of_row(sweep, row) for row in rows]
    left = MARGIN + max(int(font.getlength(line)) for text in beside for line in text.split("\n"))
    top = 2 * MARGIN + FONT
    width, height = left + len(columns) * (side + GAP) + MARGIN, top + len(rows) * (side + GAP) + MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    for place, text in enumerate(above):
        shown = text if font.getlength(text) <= side else _label("", columns[place])
        pen.text((left + place * (side + GAP), MARGIN), _fitted(shown, font, side), fill="black", font=font)
    cells = sweep.at()
    for down, row in enumerate(rows):
        y = top + down * (side + GAP)
        if side > FONT:
            pen.multiline_text((MARGIN // 2, y), beside[down], fill="black", font=font)
        for across, value in enumerate(columns):
            _paste(canvas, cells.get((value, *row)), folder, (left + across * (side + GAP), y), side)
    return encode.saved(canvas, "PNG")


def _label(name: str, value: str) -> str:
    return show(f"{name} {value}".strip(), LONGEST_LABEL)


def _of_row(sweep: Sweep, row: tuple[str, ...]) -> str:
    return "\n".join(_label(axis.name, value)[:32] for axis, value in zip(sweep.axes[1:], row, strict=True))


def _fitted(text: str, font: Any, room: int) -> str:
    while text and font.getlength(text) > room:
        text = text[:-1]
    return text


def _paste(canvas: Any, cell: Cell | None, folder: Path, at: tuple[int, int], side: int) -> None:
    """In the middle of its place, whole; a cell that was not drawn stays grey."""
    from PIL import Image

    if cell is None or cell.file is None:
        canvas.paste("#dddddd", (*at, at[0] + side, at[1] + side))
        return
    with Image.open(folder / cell.file) as opened:
        image = opened.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    canvas.paste(image, (at[0] + (side - image.width) // 2, at[1] + (side - image.height) // 2))
