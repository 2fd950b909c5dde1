"""What `sdcli upscale` is asked for: how large images become, and one job for each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sdcli.errors import Usage
from sdcli.images.read import InputImage
from sdcli.terminal import show

LARGEST_SCALE = 16.0
LARGEST_SIDE = 65_535
TILES = (32, 4096)


@dataclass(frozen=True, kw_only=True)
class Target:
    """How large images become: by a factor, or a size; without either as large as the model makes them."""

    scale: float | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Enlargement:
    """One image, and the size that it comes to. `fit` says how, where the shape of that differs."""

    index: int
    image: InputImage
    width: int
    height: int
    fit: str = "stretch"


def parse_target(text: str) -> Target:
    """`2`, `1.5` or `2048x1536`."""
    if re.fullmatch(r"\s*(\d{1,2}(\.\d{0,6})?|\.\d{1,6})\s*", text, re.ASCII):
        scale = float(text)
        if not 0 < scale <= LARGEST_SCALE:
            raise Usage(f"--scale {scale:g} is not above 0 and up to {LARGEST_SCALE:g}", hint="--scale 2")
        return Target(scale=scale)
    match = re.fullmatch(r"\s*(\d{1,6})\s*[x×*]\s*(\d{1,6})\s*", text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise Usage(f'--scale: "{show(text, 60)}" is neither a factor nor WIDTHxHEIGHT', hint="--scale 2")
    return Target(size=(int(match[1]), int(match[2])))


def parse_tile(text: str) -> int:
    """Pixels a side; a multiple of 8."""
    lowest, highest = TILES
    if not re.fullmatch(r"\s*\d{1,6}\s*", text, re.ASCII):
        raise Usage(f'--tile: "{show(text, 60)}" is not a number of pixels', hint="--tile 256")
    side = int(text)
    if not lowest <= side <= highest or side % 8:
        near = min(max(round(side / 8) * 8, lowest), highest)
        raise Usage(f"--tile {side} is not a multiple of 8 between {lowest} and {highest}", hint=f"--tile {near}")
    return side


def make_enlargements(
    images: Iterable[InputImage], target: Target, scale: int, fit: str = "crop"
) -> tuple[Enlargement, ...]:  # fmt: skip
    """`scale` is the model's own."""
    return tuple(_one(index, image, target, scale, fit) for index, image in enumerate(images))


def _one(index: int, image: InputImage, target: Target, scale: int, fit: str) -> Enlargement:
    factor = scale if target.scale is None else target.scale
    width, height = target.size or (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    if not 1 <= min(width, height) <= max(width, height) <= LARGEST_SIDE:
        most = max(0.1, int(LARGEST_SIDE / max(image.width, image.height) * 10) / 10)
        raise Usage(
            f"{show(image.name, 80)} would become {width}×{height}; sides are 1 to {LARGEST_SIDE}",
            hint=f"--scale {most:g}",
        )
    alike = abs(image.width * height - image.height * width) <= max(image.width, image.height)  # to a pixel
    return Enlargement(index=index, image=image, width=width, height=height, fit="stretch" if alike else fit)
