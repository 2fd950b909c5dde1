"""Hashes of model files, computed once and remembered by path, size and modification time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from sdcli import reading
from sdcli.errors import ModelMissing
from sdcli.terminal import show

_AT_ONCE = 4 << 20


class HashStore(Protocol):
    """Where hashes are remembered. One that stores nothing costs only time."""

    def read(self) -> dict[str, Any]: ...

    def update(self, key: str, change: Callable[[Any], Any]) -> bool: ...


def sha256_of(path: Path, store: HashStore | None = None, *, start: int = 0) -> str:
    """The file's sha256 in hex, or that of its tensors, which begin at `start`. Gigabytes take seconds, so ask only
    where it is needed."""
    path = path.absolute()
    key = f"{path}\ntensors" if start else str(path)
    try:
        stamp = _stamp(path)
        remembered = _remembered(store, key, stamp)
        if remembered is not None:
            return remembered
        sha256 = digest(path, start)
        changed = _stamp(path) != stamp  # while it was read
    except FileNotFoundError:
        raise ModelMissing(f"there is no file {show(path)}", hint="sdcli doctor") from None
    except OSError as error:
        raise reading.cannot_read(path, error) from None
    if store is not None and not changed:
        store.update(key, lambda _: {"sha256": sha256, "stamp": stamp})
    return sha256


def known_sha256(path: Path, store: HashStore) -> str | None:
    """The same, where it is remembered."""
    path = path.absolute()
    try:
        return _remembered(store, str(path), _stamp(path))
    except OSError:
        return None


def sha256_of_all(files: Iterable[str], store: HashStore | None = None) -> str:
    """A component's: its file's, or one of all its files' hashes."""
    hashes = [sha256_of(Path(file), store) for file in files]
    if len(hashes) == 1:
        return hashes[0]
    from hashlib import sha256  # slow to load

    return sha256("".join(hashes).encode()).hexdigest()


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _remembered(store: HashStore | None, key: str, stamp: list[int]) -> str | None:
    entry = store.read().get(key) if store is not None else None
    if not isinstance(entry, dict) or entry.get("stamp") != stamp:
        return None
    sha256 = entry.get("sha256")
    return sha256 if isinstance(sha256, str) and len(sha256) == 64 else None


def digest(path: Path, start: int = 0, state: Any = None) -> str:
    """The hash of the file from `start` on, fed to `state`; its sha256 without one."""
    import hashlib  # slow to load, and a file's hash is computed once

    state = hashlib.sha256() if state is None else state
    buffer = memoryview(bytearray(_AT_ONCE))
    with reading.opened(path) as file:
        file.seek(start)
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return str(state.hexdigest())
