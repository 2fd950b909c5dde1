"""A copy of an image without what was written about it: its container is cut, its pixels are not encoded anew.

Only parts known to matter to the pixels are kept: a colour profile, and which way up the image is.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdcli.errors import BadFile
from sdcli.files import REAL, Files, cannot_write, discard, publish, write_new
from sdcli.record.metadata import exif
from sdcli.record.metadata.read import contents, opened
from sdcli.record.names import with_copies
from sdcli.terminal import show

MOST_NAMES = 1000
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {
    b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD",
    b"pHYs", b"acTL", b"fcTL", b"fdAT",
}  # fmt: skip
_WEBP_KEPT = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}
_WEBP_NOTES, _WEBP_EXIF = 0x0C, 0x08  # flags: XMP and EXIF; EXIF
_JPEG_KEPT = ((0xE0, b"JFIF\0"), (0xE2, b"ICC_PROFILE\0"), (0xEE, b"Adobe"))


def save(path: str | Path, folder: Path | None, files: Files = REAL) -> Path:
    """Where the copy is: a new name, never that of an existing file."""
    source = Path(path)
    data = stripped(contents(source), show(path, 200))
    target = (folder or source.parent).absolute()
    try:
        files.make_folder(target)
        return _written(files, target, f"{source.stem}-stripped{source.suffix}", data)
    except OSError as error:
        raise cannot_write(target, error) from None


def _written(files: Files, folder: Path, name: str, data: bytes) -> Path:
    part = folder / f".{os.urandom(8).hex()}.part"
    write_new(files, part, [data])
    try:
        for free in itertools.islice(with_copies(name), MOST_NAMES):
            try:
                publish(files, part, folder / free, overwrite=False)
            except FileExistsError:
                continue
            files.sync_folder(folder)
            return folder / free
        raise FileExistsError(errno.EEXIST, "every name is taken")
    except BaseException:
        discard(files, part)
        raise


def stripped(data: bytes, name: str) -> bytes:
    """The file without its notes; BadFile unless the pixels of both are the same."""
    format, mode, before, orientation = opened(data, name, _looked_at)
    upright = exif_of(orientation)
    cut = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}[format]
    try:
        result = b"".join(cut(data, upright))
    except (ValueError, IndexError, struct.error):
        raise _damaged(name, "its parts do not fit together") from None
    if opened(result, name, _looked_at) != (format, mode, before, orientation):
        raise _damaged(name, "its pixels need a part that is not known")
    return result


def exif_of(orientation: int) -> bytes:
    """Which way up, as a TIFF; empty where the image is stored that way."""
    from PIL import Image

    if orientation == 1:
        return b""
    tags = Image.Exif()
    tags[exif.ORIENTATION] = orientation
    return bytes(tags.tobytes()).removeprefix(b"Exif\0\0")


def _looked_at(image: Any) -> tuple[str, str, bytes, int]:
    """Its format, its mode, what it looks like, and which way up."""
    from hashlib import sha256

    image.load()
    told = (image.size, image.getpalette(), *(image.info.get(key) for key in ("transparency", "icc_profile")))
    looks = sha256(repr(told).encode() + image.tobytes()).digest()
    return str(image.format), image.mode, looks, _orientation(image)


def _orientation(image: Any) -> int:
    value = image.getexif().get(exif.ORIENTATION)
    return value if type(value) is int and 2 <= value <= 8 else 1


def _damaged(name: str, why: str) -> BadFile:
    return BadFile(f"{name} is a damaged image ({why})")


# --- one container each


def _png(data: bytes, upright: bytes) -> Iterator[bytes]:
    yield _PNG
    at = len(_PNG)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        whole = data[at : at + 12 + length]
        if len(whole) != 12 + length:
            raise ValueError(kind)
        if kind in _PNG_KEPT:
            yield whole
        if kind == b"IHDR" and upright:
            yield _png_chunk(b"eXIf", upright)
        if kind == b"IEND":
            return
        at += len(whole)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    from zlib import crc32

    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc32(kind + body))


def _jpeg(data: bytes, upright: bytes) -> Iterator[bytes]:
    """Segments up to the end of the image; what other programs put behind it is dropped too."""
    yield data[:2]
    at, told = 2, not upright
    while True:
        if data[at] != 0xFF:
            raise ValueError(at)
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == 0xD9:
            yield data[at : at + 2]
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + length
        if length < 2 or end > len(data):
            raise ValueError(at)
        body = data[at + 4 : end]
        if not told and marker != 0xE0:
            told = True
            note = b"Exif\0\0" + upright
            yield b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note
        if marker == 0xDA:
            following = _after_scan(data, end)
            yield data[at:following]
            at = following
            continue
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or _is_kept(marker, body):
            yield data[at:end]
        at = end


def _is_kept(marker: int, body: bytes) -> bool:
    return any(marker == kept and body.startswith(start) for kept, start in _JPEG_KEPT)


def _after_scan(data: bytes, at: int) -> int:
    """Where the next marker stands that is no part of the coded pixels."""
    while True:
        at = data.index(b"\xff", at)
        following = data[at + 1]
        if following != 0 and following != 0xFF and not 0xD0 <= following <= 0xD7:
            return at
        at += 1 if following == 0xFF else 2


def _webp(data: bytes, upright: bytes) -> Iterator[bytes]:
    kept = list(_webp_chunks(data))
    if upright:
        kept.append(b"EXIF" + struct.pack("<I", len(upright)) + upright + b"\0" * (len(upright) % 2))
    for number, chunk in enumerate(kept):
        if chunk.startswith(b"VP8X"):
            flags = chunk[8] & ~_WEBP_NOTES | (_WEBP_EXIF if upright else 0)
            kept[number] = chunk[:8] + bytes([flags]) + chunk[9:]
    body = b"WEBP" + b"".join(kept)
    yield b"RIFF" + struct.pack("<I", len(body)) + body


def _webp_chunks(data: bytes) -> Iterator[bytes]:
    (size,) = struct.unpack_from("<I", data, 4)
    at, end = 12, min(len(data), size + 8)
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        following = at + 8 + length + length % 2
        chunk = data[at:following]
        if len(chunk) < 8 + length:
            raise ValueError(kind)
        if kind in _WEBP_KEPT:
            yield chunk
        at = following
