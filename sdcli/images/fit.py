"""An image made to another size: the same for what is drawn from, its mask and its control image."""

from __future__ import annotations

from typing import Any

WAYS = ("crop", "pad", "stretch")


def fitted(image: Any, width: int, height: int, way: str) -> Any:
    """`crop` cuts off what is too long, `pad` continues the edges, `stretch` changes the shape: as diffusers does."""
    if way == "stretch":
        return _resized(image, width, height)
    return (_cropped if way == "crop" else _padded)(image, width, height)


def _resized(image: Any, width: int, height: int) -> Any:
    from PIL import Image

    return image.resize((width, height), resample=Image.Resampling.LANCZOS)


def _cropped(image: Any, width: int, height: int) -> Any:
    """Covers the new size, the middle of what is too long in it."""
    from PIL import Image

    wider = width / height > image.width / image.height
    across = width if wider else image.width * height // image.height
    down = image.height * width // image.width if wider else height
    made = Image.new(image.mode, (width, height))
    made.paste(_resized(image, across, down), box=(width // 2 - across // 2, height // 2 - down // 2))
    return made


def _padded(image: Any, width: int, height: int) -> Any:
    """All of it in the middle of the new size, its outermost pixels continued beside it."""
    from PIL import Image

    wider = width / height > image.width / image.height
    across = image.width * height // image.height if wider else width
    down = height if wider else image.height * width // image.width
    small = _resized(image, max(1, across), max(1, down))
    left, top = width // 2 - across // 2, height // 2 - down // 2
    made = Image.new(image.mode, (width, height))
    made.paste(small, box=(left, top))
    if left > 0:
        made.paste(small.resize((left, height), box=(0, 0, 0, small.height)), box=(0, 0))
        right = width - left - small.width
        made.paste(
            small.resize((right, height), box=(small.width, 0, small.width, small.height)), box=(width - right, 0)
        )
    if top > 0:
        made.paste(small.resize((width, top), box=(0, 0, small.width, 0)), box=(0, 0))
        below = height - top - small.height
        made.paste(
            small.resize((width, below), box=(0, small.height, small.width, small.height)), box=(0, height - below)
        )
    return made
