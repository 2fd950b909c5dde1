"""The files of a sweep, written beside its images: grid-RUN.png, .html, .csv and .json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sdcli.explore import cells, grid, page
from sdcli.files import REAL, cannot_write, replace_whole
from sdcli.record.entries import Image
from sdcli.request.request import Axis


def write(run: str, axes: tuple[Axis, ...], images: Iterable[Image], folder: Path) -> tuple[Path, ...]:
    """Again and again the same: a run that goes on writes them anew. Those to look at come first."""
    sweep = cells.gathered(run, axes, images)
    made: dict[str, Iterable[bytes]] = {
        "html": page.html(sweep), "png": [grid.png(sweep, folder)], "csv": cells.csv_of(sweep),
        "json": cells.json_of(sweep),
    }  # fmt: skip
    paths = []
    for kind, pieces in made.items():
        path = folder / f"grid-{run}.{kind}"
        try:
            replace_whole(REAL, path, pieces)
        except OSError as error:
            raise cannot_write(path, error) from None
        paths.append(path)
    return tuple(paths)
