"""The filmstrip: frames in order, the image last, one file beside the image, nothing kept after it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from sdcli.errors import CannotWrite
from sdcli.events import Decoded, Event, Failed, Preview, Saved
from sdcli.files import Files
from sdcli.record.sinks.filmstrip import Filmstrip
from sdcli.request.request import Job

JOB = Job(index=0, prompt="a cat", negative_prompt="", seed=1, steps=8, unet_calls=8, guidance=5.0, width=32, height=16,
          sampler="Euler")  # fmt: skip


def preview(step: int, index: int = 0) -> Preview:
    return Preview(batch=0, index=index, step=step, width=4, height=2, pixels=bytes([step * 10, 0, 0]) * 8)


def decoded(index: int = 0) -> Decoded:
    return Decoded(batch=0, index=index, job=JOB, width=32, height=16, seconds=0.1, pixels=b"\x00\xff\x00" * 512)


def saved(path: Path, index: int = 0) -> Saved:
    return Saved(batch=0, index=index, status="saved", file=path.name, path=str(path), format="png", bytes=1, width=32,
                 height=16, pixel_sha256="", file_sha256="", seconds=0.1)  # fmt: skip


def strip_of(path: Path, sink: Filmstrip, happened: list[Event]) -> list[tuple[Any, ...]]:
    """The colour in the middle of every frame."""
    from PIL import Image

    for event in happened:
        sink(event)
    with Image.open(path) as image:
        assert image.height == 16 and image.width % 32 == 0
        return [image.convert("RGB").getpixel((left + 16, 8)) for left in range(0, image.width, 32)]  # type: ignore[misc]


def test_frames_are_in_order_and_the_image_last(tmp_path: Path) -> None:
    file = tmp_path / "0001-a-cat-1.png"
    happened = [preview(4), preview(8), decoded(), saved(file)]
    strip = strip_of(tmp_path / "0001-a-cat-1.filmstrip.png", Filmstrip(2), happened)
    assert strip == [(40, 0, 0), (80, 0, 0), (0, 255, 0)]


def test_of_more_previews_than_asked_for_those_evenly_apart_are_taken(tmp_path: Path) -> None:
    happened = [*(preview(step) for step in range(1, 9)), decoded(), saved(tmp_path / "a.png")]
    strip = strip_of(tmp_path / "a.filmstrip.png", Filmstrip(2), happened)
    assert strip == [(40, 0, 0), (80, 0, 0), (0, 255, 0)]


def test_an_image_that_was_begun_twice_has_each_frame_once(tmp_path: Path) -> None:
    happened = [preview(4), preview(4), preview(8), decoded(), saved(tmp_path / "a.png")]
    strip = strip_of(tmp_path / "a.filmstrip.png", Filmstrip(2), happened)
    assert strip == [(40, 0, 0), (80, 0, 0), (0, 255, 0)]


def test_nothing_is_written_by_default_and_nothing_kept_of_failed_images(tmp_path: Path) -> None:
    for sink in (Filmstrip(0), Filmstrip(2)):
        for event in (preview(4), decoded(), Failed(batch=0, index=0, error={}), saved(tmp_path / "a.png")):
            sink(event)
        assert not sink._frames and not sink._last
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    class Full(Files):
        def write(self, file: int, data: bytes | memoryview) -> int:
            raise OSError(errno.ENOSPC, "full")

    sink = Filmstrip(1, Full())
    sink(preview(4))
    sink(decoded())
    with pytest.raises(CannotWrite, match="disk is full"):
        sink(saved(tmp_path / "a.png"))
    assert list(tmp_path.iterdir()) == []
