"""Pixels into the bytes of a PNG, JPEG or WebP file, in memory, with the settings that made them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sdcli.record.metadata import a1111, exif, own
from sdcli.record.metadata.own import ImageRecord

PNG_KEY, A1111_KEY = "sdcli", "parameters"
QUALITY = 95  # of 100, if none is asked for; with full colour resolution: blocks show first in the reds
FLAT = 1.0  # levels of standard deviation below which an image counts as one colour


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    data: bytes
    metadata: str  # what the file really holds: full | a1111 | none
    left_out: tuple[str, ...] = ()  # members, environment: dropped to keep the chunk within its limit
    flat: bool = False


def encode(
    pixels: bytes, width: int, height: int, format: str, record: ImageRecord, metadata: str = "full",
    quality: int = QUALITY,
) -> ImageFile:  # fmt: skip
    """The whole file. Metadata too large for the format is left out, which `ImageFile.metadata` then says."""
    from PIL import Image, ImageStat

    image = Image.frombytes("RGB", (width, height), pixels)
    flat = all(deviation < FLAT for deviation in ImageStat.Stat(image).stddev)
    for attempt in _attempts(record, metadata):
        data = _png(image, attempt) if format == "png" else _with_exif(image, format, attempt, quality)
        if data is not None:
            return ImageFile(data=data, metadata=attempt.metadata, left_out=attempt.left_out, flat=flat)
    raise AssertionError("an image without metadata always fits")


@dataclass(frozen=True)
class Attempt:
    metadata: str
    text: str | None
    record: ImageRecord | None
    left_out: tuple[str, ...] = ()


def _attempts(record: ImageRecord, metadata: str) -> Iterator[Attempt]:
    if metadata != "none":
        info = a1111.infotext(record.job, record.setup, record.model, record.version)
        text = a1111.write(info)
        if metadata == "full":
            for dropped, shorter in enumerate(own.shorter(record)):
                yield Attempt("full", text, shorter, ("members", "environment")[:dropped])
        else:
            yield Attempt("a1111", text, None)
    yield Attempt("none", None, None)


def _png(image: Any, attempt: Attempt) -> bytes | None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if attempt.text is not None:
        if len(attempt.text.encode()) > own.LIMIT:
            return None
        info.add_text(A1111_KEY, attempt.text)  # tEXt where Latin-1 holds it, else iTXt
    if attempt.record is not None:
        chunk = own.chunk(attempt.record)
        if len(chunk) > own.LIMIT:
            return None
        info.add_itxt(PNG_KEY, chunk.decode())
    return saved(image, "PNG", pnginfo=info)


def _with_exif(image: Any, format: str, attempt: Attempt, quality: int) -> bytes | None:
    options: dict[str, Any] = {"quality": quality}
    if attempt.metadata != "none":
        chunk = own.chunk(attempt.record, ascii_only=True) if attempt.record is not None else None
        if chunk is not None and len(chunk) > own.LIMIT:
            return None
        block = exif.block(attempt.text, chunk)
        if len(block) > exif.LIMIT:
            return None
        options["exif"] = block
    if format == "jpg":
        return saved(image, "JPEG", subsampling=0, **options)
    return saved(image, "WEBP", method=4, **options)


def saved(image: Any, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if format == "PNG":  # in filtered photographs little repeats: not to search for it takes a quarter of the time
        options["compress_type"] = zlib.Z_RLE
    image.save(buffer, format, **options)
    return buffer.getvalue()
