"""Control images made without a model: the same pixels as by their definitions, worked out pixel by pixel."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
from PIL import Image, ImageFilter

from sdcli.images.control import WAYS, prepared

KINDS = ("noise", "smooth", "blurred", "shapes", "flat")


def picture(kind: str, width: int, height: int, seed: int = 0) -> Image.Image:
    dice = numpy.random.default_rng(seed)
    noise = Image.fromarray(dice.integers(0, 256, (height, width, 3), dtype=numpy.uint8))
    if kind == "noise":
        return noise
    if kind == "blurred":
        return noise.filter(ImageFilter.GaussianBlur(1.5)).point(lambda value: max(0, min(255, 3 * value - 256)))
    rows, columns = numpy.mgrid[:height, :width]
    if kind == "smooth":
        waves = [127.5 + 127.5 * numpy.sin((columns * (1 + one) + rows * (2 - one)) / 7 + seed) for one in range(3)]
        return Image.fromarray(numpy.stack(waves, axis=2).astype(numpy.uint8))
    pixels = numpy.full((height, width, 3), 60, dtype=numpy.uint8)
    if kind == "shapes":
        pixels[(columns - width // 2) ** 2 + (rows - height // 2) ** 2 < (height // 3) ** 2] = (200, 90, 60)
        pixels[height // 4 : height // 2, : width // 3] = (60, 60, 130)
    return Image.fromarray(pixels)


def canny_by_definition(image: Image.Image) -> Image.Image:
    pixels: Any = numpy.asarray(image).tolist()
    height, width = image.height, image.width
    gradients = [[_gradient(pixels, row, column) for column in range(width)] for row in range(height)]

    def steepness(row: int, column: int) -> int:
        if not (0 <= row < height and 0 <= column < width):
            return 0
        across, down = gradients[row][column]
        return abs(across) + abs(down)

    def on_a_ridge(row: int, column: int) -> bool:
        across, down = gradients[row][column]
        here = steepness(row, column)
        if abs(down) < abs(across) * math.tan(math.pi / 8):
            return here > steepness(row, column - 1) and here >= steepness(row, column + 1)
        if abs(down) > abs(across) * math.tan(3 * math.pi / 8):
            return here > steepness(row - 1, column) and here >= steepness(row + 1, column)
        side = -1 if (across < 0) != (down < 0) else 1
        return here > steepness(row - 1, column - side) and here > steepness(row + 1, column + side)

    every = [(row, column) for row in range(height) for column in range(width)]
    weak = {at for at in every if steepness(*at) > 100 and on_a_ridge(*at)}
    waiting = [at for at in weak if steepness(*at) > 200]
    edge = set(waiting)
    while waiting:
        row, column = waiting.pop()
        near = {(row + up, column + left) for up in (-1, 0, 1) for left in (-1, 0, 1)} & weak - edge
        edge |= near
        waiting += near
    found = Image.new("RGB", image.size)
    for row, column in edge:
        found.putpixel((column, row), (255, 255, 255))
    return found


def _gradient(pixels: Any, row: int, column: int) -> tuple[int, int]:
    """Of the channel where it is steepest."""
    height, width = len(pixels), len(pixels[0])

    def at(up: int, left: int, channel: int) -> int:
        return int(pixels[min(max(row + up, 0), height - 1)][min(max(column + left, 0), width - 1)][channel])

    both = []
    for channel in range(3):
        across = sum(weight * (at(up, 1, channel) - at(up, -1, channel)) for up, weight in ((-1, 1), (0, 2), (1, 1)))
        down = sum(
            weight * (at(1, left, channel) - at(-1, left, channel)) for left, weight in ((-1, 1), (0, 2), (1, 1))
        )
        both.append((across, down))
    return max(both, key=lambda pair: abs(pair[0]) + abs(pair[1]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), [(48, 40), (31, 57), (3, 3), (1, 9), (9, 1), (1, 1)])
def test_canny_finds_the_edges_of_its_definition(kind: str, width: int, height: int) -> None:
    for seed in (0, 1):
        image = picture(kind, width, height, seed)
        assert prepared(image, "canny").tobytes() == canny_by_definition(image).tobytes()


def test_an_edge_that_is_strong_at_one_end_is_followed_to_the_other() -> None:
    """It winds through the whole image, weak but for its first pixels."""
    pixels = numpy.zeros((40, 200, 3), dtype=numpy.uint8)
    pixels[20:] = 40  # weak: a step of 40 has a gradient of 160
    pixels[20:, :4] = 120
    edge = numpy.asarray(prepared(Image.fromarray(pixels), "canny"))[..., 0]
    assert (edge[19:21].max(axis=0) == 255).sum() > 190
    pixels[20:, :4] = 40
    assert not numpy.asarray(prepared(Image.fromarray(pixels), "canny")).any()


def scribble_by_definition(image: Image.Image) -> Any:
    """Whether each pixel is white, and how far its value is from where that changes."""
    pixels = numpy.asarray(image).astype(float)
    darker = _blurred(pixels, 5.0, 20) - _blurred(pixels, 0.5, 2)
    brighter = numpy.ceil(numpy.clip(darker.min(axis=2), 0, 255))
    return 2 * brighter > 32, abs(darker.min(axis=2) - 16)


def _blurred(pixels: Any, deviation: float, reach: int) -> Any:
    for axis in (0, 1):
        size = pixels.shape[axis]
        weights = [math.exp(-(step**2) / (2 * deviation**2)) for step in range(-reach, reach + 1)]
        total = sum(weights)
        rows = [
            sum(
                w * pixels.take(_mirrored(at + step, size), axis)
                for w, step in zip(weights, range(-reach, reach + 1), strict=True)
            )
            / total
            for at in range(size)
        ]
        pixels = numpy.stack(rows, axis)
    return pixels


def _mirrored(at: int, size: int) -> int:
    """Without the outermost pixel twice."""
    around = 2 * (size - 1)
    return min(at % around, around - at % around) if around else 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), [(48, 40), (7, 30), (1, 9), (1, 1)])
def test_a_scribble_is_what_a_fine_blur_has_less_of_than_a_coarse_one(kind: str, width: int, height: int) -> None:
    image = picture(kind, width, height)
    white, distance = scribble_by_definition(image)
    seen = numpy.asarray(prepared(image, "scribble"))
    sure = distance > 1e-3  # nearer than that rounding decides
    assert ((seen[..., 0] == 255) == white)[sure].all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_control_image_is_rgb_and_of_the_size_of_the_image(way: str, mode: str) -> None:
    made = prepared(picture("blurred", 50, 37).convert(mode), way)
    assert (made.mode, made.size) == ("RGB", (50, 37))
    if way in ("canny", "scribble"):
        assert set(numpy.unique(numpy.asarray(made))) == {0, 255}


def test_tiles_are_the_image_itself_and_inverted_ones_its_opposite() -> None:
    image = picture("shapes", 40, 30)
    assert prepared(image, "tile").tobytes() == prepared(image, "none").tobytes() == image.tobytes()
    assert (numpy.asarray(prepared(image, "invert")) == 255 - numpy.asarray(image)).all()
