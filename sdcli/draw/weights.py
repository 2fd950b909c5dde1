"""Tensors still in their files: located by the headers, then read one at a time into memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch
from torch import Tensor

from sdcli.errors import BadFile
from sdcli.models.headers import read_header
from sdcli.models.keys import Origin, Shape
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
    """A tensor in a file, or some of its rows."""

    file: str
    offset: int
    shape: Shape  # once read
    dtype: torch.dtype  # in the file
    transposed: bool = False  # in the file

    def part(self, origin: Origin) -> Piece:
        """What is made of this tensor under diffusers' name."""
        first, shape = origin.selection(self.shape)
        start = self.offset + first * math.prod(self.shape[1:]) * self.dtype.itemsize
        return Piece(self.file, start, shape, self.dtype, origin.transposed)


def pieces(files: Iterable[str]) -> dict[str, Piece]:
    """Everything in these safetensors files, by name; only the headers are read and checked."""
    stored: dict[str, Piece] = {}
    for file in files:
        header = read_header(Path(file))
        for name, tensor in header.tensors.items():
            stored[name] = Piece(file, header.data_start + tensor.begin, tensor.shape, DTYPES[tensor.dtype])
    return stored


class Reader:
    """Reads pieces into tensors through one small buffer, so that no page of a file counts as this process's memory."""

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
        shape = piece.shape
        if piece.transposed:
            into.copy_(self._taken(piece, 0, shape[::-1]).T)
        elif into.dtype == piece.dtype and into.device.type == "cpu" and into.is_contiguous():
            self._fill(piece, 0, into.reshape(-1).view(torch.uint8).numpy().data)
        elif not shape:
            into.copy_(self._taken(piece, 0, shape))
        else:
            row = math.prod(shape[1:]) * piece.dtype.itemsize
            rows = max(1, BUFFER // max(row, 1))
            for first in range(0, shape[0], rows):
                count = min(rows, shape[0] - first)
                into[first : first + count].copy_(self._taken(piece, first * row, (count, *shape[1:])))

    def _taken(self, piece: Piece, start: int, shape: tuple[int, ...]) -> Tensor:
        numbers = math.prod(shape)
        length = numbers * piece.dtype.itemsize
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        self._fill(piece, start, memoryview(self._buffer)[:length])
        if not numbers:
            return torch.empty(shape, dtype=piece.dtype)
        return torch.frombuffer(self._buffer, dtype=piece.dtype, count=numbers).reshape(shape)

    def _fill(self, piece: Piece, start: int, target: memoryview) -> None:
        stream = self._streams.get(piece.file)
        if stream is None:
            stream = self._streams[piece.file] = open(piece.file, "rb", buffering=0)  # noqa: SIM115
        stream.seek(piece.offset + start)
        while len(target):
            count = stream.readinto(target)  # type: ignore[attr-defined]
            if not count:
                raise BadFile(f"{show(piece.file)} ends too early")
            target = target[count:]
