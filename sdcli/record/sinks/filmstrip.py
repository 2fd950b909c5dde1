"""`--filmstrip N`: the way from noise to picture, side by side in one file beside the picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdcli.events import Decoded, Event, Failed, Preview, Saved
from sdcli.files import REAL, Files, cannot_write, replace_whole

HIGHEST = 256  # pixels: frames are rough, the picture itself lies beside the strip
SUFFIX = ".filmstrip.png"


class Filmstrip:
    """A sink. Frames are kept only until their picture is saved."""

    def __init__(self, frames: int, files: Files = REAL, told: Callable[[Path], None] = lambda path: None) -> None:
        """`told` is called with the place of each strip."""
        self._told = told
        self._wanted = frames
        self._files = files
        self._frames: dict[int, list[Preview]] = {}
        self._last: dict[int, Any] = {}

    def __call__(self, event: Event) -> None:
        if not self._wanted:
            return
        match event:
            case Preview():
                self._frames.setdefault(event.index, []).append(event)
            case Decoded():
                self._last[event.index] = _image(event, _height(event.height), event.width / event.height)
            case Saved():
                self._save(event.index, Path(event.path))
            case Failed():
                self._frames.pop(event.index, None)
                self._last.pop(event.index, None)

    def _save(self, index: int, picture: Path) -> None:
        frames, last = self._frames.pop(index, []), self._last.pop(index, None)
        if last is None or not frames:
            return
        chosen = _evenly(frames, self._wanted)
        strip = [*(_image(frame, last.height, last.width / last.height) for frame in chosen), last]
        path = picture.with_name(picture.stem + SUFFIX)
        try:
            replace_whole(self._files, path, [_png(strip)])
        except OSError as error:
            raise cannot_write(path, error, done=f"{picture.name} is saved") from None
        self._told(path)


def _height(height: int) -> int:
    return min(height, HIGHEST)


def _evenly(frames: list[Preview], wanted: int) -> list[Preview]:
    """`wanted` of them, the last always among them."""
    if len(frames) <= wanted:
        return frames
    return [frames[round(number * len(frames) / wanted) - 1] for number in range(1, wanted + 1)]


def _image(event: Preview | Decoded, height: int, shape: float) -> Any:
    from PIL import Image

    image = Image.frombytes("RGB", (event.width, event.height), event.pixels)
    return image.resize((max(1, round(height * shape)), height), Image.Resampling.LANCZOS)


def _png(images: list[Any]) -> bytes:
    from PIL import Image

    strip = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    left = 0
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    return buffer.getvalue()
