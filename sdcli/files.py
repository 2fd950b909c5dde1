"""The few file calls through which everything is written, whole or not at all; passed as a value, so that each can be
made to fail."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sdcli.errors import CannotWrite
from sdcli.terminal import cause, show

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would turn \n into \r\n

BLOCK = 65_536

# What file systems without hard links answer (FAT, some network and phone storage).
WITHOUT_LINKS = {
    number
    for name in ("EPERM", "EACCES", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL", "EMLINK", "EXDEV")
    if (number := getattr(errno, name, None)) is not None
}
# What folders answer that cannot be synced at all; a disk that fails says EIO or ENOSPC instead.
WITHOUT_FOLDER_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EISDIR}


class Files:
    """The real calls, each of them thin."""

    def create(self, path: Path) -> int:
        """A new file to write; never an existing one, never through a link."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _BINARY, 0o666)

    def find(self, path: Path) -> None:
        """FileNotFoundError where it is gone: removed, moved, or on a disk that was taken out."""
        os.stat(path)

    def append(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | _NOFOLLOW | _BINARY)

    def write(self, file: int, data: bytes | memoryview) -> int:
        return os.write(file, data)

    def sync(self, file: int) -> None:
        os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def truncate(self, file: int, length: int) -> None:
        os.ftruncate(file, length)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """On Windows this refuses an existing target; elsewhere it replaces it."""
        os.rename(source, target)

    def replace(self, source: Path, target: Path) -> None:
        """On Windows a file that another program has open cannot be replaced; it will be closed in a moment."""
        for _ in range(20 if os.name == "nt" else 0):
            with contextlib.suppress(PermissionError):
                return os.replace(source, target)
            time.sleep(0.05)
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def make_folder(self, path: Path) -> None:
        os.makedirs(path, exist_ok=True)

    def sync_folder(self, path: Path) -> None:
        """So that a new name survives a power cut. Windows offers no such call and keeps names in a journal."""
        if os.name == "nt":
            return
        folder = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno not in WITHOUT_FOLDER_SYNC:
                raise
        finally:
            os.close(folder)


class Unsynced(Files):
    """For files that are not kept: nobody waits for the disk to have them."""

    def sync(self, file: int) -> None: ...

    def sync_folder(self, path: Path) -> None: ...


REAL, UNSYNCED = Files(), Unsynced()


def write_whole(files: Files, file: int, data: bytes) -> None:
    """All of `data`: one write may take only part of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[files.write(file, rest) :]


def write_new(files: Files, path: Path, pieces: Iterable[bytes], *, sync: bool = True) -> None:
    """A new, whole, synced file, or none: what was half-written is removed."""
    file = files.create(path)
    try:
        try:
            for block in _blocks(pieces):
                write_whole(files, file, block)
            if sync:
                files.sync(file)
        finally:
            files.close(file)
    except BaseException:
        discard(files, path)
        raise


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Small pieces joined, so that a long text is not one system call a line."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= BLOCK:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


def discard(files: Files, path: Path) -> None:
    """Remove a temporary file if that is possible at all."""
    with contextlib.suppress(OSError):
        files.remove(path)


def publish(files: Files, part: Path, final: Path, *, overwrite: bool) -> None:
    """Give the whole file `part` its name. Without `overwrite` an existing `final` is FileExistsError."""
    if overwrite:
        files.replace(part, final)
        return
    if os.name == "nt":
        files.rename(part, final)
        return
    try:
        files.link(part, final)
    except FileExistsError:
        raise
    except (OSError, AttributeError, NotImplementedError) as error:  # AttributeError: a Python built without os.link
        if isinstance(error, OSError) and error.errno not in WITHOUT_LINKS:
            raise
        _claim_and_replace(files, part, final)
        return
    discard(files, part)


def _claim_and_replace(files: Files, part: Path, final: Path) -> None:
    """Where links do not exist: the name is taken with an empty file of ours, then the whole file replaces that."""
    files.close(files.create(final))
    try:
        files.replace(part, final)
    except BaseException:
        discard(files, final)
        raise


def replace_whole(files: Files, path: Path, pieces: Iterable[bytes], *, sync: bool = True, mode: int = 0) -> None:
    """`path` is the old file or the new one, never half of either; a link is replaced, wherever it leads.

    Without `sync` a power cut may lose both, acceptable only for what can be rebuilt. `mode` are its permissions,
    if not those of any new file.
    """
    part = path.with_name(f".{path.name[:40]}.{os.urandom(4).hex()}.part")
    write_new(files, part, pieces, sync=sync)
    try:
        if mode:
            os.chmod(part, mode)
        files.replace(part, path)
    except BaseException:
        discard(files, part)
        raise
    if sync:
        files.sync_folder(path.parent)


def save(path: Path, text: str, *, hint: str, make_folder: bool = True) -> None:
    """A text file that people move and protect as they like: a symbolic link is followed, permissions are kept."""
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if make_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0
        replace_whole(REAL, target, [text.encode("utf-8", "backslashreplace")], mode=mode)
    except OSError as error:
        raise cannot_write(path, error, hint=hint) from None


def cannot_write(path: Path | str, error: OSError, *, done: str = "", hint: str = "") -> CannotWrite:
    return CannotWrite(
        f"could not write {show(path)}: {cause(error)}",
        done=done,
        hint=hint or "-o ~/sdcli-images   (or another folder you may write to)",
        path=str(path),
        errno=errno.errorcode.get(error.errno or 0, ""),
    )
