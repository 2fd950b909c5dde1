"""Files from outside, read with bounds: regular files only, of bounded size, and unambiguous JSON."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import IO, Any, NoReturn

from sdcli.errors import BadFile
from sdcli.terminal import show, size_text

DEEPEST = 64
_AT_ONCE = 1 << 20
# Opening a pipe without this waits for its writer, and a terminal would become ours. Windows has neither flag.
_OPEN_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def cannot_read(path: str | Path, error: OSError, hint: str = "sdcli doctor") -> BadFile:
    return BadFile(f"{show(path)} cannot be read: {show(error.strerror or error)}", hint=hint)


class NotJson(ValueError):
    """What is wrong, as the end of a sentence: "names "a" twice"."""


# --- bytes


def opened(path: str | Path) -> io.BufferedReader:
    """A regular file, open. A pipe or a device, which might hang or never end, is an OSError like any other."""
    handle = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
    try:
        _check_regular(os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_regular(mode: int) -> None:
    """Checks what was opened, not its name, which may mean another file by then."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")


def whole(path: str | Path, most: int) -> bytes:
    """All of a regular file; larger than `most` is an OSError."""
    with opened(path) as file:
        return bounded(file, most)


def bounded(file: IO[bytes], most: int) -> bytes:
    """What is left in a stream, at most `most` bytes; more is an OSError."""
    raw = bytearray()
    while piece := file.read(min(_AT_ONCE, most + 1 - len(raw))):
        raw += piece
        if len(raw) > most:
            raise OSError(errno.EFBIG, f"it is larger than {size_text(most)}")
    return bytes(raw)


# --- JSON


def read(
    source: Path | bytes | str, where: str = "", *, most: int = 0, hint: str = "", duplicates: bool = False
) -> dict[str, Any]:
    """One JSON object from a file of at most `most` bytes, or from its text; anything else is BadFile saying where."""
    where = where or str(source)
    try:
        return parse_object(whole(source, most) if isinstance(source, Path) else source, duplicates=duplicates)
    except OSError as error:
        raise cannot_read(where, error, hint) from None
    except NotJson as error:
        raise BadFile(f"{show(where)} {error}", hint=hint) from None


def recall(path: Path, most: int) -> dict[str, Any]:
    """A file that sdcli wrote itself; empty where it is absent, damaged or too large. It is read while someone waits,
    so it is not checked as a foreign file is."""
    try:
        value = json.loads(whole(path, most))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def parse(raw: bytes | str, *, infinite: bool = False, nan: bool = False, duplicates: bool = False) -> Any:
    """UTF-8, no NaN, no depth that exhausts whoever walks through it, and no key twice but with `duplicates`: what a
    person types may be corrected further on. With `infinite` there may be infinities, which JSON has not, but Python
    writes; with `nan` these and NaN are None."""
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        value = json.loads(
            text,
            object_pairs_hook=None if duplicates else _no_duplicates,
            parse_constant=_none if nan else _infinity if infinite else _no_constant,
        )
    except NotJson:
        raise
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or a number of 5,000 digits
        raise NotJson("is not JSON") from None
    if _depth(value) > DEEPEST:
        raise NotJson(f"is nested more than {DEEPEST} deep")
    return value


def parse_object(
    raw: bytes | str, *, infinite: bool = False, nan: bool = False, duplicates: bool = False
) -> dict[str, Any]:
    value = parse(raw, infinite=infinite, nan=nan, duplicates=duplicates)
    if not isinstance(value, dict):
        raise NotJson("is not a JSON object")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers may believe two different ones of the same key: neither is right."""
    table = dict(pairs)
    if len(table) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise NotJson(f'names "{show(twice, 80)}" twice')
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _none(name: str) -> None:
    return None


def _infinity(name: str) -> float:
    return float(name) if name.endswith("Infinity") else _no_constant(name)


def _depth(value: Any) -> int:
    """Level by level, because a recursive walk is what deep nesting is meant to break."""
    depth, level = 0, [value]
    while level and depth <= DEEPEST:
        depth += 1
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
    return depth
