"""Tensors that are still in their files: located, renamed and sliced without reading, then read one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from torch import Tensor

from sdcli.errors import BadFile
from sdcli.models.headers import read_header
from sdcli.terminal import show

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip
BUFFER = 16 << 20  # bytes read at once: what loading needs on top of the weights


@dataclass(frozen=True)
class Piece:
    """A tensor in a file, and what is done to it once it is read.

    diffusers' converters only rename, slice and transpose; given these instead of tensors they do so without reading.
    """

    file: str
    offset: int
    stored: Tensor  # on the meta device: shape and dtype as in the file
    wanted: Tensor  # the same after `steps`
    steps: tuple[Callable[[Tensor], Tensor], ...] = ()

    @property
    def shape(self) -> torch.Size:
        return self.wanted.shape

    @property
    def ndim(self) -> int:
        return self.wanted.ndim

    @property
    def T(self) -> Piece:
        return self._then(lambda tensor: tensor.T)

    def __getitem__(self, index: Any) -> Piece:
        return self._then(lambda tensor: tensor[index])

    def contiguous(self) -> Piece:
        return self

    def clone(self) -> Piece:
        return self

    def detach(self) -> Piece:
        return self

    def _then(self, step: Callable[[Tensor], Tensor]) -> Piece:
        return Piece(self.file, self.offset, self.stored, step(self.wanted), (*self.steps, step))


def pieces(files: Iterable[str]) -> dict[str, Piece]:
    """Everything in these safetensors files, by name; only the headers are read and checked."""
    found: dict[str, Piece] = {}
    for file in files:
        header = read_header(Path(file))
        for name, tensor in header.tensors.items():
            meta = torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype], device="meta")
            found[name] = Piece(file, header.data_start + tensor.begin, meta, meta)
    return found


class Reader:
    """Reads pieces into tensors through one small buffer, so that no page of a file counts as this process's."""

    def __init__(self) -> None:
        self._streams: dict[str, IO[bytes]] = {}
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        self._buffer = bytearray()

    def read(self, piece: Piece, into: Tensor) -> None:
        """The piece's values, in `into`'s dtype, memory format and device."""
        whole = piece.stored
        if not piece.steps and into.dtype == whole.dtype and into.device.type == "cpu" and into.is_contiguous():
            self._fill(piece, 0, into.reshape(-1).view(torch.uint8).numpy().data)
        elif piece.steps or whole.ndim == 0:
            source = self._taken(piece, 0, tuple(whole.shape))
            for step in piece.steps:
                source = step(source)
            into.copy_(source)
        else:
            row = math.prod(whole.shape[1:]) * whole.element_size()
            rows = max(1, BUFFER // max(row, 1))
            for first in range(0, whole.shape[0], rows):
                count = min(rows, whole.shape[0] - first)
                into[first : first + count].copy_(self._taken(piece, first * row, (count, *whole.shape[1:])))

    def _taken(self, piece: Piece, start: int, shape: tuple[int, ...]) -> Tensor:
        numbers = math.prod(shape)
        length = numbers * piece.stored.element_size()
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        self._fill(piece, start, memoryview(self._buffer)[:length])
        if not numbers:
            return torch.empty(shape, dtype=piece.stored.dtype)
        return torch.frombuffer(self._buffer, dtype=piece.stored.dtype, count=numbers).reshape(shape)

    def _fill(self, piece: Piece, start: int, target: memoryview) -> None:
        stream = self._streams.get(piece.file)
        if stream is None:
            stream = self._streams[piece.file] = open(piece.file, "rb", buffering=0)  # noqa: SIM115
        stream.seek(piece.offset + start)
        while len(target):
            count = stream.readinto(target)  # type: ignore[attr-defined]
            if not count:
                raise BadFile(f"{show(piece.file)} ends too early", hint="get the file again, or another")
            target = target[count:]
