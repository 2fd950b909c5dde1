"""Images as training sees them: on a ground, mirrored, smaller or aside, in another colour, several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, Any]

GROUNDS = {
    "white": (255, 255, 255), "red": (236, 92, 92), "orange": (250, 167, 84), "yellow": (252, 226, 110),
    "green": (120, 201, 126), "blue": (104, 166, 240), "purple": (172, 134, 226), "pink": (250, 160, 196),
    "brown": (158, 116, 88), "grey": (176, 176, 182), "black": (32, 32, 36),
}  # fmt: skip
COLOURED_GROUNDS = [name for name in GROUNDS if name != "white"]
# Where two, three and four things stand: the upper left corners, in halves of a side.
PLACES = {
    2: ((0.0, 0.5), (1.0, 0.5)),
    3: ((0.5, 0.0), (0.0, 1.0), (1.0, 1.0)),
    4: ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)),
}
COLOURED = 0.15  # the saturation from which a part is not grey
HUES = {"red": 0.0, "orange": 0.08, "yellow": 0.145, "green": 0.35, "blue": 0.59, "purple": 0.76, "pink": 0.92}


@dataclass(frozen=True)
class Look:
    """How one thing is put on the canvas; the defaults are the artwork as it is, on white."""

    mirrored: bool = False
    scale: float = 1.0
    aside: tuple[float, float] = (0.0, 0.0)  # of the free border, -1 … 1
    ground: tuple[int, int, int] = GROUNDS["white"]
    hue: float | None = None


def any_look(random: np.random.Generator, **fixed: Any) -> Look:
    """Another size, another place, perhaps mirrored: all that an autoencoder may have to draw."""
    scale = float(random.uniform(0.8, 1.0))
    aside = (float(random.uniform(-1, 1)), float(random.uniform(-1, 1)))
    return Look(mirrored=bool(random.random() < 0.5), scale=scale, aside=aside, **fixed)


def image(rgba: Pixels, look: Look) -> Pixels:
    """RGB pixels of the size of the artwork."""
    size = rgba.shape[0]
    artwork = Image.fromarray(recoloured(rgba, look.hue) if look.hue is not None else rgba)
    if look.mirrored:
        artwork = artwork.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = max(1, round(size * look.scale))
    if side != size:
        artwork = artwork.resize((side, side), Image.Resampling.LANCZOS)
    free = (size - side) / 2
    at = (round(free * (1 + look.aside[0])), round(free * (1 + look.aside[1])))
    canvas = Image.new("RGBA", (size, size), (*look.ground, 255))
    canvas.alpha_composite(artwork, at)
    return np.asarray(canvas.convert("RGB"))


def together(artworks: Sequence[Pixels]) -> Pixels:
    """Two, three or four things, each half as large; RGBA as they are."""
    size = artworks[0].shape[0]
    canvas = Image.new("RGBA", (size, size))
    for rgba, (across, down) in zip(artworks, PLACES[len(artworks)], strict=True):
        small = Image.fromarray(rgba).resize((size // 2, size // 2), Image.Resampling.LANCZOS)
        canvas.alpha_composite(small, (round(across * size / 2), round(down * size / 2)))
    return np.asarray(canvas)


def recoloured(rgba: Pixels, hue: float, tinted: bool | None = None) -> Pixels:
    """Coloured parts take the hue; light, shade and grey stay. `tinted`: greys take it too; None: if all is grey."""
    hsv = _hsv(rgba)
    coloured = hsv[..., 1] > COLOURED
    if grey(rgba) if tinted is None else tinted:
        middle = hsv[..., 2] > 0.25
        hsv[..., 1] = np.where(middle, np.maximum(hsv[..., 1], 0.55), hsv[..., 1])
        coloured = coloured | middle
    hsv[..., 0] = np.where(coloured, hue, hsv[..., 0])
    hsv[..., 1] = np.where(coloured, np.clip(hsv[..., 1], 0.45, 0.9), hsv[..., 1])
    rgb = np.asarray(Image.fromarray((hsv * 255).round().astype(np.uint8), "HSV").convert("RGB"))
    return np.concatenate([rgb, rgba[..., 3:]], axis=-1)


def grey(rgba: Pixels) -> bool:
    """Hardly coloured: a panda, a ghost."""
    shown = rgba[..., 3] > 128
    return bool(((_hsv(rgba)[..., 1] > COLOURED) & shown).sum() < 0.2 * shown.sum())


def _hsv(rgba: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgba[..., :3])).convert("HSV")).astype(np.float32) / 255


def shaded(rgb: Pixels, vivid: float, light: float) -> Pixels:
    """From pale to vivid and from dark to light, each -1 … 1."""
    middle = rgb.mean(-1, keepdims=True)
    seen = middle + (rgb - middle) * (1 + 0.35 * vivid)
    seen = seen + (255 - seen) * 0.25 * light if light > 0 else seen * (1 + 0.3 * light)
    return seen.clip(0, 255)
