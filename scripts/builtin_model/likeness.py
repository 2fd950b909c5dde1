"""Which thing an image shows: the nearest reference by colour and contour, a measure fixed before any training."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, Any]
SIDE = 64
CELLS = 8
DIRECTIONS = 8
COLOUR, CONTOUR = 1.0, 1.0  # their parts in the distance


@dataclass(frozen=True)
class References:
    """One row for each reference image, as it is and mirrored."""

    features: Pixels
    names: tuple[Hashable, ...]

    def nearest(self, image: Pixels, count: int = 5) -> list[Any]:
        """Different names, the nearest first."""
        far = np.square(self.features - feature(image)[None]).sum(1)
        found = dict.fromkeys(self.names[row] for row in np.argsort(far, kind="stable"))
        return list(found)[:count]


def references(
    images: Sequence[tuple[Hashable, Pixels]], sided: Callable[[Any], bool] = lambda name: False
) -> References:
    """From (name, RGB pixels); what is `sided` only as it is."""
    rows = [(name, feature(seen)) for name, shown in images
            for seen in ((shown,) if sided(name) else (shown, shown[:, ::-1]))]  # fmt: skip
    return References(np.stack([row for _, row in rows]), tuple(name for name, _ in rows))


def feature(image: Pixels) -> Pixels:
    """Of the thing alone: cut out of its ground, in a square of one size, so that size and place do not count."""
    cut = np.asarray(_cut(image), dtype=np.float32) / 255
    colours = cut.reshape(16, SIDE // 16, 16, SIDE // 16, 3).mean((1, 3)).reshape(-1)
    return np.concatenate([COLOUR * colours / 16, CONTOUR * _contours(cut)])


def ground(image: Pixels) -> Pixels:
    """The colour along the border."""
    edge = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, :2].reshape(-1, 3),
                           image[:, -2:].reshape(-1, 3)])  # fmt: skip
    return np.median(edge, axis=0)


def _cut(image: Pixels) -> Image.Image:
    back = ground(image)
    differs = np.abs(image.astype(np.int16) - back).max(-1) > 40
    rows, columns = np.flatnonzero(differs.sum(1) > 1), np.flatnonzero(differs.sum(0) > 1)
    if not len(rows) or not len(columns):
        return Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(bottom - top, right - left)
    canvas = Image.new("RGB", (int(side), int(side)), "white")
    flat = np.where(differs[..., None], image, 255).astype(np.uint8)[top:bottom, left:right]
    canvas.paste(Image.fromarray(flat), (int(side - (right - left)) // 2, int(side - (bottom - top)) // 2))
    return canvas.resize((SIDE, SIDE), Image.Resampling.BOX if side > SIDE else Image.Resampling.BICUBIC)


def _contours(cut: Pixels) -> Pixels:
    """How strong the edges of each direction are in each cell."""
    grey = np.pad(cut.mean(-1), 1, mode="edge")
    across, down = grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]
    strength = np.hypot(across, down)
    place = (np.arctan2(down, across) % np.pi) / np.pi * DIRECTIONS
    low = np.floor(place).astype(int) % DIRECTIONS
    part = place - np.floor(place)
    found = np.zeros((SIDE, SIDE, DIRECTIONS), dtype=np.float32)
    y, x = np.mgrid[:SIDE, :SIDE]
    np.add.at(found, (y, x, low), strength * (1 - part))
    np.add.at(found, (y, x, (low + 1) % DIRECTIONS), strength * part)
    cell = SIDE // CELLS
    cells = found.reshape(CELLS, cell, CELLS, cell, DIRECTIONS).sum((1, 3)).reshape(-1)
    return cells / (np.linalg.norm(cells) + 1e-6) / 2
