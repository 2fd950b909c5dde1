"""The two EXIF tags sdcli uses in JPEG and WebP: UserComment for A1111's text, ImageDescription for our chunk."""

from __future__ import annotations

from typing import Any

IMAGE_DESCRIPTION = 0x010E
MODEL_OF_CAMERA = 0x0110  # where ComfyUI keeps its prompt
ORIENTATION = 0x0112
EXIF_FOLDER = 0x8769
USER_COMMENT = 0x9286
LIMIT = 65_527  # a JPEG segment has 65,535 bytes: two for its length, six for the word Exif


def block(text: str | None, own: bytes | None) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    if own is not None:
        exif[IMAGE_DESCRIPTION] = own.decode("ascii")
    if text is not None:
        exif.get_ifd(EXIF_FOLDER)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be", "replace")
    return bytes(exif.tobytes())


def own_text(exif: Any) -> str | None:
    text = exif.get(IMAGE_DESCRIPTION)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return text.rstrip("\0") if isinstance(text, str) else None


def comment(exif: Any) -> str | None:
    """The UserComment, in whichever of its encodings it was written."""
    value = exif.get_ifd(EXIF_FOLDER).get(USER_COMMENT)
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes) or len(value) <= 8:
        return None
    if value.startswith(b"{"):  # mflux writes no encoding
        return value.decode("utf-8", "replace").rstrip("\0 ")
    code, body = value[:8], value[8:]
    if code == b"UNICODE\0":
        return body.decode(_utf16(body), "replace").lstrip("\ufeff").rstrip("\0")
    return body.decode("utf-8", "replace").rstrip("\0 ") if code in (b"ASCII\0\0\0", bytes(8)) else None


def _utf16(body: bytes) -> str:
    """Big-endian as the web UI writes it, unless a byte order mark or the zero bytes of Latin text say otherwise."""
    if body[:2] == b"\xff\xfe":
        return "utf-16-le"
    if body[:2] != b"\xfe\xff" and body[1::2].count(0) > body[0::2].count(0):
        return "utf-16-le"
    return "utf-16-be"
