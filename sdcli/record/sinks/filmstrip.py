"""`--filmstrip N`: the frames from noise to image, side by side in one file beside the image."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdcli.events import Decoded, Event, Failed, Preview, Saved
from sdcli.files import REAL, Files, cannot_write, replace_whole

HIGHEST = 256  # pixels: frames are rough, and the image itself lies beside the strip
SUFFIX = ".filmstrip.png"


class Filmstrip:
    """A sink. Frames are kept only until their image is saved."""

    def __init__(self, frames: int, files: Files = REAL, on_saved: Callable[[Path], None] = lambda path: None) -> None:
        """`on_saved` is called with the path of each strip."""
        self._on_saved = on_saved
        self._count = frames
        self._files = files
        self._frames: dict[int, dict[tuple[str, int], Preview]] = {}  # a worker's that died are drawn again
        self._last: dict[int, Any] = {}

    def __call__(self, event: Event) -> None:
        if not self._count:
            return
        match event:
            case Preview():
                self._frames.setdefault(event.index, {})[event.stage, event.step] = event
            case Decoded():
                self._last[event.index] = _image(event, min(event.height, HIGHEST), event.width / event.height)
            case Saved():
                self._save(event.index, Path(event.path))
            case Failed():
                self._frames.pop(event.index, None)
                self._last.pop(event.index, None)

    def _save(self, index: int, image: Path) -> None:
        frames, last = list(self._frames.pop(index, {}).values()), self._last.pop(index, None)
        if last is None or not frames:
            return
        chosen = _evenly(frames, self._count)
        strip = [*(_image(frame, last.height, last.width / last.height) for frame in chosen), last]
        path = image.with_name(image.stem + SUFFIX)
        try:
            replace_whole(self._files, path, [_png(strip)])
        except OSError as error:
            raise cannot_write(path, error, done=f"{image.name} is saved") from None
        self._on_saved(path)


def _evenly(frames: list[Preview], count: int) -> list[Preview]:
    """`count` of them, always including the last."""
    if len(frames) <= count:
        return frames
    return [frames[round(number * len(frames) / count) - 1] for number in range(1, count + 1)]


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
