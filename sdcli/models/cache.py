"""Hashes of model files, computed once and remembered by path, size and modification time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from sdcli import reading
from sdcli.errors import BadFile, ModelMissing
from sdcli.terminal import show

_AT_ONCE = 4 << 20


class Memory(Protocol):
    """Where hashes are remembered. One that keeps nothing costs only time."""

    def read(self) -> dict[str, Any]: ...

    def update(self, key: str, change: Callable[[Any], Any]) -> bool: ...


def sha256_of(path: Path, memory: Memory | None = None) -> str:
    """The file's sha256 in hex. Gigabytes take seconds, so ask only where it is needed."""
    path = path.absolute()
    try:
        before = path.stat()
        stamp = [before.st_size, before.st_mtime_ns]
        if memory is not None:
            known = _remembered(memory.read().get(str(path)), stamp)
            if known is not None:
                return known
        found = _hash(path)
        after = path.stat()
    except FileNotFoundError:
        raise ModelMissing(f"there is no file {show(path)}", hint="sdcli doctor") from None
    except OSError as error:
        raise BadFile(f"{show(path)} cannot be read: {show(error.strerror or error)}", hint="sdcli doctor") from None
    if memory is not None and [after.st_size, after.st_mtime_ns] == stamp:  # else it changed while it was read
        memory.update(str(path), lambda _: {"sha256": found, "stamp": stamp})
    return found


def _remembered(entry: Any, stamp: list[int]) -> str | None:
    if not isinstance(entry, dict) or entry.get("stamp") != stamp:
        return None
    found = entry.get("sha256")
    return found if isinstance(found, str) and len(found) == 64 else None


def _hash(path: Path) -> str:
    state = hashlib.sha256()
    buffer = memoryview(bytearray(_AT_ONCE))
    with reading.opened(path) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()
