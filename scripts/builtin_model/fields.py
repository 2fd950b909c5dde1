"""What latents hold beside the things drawn: where these are, and the colours behind and over them.

Colours are the same at every place, so they show through strong noise and are settled in the first steps. What a prompt
leaves open is then the seed's to choose, and the decoder lays it on: the same drawing, whatever the colours.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.builtin_model.captions import Meaning
from scripts.builtin_model.images import GROUNDS, HUES, Pixels, recoloured, shaded

DRAWN = 8  # channels of the things themselves, as on white
COUNT = 9  # channels beside these: the matte, then one for each value of `Colours.values`
PALEST, DEEPEST, DARKEST = 0.1, 0.36, 0.94  # saturations and value of grounds that nobody asked for


@dataclass(frozen=True)
class Colours:
    """The defaults are the artwork as it is, on white."""

    ground: tuple[int, int, int] = GROUNDS["white"]
    hue: float | None = None
    tinted: bool = False  # greys take the hue as well
    vivid: float = 0.0  # -1 … 1
    light: float = 0.0  # -1 … 1

    def values(self) -> list[float]:
        """About as strong as the other channels."""
        turn = (0.0, 0.0) if self.hue is None else (math.cos(math.tau * self.hue), math.sin(math.tau * self.hue))
        return [*((part - 191) / 64 for part in self.ground), *turn, float(self.tinted), self.vivid, self.light]

    def on(self, rgba: Pixels) -> Pixels:
        """The RGB image that latents with these colours mean."""
        part = rgba[..., 3:].astype(np.float32) / 255
        over = recoloured(rgba, self.hue, self.tinted) if self.hue is not None else rgba
        seen = shaded(over[..., :3].astype(np.float32), self.vivid, self.light)
        return (seen * part + np.float32(self.ground) * (1 - part)).round().astype(np.uint8)


def with_colours(drawn: Tensor, colours: Sequence[Colours]) -> Tensor:
    """Whole latents: those of things with their mattes, then the colours, the same at every place."""
    values = torch.tensor([one.values() for one in colours])
    return torch.cat([drawn, values[..., None, None].expand(-1, -1, *drawn.shape[-2:])], dim=1)


def chosen(random: np.random.Generator, meaning: Meaning, grey: bool = False) -> Colours:
    """As it is said; by chance where it is not, except for the hue, which is then the thing's own."""
    ground = any_ground(random) if meaning.ground is None else GROUNDS[meaning.ground]
    hue = HUES[meaning.hue] if meaning.hue else None
    vivid, light = (float(random.uniform(-1, 1)) for _ in range(2))
    return Colours(ground, hue, hue is not None and grey, vivid, light)


def any_ground(random: np.random.Generator) -> tuple[int, int, int]:
    """Soft, of any hue."""
    soft = random.uniform(PALEST, DEEPEST)
    red, green, blue = colorsys.hsv_to_rgb(random.random(), soft, random.uniform(DARKEST, 1))
    return (round(255 * red), round(255 * green), round(255 * blue))


def matte(alphas: np.ndarray[Any, Any], cells: int) -> Tensor:
    """[count, cells, cells], -1 where there is nothing and 1 inside of things, of [count, size, size] alphas."""
    cell = alphas.shape[1] // cells
    means = alphas.reshape(len(alphas), cells, cell, cells, cell).mean((2, 4), dtype=np.float32)
    return torch.from_numpy(means / 127.5 - 1)
