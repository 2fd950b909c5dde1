"""The cells of a sweep with what was drawn for each, and their tables: JSON and CSV."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sdcli import schema
from sdcli.record import documents
from sdcli.record.entries import Image
from sdcli.request import sweeps
from sdcli.request.request import Axis


@dataclass(frozen=True, kw_only=True)
class Cell:
    """`values` are of the axes, in their order; `file` is beside this one."""

    values: tuple[str, ...]
    index: int
    status: str
    file: str | None
    width: int | None
    height: int | None
    seed: int | None
    prompt: str
    sampler: str
    steps: int | None
    guidance: float | None
    pixel_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    schema: str = "sdcli.sweep/1"
    run: str
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]

    @property
    def columns(self) -> Axis:
        return self.axes[0]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Values of all axes but the first, in the order of the axes."""
        return list(dict.fromkeys(place[1:] for place in _places(self.axes)))

    def at(self) -> dict[tuple[str, ...], Cell]:
        return {cell.values: cell for cell in self.cells}


def gathered(run: str, axes: tuple[Axis, ...], images: Iterable[Image]) -> Sweep:
    """In the order of the axes, the first changing fastest: row by row of the grid."""
    found = {image.job.id: image for image in images if image.job is not None}
    names = [axis.name for axis in axes]
    cells = (
        _cell(place, found[name])
        for place in _places(axes)
        if (name := sweeps.name_of(dict(zip(names, place, strict=True)))) in found
    )
    return Sweep(run=run, axes=axes, cells=tuple(cells))


def _places(axes: tuple[Axis, ...]) -> Iterator[tuple[str, ...]]:
    """Every cell's values, those of the first axis changing fastest."""
    return (place[::-1] for place in itertools.product(*(axis.values for axis in reversed(axes))))


def _cell(place: tuple[str, ...], image: Image) -> Cell:
    job = image.job
    assert job is not None
    return Cell(
        values=place, index=image.index, status=image.status, file=image.file, width=image.width, height=image.height,
        seed=job.seed, prompt=job.prompt, sampler=job.sampler, steps=job.steps, guidance=job.guidance,
        pixel_sha256=image.pixel_sha256,
    )  # fmt: skip


def json_of(sweep: Sweep) -> Iterator[bytes]:
    """A line for each cell: all of them as one text would take much memory, in the table below too."""
    whole = documents.dump(schema.to_json(Sweep(run=sweep.run, axes=sweep.axes, cells=()))).rstrip()
    yield whole.removesuffix(b"]}")
    for number, cell in enumerate(sweep.cells):
        yield (b",\n" if number else b"\n") + documents.dump(schema.to_json(cell)).strip()
    yield b"]}\n"


_COLUMNS = (
    "index", "status", "file", "width", "height", "seed", "prompt", "sampler", "steps", "guidance", "pixel_sha256",
)  # fmt: skip


def csv_of(sweep: Sweep) -> Iterator[bytes]:
    yield _row([*(f"sweep {axis.name}" for axis in sweep.axes), *_COLUMNS])
    for cell in sweep.cells:
        yield _row([*cell.values, *(getattr(cell, name) for name in _COLUMNS)])


def _row(values: Iterable[object]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)
    return text.getvalue().encode("utf-8", "replace")
