"""Lines found in an image, white on black, as ControlNets were trained on them: by arithmetic alone."""

from __future__ import annotations

from typing import Any, Literal

WEAK, STRONG = 100, 200  # what a gradient must exceed to continue an edge, and to begin one
# tan 22.5° in 32768ths. For the gradients of 8-bit images that is exact: no two of them are on different sides of it.
_TANGENT, _BITS = 13573, 15
_FINE, _COARSE, _LINE = 0.5, 5.0, 32


def canny(image: Any) -> Any:
    """The ridges of the gradient that are strong somewhere, one pixel wide; equal to OpenCV's Canny."""
    import numpy

    across, down, steepness = _steepest(numpy.asarray(image.convert("RGB")))
    ridge = _ridges(across, down, steepness)
    return _white(_connected(ridge & (steepness > STRONG), ridge & (steepness > WEAK)))


def scribble(image: Any) -> Any:
    """Where something thin is brighter than what is around it in any colour: as drawn with a broad pen."""
    import numpy

    pixels = numpy.asarray(image.convert("RGB")).astype(numpy.float32)
    darker = (_blurred(pixels, _COARSE) - _blurred(pixels, _FINE)).min(axis=2)
    left = (255 - darker).clip(0, 255).astype(numpy.uint8)  # cut off to whole numbers, as those images were
    return _white(2 * (255 - left.astype(numpy.int32)) > _LINE)


def _white(marked: Any) -> Any:
    import numpy
    from PIL import Image

    return Image.fromarray(marked.astype(numpy.uint8) * numpy.uint8(255)).convert("RGB")


# --- Canny


def _steepest(pixels: Any) -> tuple[Any, Any, Any]:
    """The gradient of the channel that changes most, the first of several: across, down, and the sum of their sizes."""
    import numpy

    best: tuple[Any, Any, Any] | None = None
    for channel in range(pixels.shape[2]):
        across, down = _gradient(pixels[..., channel])
        steepness = abs(across) + abs(down)
        if best is not None:
            more = steepness > best[2]
            across, down = numpy.where(more, across, best[0]), numpy.where(more, down, best[1])
            steepness = numpy.maximum(steepness, best[2])
        best = across, down, steepness
    assert best is not None
    return best


def _gradient(channel: Any) -> tuple[Any, Any]:
    """Sobel's, of 3×3; the outermost pixels continue beyond the edge."""
    import numpy

    padded = numpy.pad(channel.astype(numpy.int32), 1, mode="edge")
    smooth_down = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return smooth_down[:, 2:] - smooth_down[:, :-2], smooth_across[2:] - smooth_across[:-2]


def _ridges(across: Any, down: Any, steepness: Any) -> Any:
    """Where it is steeper than on either side, in the direction of the gradient to the nearest 45°. On a plateau the
    first pixel counts, or none where the direction is diagonal."""
    import numpy

    padded = numpy.pad(steepness, 1)
    height, width = steepness.shape

    def beside(rows: int, columns: int) -> Any:
        return padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    flat = abs(across) * _TANGENT
    rise = abs(down) << _BITS
    level, upright = rise < flat, rise > flat + (abs(across) << (_BITS + 1))
    falling = (across ^ down) >= 0  # from the upper left to the lower right
    return numpy.select(
        [level, upright, falling],
        [
            (steepness > beside(0, -1)) & (steepness >= beside(0, 1)),
            (steepness > beside(-1, 0)) & (steepness >= beside(1, 0)),
            (steepness > beside(-1, -1)) & (steepness > beside(1, 1)),
        ],
        (steepness > beside(-1, 1)) & (steepness > beside(1, -1)),
    )


def _connected(strong: Any, weak: Any) -> Any:
    """The strong pixels, and the weak ones that a chain of neighbours connects with them."""
    import numpy

    width = strong.shape[1] + 2
    left = numpy.pad(weak & ~strong, 1).ravel()  # not reached yet
    reached = numpy.pad(strong, 1).ravel()
    around = numpy.array([row * width + column for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column])
    front = numpy.flatnonzero(reached)
    while len(front):
        near = (front[:, None] + around).ravel()
        front = numpy.unique(near[left[near]])
        left[front], reached[front] = False, True
    return reached.reshape(-1, width)[1:-1, 1:-1]


# --- scribbles


def _blurred(pixels: Any, deviation: float) -> Any:
    """By a Gaussian of this deviation, four of them to each side; mirrored at the edge."""
    import numpy

    reach = round(8 * deviation + 1) // 2
    distances = numpy.arange(-reach, reach + 1)
    weights = numpy.exp(-(distances**2) / (2 * deviation**2))
    weights = (weights / weights.sum()).astype(numpy.float32)
    for axis in (0, 1):
        around = [(reach, reach) if side == axis else (0, 0) for side in range(pixels.ndim)]
        mode: Literal["reflect", "edge"] = "reflect" if pixels.shape[axis] > 1 else "edge"
        padded = numpy.moveaxis(numpy.pad(pixels, around, mode=mode), axis, 0)
        length = pixels.shape[axis]
        summed = sum(weight * padded[first : first + length] for first, weight in enumerate(weights))
        pixels = numpy.moveaxis(summed, 0, axis)
    return pixels
