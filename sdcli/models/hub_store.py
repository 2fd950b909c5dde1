"""Writing into the Hugging Face cache: blobs by hash, snapshots by commit, refs by branch, as every tool keeps it.

A blob appears under its name only when its bytes are known to be right; until then it is a file beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sdcli.models.hub_files import File

_AT_ONCE = 4 << 20


@dataclass(frozen=True)
class Place:
    """One repository's folder in the cache."""

    cache: Path
    repository: str

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.repository.replace('/', '--')}"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, file: File) -> Path:
        return self.folder / "blobs" / file.hash

    def partial(self, file: File) -> Path:
        return self.folder / "blobs" / f"{file.hash}.sdcli.incomplete"

    def lock(self, file: File) -> Path:
        return self.cache / ".locks" / self.folder.name / f"{file.hash}.lock"


def is_here(place: Place, commit: str, file: File) -> bool:
    """In the snapshot, or as a blob that only lacks its name there."""
    return any(_size(path) == file.size for path in (place.snapshot(commit) / file.path, place.blob(file)))


def kept(place: Place, file: File) -> int:
    """Bytes of an earlier attempt."""
    return min(_size(place.partial(file)), file.size)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@dataclass
class Hash:
    """The hash the hub gives for this file, fed as bytes arrive."""

    file: File
    state: Any

    def right(self) -> bool:
        return bool(self.state.hexdigest() == self.file.hash)


def new_hash(file: File) -> Hash:
    if file.sha256 is not None:
        return Hash(file, hashlib.sha256())
    # Small files have git's own name: sha1 over a header and the bytes. It is what the hub tells, and all it tells.
    state = hashlib.sha1(usedforsecurity=False)
    state.update(b"blob %d\0" % file.size)
    return Hash(file, state)


@contextlib.contextmanager
def partial(place: Place, file: File) -> Iterator[IO[bytes]]:
    """The incomplete file, open for reading and writing; made where it is not."""
    path = place.partial(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    with path.open("r+b", buffering=0) as out:
        yield out


def take_up(out: IO[bytes], file: File, state: Hash) -> int:
    """Hash what an earlier attempt left, so that only the rest is fetched. Gives how much that is."""
    size = os.fstat(out.fileno()).st_size
    if size > file.size:
        start_over(out)
        return 0
    left = size
    while left > 0:
        chunk = out.read(min(_AT_ONCE, left))
        if not chunk:
            break
        state.state.update(chunk)
        left -= len(chunk)
    return size - left


def start_over(out: IO[bytes]) -> None:
    out.seek(0)
    out.truncate()


def write(out: IO[bytes], chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[out.write(view) :]


def publish(place: Place, file: File, out: IO[bytes]) -> None:
    """The bytes are right: on the disk with them, then under their name."""
    os.fsync(out.fileno())
    out.close()  # Windows renames no open file
    os.replace(place.partial(file), place.blob(file))


def discard(place: Place, file: File) -> None:
    place.partial(file).unlink(missing_ok=True)


def link(place: Place, commit: str, file: File) -> None:
    """The file's name in the snapshot: a relative link to its blob; where links cannot be, the blob itself."""
    pointer, blob = place.snapshot(commit) / file.path, place.blob(file)
    if _size(blob) != file.size:
        return  # the pointer is the file
    target = os.path.relpath(blob, pointer.parent)
    if pointer.is_symlink() and os.readlink(pointer) == target:
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_name(f"{pointer.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        os.symlink(target, temporary)
    except (OSError, NotImplementedError):
        os.replace(blob, pointer)
        return
    os.replace(temporary, pointer)


def refer(place: Place, revision: str, commit: str) -> None:
    """That this branch or tag was this commit when it was asked for."""
    if revision == commit or not re.fullmatch(r"\w[\w.\-/]{0,199}", revision, re.ASCII) or ".." in revision:
        return
    path = place.folder / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    temporary.write_text(commit, encoding="ascii")
    os.replace(temporary, path)
