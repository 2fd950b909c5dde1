"""What a file is by its first bytes, when it is not safetensors. Content decides; the name only adds suspicion."""

from __future__ import annotations

import re
from pathlib import Path

from sdcli.errors import BadFile, SdcliError, Unsafe
from sdcli.terminal import show

FIRST_BYTES = 512
LARGEST_HEADER = 32 << 20
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})
_OTHER = (
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n\x1a\n", "a Keras HDF5 file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x93NUMPY", "a NumPy array"),
)


def sniff(start: bytes, size: int, path: Path) -> SdcliError | None:
    """The error that names the file, or None where it may be safetensors. `start` is its first FIRST_BYTES."""
    if size == 0:
        return bad(path, "empty")
    for recognise in (_not_downloaded, _runs_code, _other_format):
        error = recognise(start, path)
        if error is not None:
            return error
    if not _may_be_safetensors(start):
        excerpt = "" if path.is_symlink() else _as_text(start)  # a link may lead to a private file
        return bad(path, f"not a safetensors file{excerpt}")
    return None


def bad(path: Path, what: str) -> BadFile:
    return BadFile(f"{show(path)} is {what}")


def pickle_refused(path: Path, because: str) -> Unsafe:
    return Unsafe(
        f"{show(path)} {because}; loading one can run code; refused",
        hint="get the .safetensors file of the same model",
    )


def _not_downloaded(start: bytes, path: Path) -> SdcliError | None:
    if start.startswith(b"version https://git-lfs"):
        return BadFile(f"{show(path)} is a git-lfs pointer, not the model itself", hint="git lfs pull")
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|head|!--)", start, re.IGNORECASE):
        return BadFile(
            f"{show(path)} is a web page, not a model: the site required a login, or the link led to the page",
            hint="download the file itself, logged in",
        )
    return None


def _runs_code(start: bytes, path: Path) -> SdcliError | None:
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        inside = b"data.pkl" in start or path.suffix.casefold() in PICKLE_SUFFIXES
        return pickle_refused(path, "is a pickle" if inside else "is a zip archive, as torch writes its pickles")
    # 0x80 0x02 is also the length 640: with the brace of a header behind it, and nothing but zeros between, it is that.
    if len(start) > 2 and start[0] == 0x80 and start[1] <= 5 and not _may_be_safetensors(start):
        return pickle_refused(path, "is a pickle")
    if path.suffix.casefold() in PICKLE_SUFFIXES:
        return pickle_refused(path, "is named like a pickle")
    return None


def _other_format(start: bytes, path: Path) -> SdcliError | None:
    for magic, title in _OTHER:
        if start.startswith(magic) and not _may_be_safetensors(start):
            return bad(path, f"{title}, which sdcli does not read")
    return None


def _may_be_safetensors(start: bytes) -> bool:
    return len(start) >= 10 and 2 <= int.from_bytes(start[:8], "little") <= LARGEST_HEADER and start[8:9] == b"{"


def _as_text(start: bytes) -> str:
    """The beginning of a text: what a server said instead of sending the file."""
    try:
        text = start[:200].decode("ascii")
    except UnicodeDecodeError:
        return ""
    words = " ".join(text.split())
    return f' but a text: "{show(words, 60)}"' if words and words.isprintable() else ""
