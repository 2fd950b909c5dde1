"""Model files read from end to end: hashes compared with the hub's, non-finite numbers, missing tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sdcli import reading
from sdcli.errors import SdcliError, Unsafe
from sdcli.models import expected, hub_cache
from sdcli.models.headers import Header, Tensor, read_header
from sdcli.models.model import Model

PIECE = 8 << 20
MOST_NAMED = 20
# Of each float format: its unsigned integer, and the exponent bits that are all set in infinities and NaN.
_FLOATS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),  # it has no infinity, and one NaN of each sign
}


@dataclass(frozen=True, kw_only=True)
class NotFiniteTensor:
    name: str
    count: int
    of: int


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    path: str
    bytes: int
    sha256: str
    expected: str | None  # the hub's sha256; null where unknown
    not_finite: tuple[NotFiniteTensor, ...] = ()
    error: str | None = None

    @property
    def sound(self) -> bool:
        return self.error is None and not self.not_finite and self.expected in (None, self.sha256)


@dataclass(frozen=True, kw_only=True)
class Check:
    """`missing` and `mismatched` are tensors that differ from the configs: "unet: conv_out.weight", at most 20."""

    schema: str = "sdcli.models-check/1"
    name: str
    sound: bool
    files: tuple[FileCheck, ...]
    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """Progress, in bytes of all files."""

    file: str
    done: int
    total: int


def files_of(model: Model) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(Path(file) for part in model.components.values() for file in part.files))


def check(name: str, files: Sequence[Path], model: Model | None = None) -> Generator[Reading, None, Check]:
    """Yields Readings and returns the Check. Every byte is read once."""
    sizes = [path.stat().st_size for path in files]
    total, done = sum(sizes), 0
    checks: list[FileCheck] = []
    for path, size in zip(files, sizes, strict=True):
        checks.append((yield from _file(path, done, total)))
        done += size
    missing, mismatched = _compare_with_configs(model) if model is not None else ((), ())
    sound = all(one.sound for one in checks) and not missing and not mismatched
    return Check(name=name, sound=sound, files=tuple(checks), missing=missing, mismatched=mismatched)


def _file(path: Path, before: int, total: int) -> Generator[Reading, None, FileCheck]:
    state = hashlib.sha256()
    faults: list[NotFiniteTensor] = []
    error: str | None = None
    size = path.stat().st_size
    try:
        header = read_header(path)
    except Unsafe:  # could run code: not opened any further
        raise
    except SdcliError as refused:  # its hash may still be useful
        header, error = None, refused.message
    try:
        with reading.opened(path) as file:
            for value in _values(file, header, state):
                if isinstance(value, NotFiniteTensor):
                    faults.append(value)
                else:
                    yield Reading(path.name, before + value, total)
    except OSError as refused:
        raise reading.cannot_read(path, refused) from None
    return FileCheck(
        path=str(path), bytes=size, sha256=state.hexdigest(), expected=hub_cache.expected_sha256(path),
        not_finite=tuple(faults), error=error,
    )  # fmt: skip


def _values(file: BinaryIO, header: Header | None, state: Any) -> Iterator[int | NotFiniteTensor]:
    """The file in order, hashed meanwhile: its header, then each tensor, then the rest."""
    position = 0
    if header is not None:
        head = file.read(header.data_start)
        state.update(head)
        position = len(head)
        for name, tensor in sorted(header.tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
            count = 0
            for piece in _pieces(file, tensor.size):
                state.update(piece)
                count += not_finite(piece, tensor.dtype)
                position += len(piece)
                yield position
            if count:
                yield NotFiniteTensor(name=name, count=count, of=tensor.parameters)
    while piece := file.read(PIECE):
        state.update(piece)
        position += len(piece)
        yield position


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0:
        piece = file.read(min(PIECE, size))
        if not piece:
            return
        size -= len(piece)
        yield piece


def not_finite(raw: bytes, dtype: str) -> int:
    """How many of these numbers are infinite or NaN."""
    if dtype not in _FLOATS:
        return 0
    import numpy

    unsigned, exponent = _FLOATS[dtype]
    bits = numpy.frombuffer(raw, dtype=unsigned)
    mask = bits.dtype.type(exponent)
    return int(numpy.count_nonzero((bits & mask) == mask))


# --- what its configs describe


def _compare_with_configs(model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    missing: list[str] = []
    other: list[str] = []
    for name, part in model.components.items():
        tensors: dict[str, Tensor] = {}
        for file in part.files:
            tensors.update(read_header(Path(file)).tensors)
        lacks, differs = expected.lacking(name, part.config, tensors)
        missing += (f"{name}: {one}" for one in lacks)
        other += (f"{name}: {one}" for one in differs)
    return tuple(missing[:MOST_NAMED]), tuple(other[:MOST_NAMED])
