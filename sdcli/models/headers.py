"""A .safetensors header, read and checked before anything is mapped or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

from sdcli import reading
from sdcli.errors import ModelMissing
from sdcli.models.sniff import FIRST_BYTES, bad, sniff
from sdcli.models.sniff import LARGEST_HEADER as LARGEST_HEADER
from sdcli.terminal import disk_text, show

LARGEST_METADATA = 1 << 20
LONGEST_NAME = 512
# The fullest real header has some 10,000 tensors: one brace, two brackets and ten quotes each.
_LIKELY_SMALL, _MOST_BRACKETS, _MOST_QUOTES = 4 << 20, 1_500_000, 2_500_000
_WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
NAMES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}


class Tensor(NamedTuple):
    dtype: str  # as in the file: F16, BF16 …
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the data
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin

    @property
    def parameters(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count


class Header(NamedTuple):
    path: Path
    size: int
    data_start: int
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header, with every claim in it checked against the file. Only the header is read."""
    try:
        with reading.opened(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return read_from(file, size, path)
    except FileNotFoundError:
        raise ModelMissing(f"there is no file {show(path)}", hint="sdcli doctor") from None
    except OSError as error:
        raise reading.cannot_read(path, error) from None


def read_from(file: BinaryIO, size: int, path: Path) -> Header:
    """The same from an open file of `size` bytes, positioned at its start; `path` only names it in errors."""
    start = file.read(FIRST_BYTES)
    foreign = sniff(start, size, path)
    if foreign is not None:
        raise foreign
    length = int.from_bytes(start[:8], "little")
    if length > size - 8:
        raise bad(path, f"cut off: its header alone has {length:,} bytes, the file {size:,}")
    file.seek(8)
    table = _parse(file.read(length), path)
    metadata = _metadata(table.pop("__metadata__", {}), path)
    tensors = {name: _tensor(name, entry, path) for name, entry in table.items()}
    _check_layout(tensors, size - 8 - length, path)
    return Header(path=path, size=size, data_start=8 + length, tensors=tensors, metadata=metadata)


def length_of(start: bytes) -> int:
    """The header's size in bytes by the file's first bytes; FIRST_BYTES where they do not start a header."""
    size = 8 + int.from_bytes(start[:8], "little")
    return max(FIRST_BYTES, size) if len(start) >= 8 and size <= 8 + LARGEST_HEADER else FIRST_BYTES


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    _check_bulk(raw, path)
    try:
        return reading.parse_object(raw)
    except reading.NotJson as error:
        raise bad(path, f"damaged: its header {error}") from None


def _check_bulk(raw: bytes, path: Path) -> None:
    """Brackets and quotes become objects 25 times their size: too many are refused before parsing."""
    if len(raw) <= _LIKELY_SMALL:
        return
    if raw.count(b"{") + raw.count(b"[") > _MOST_BRACKETS or raw.count(b'"') > _MOST_QUOTES:
        raise bad(path, "damaged: its header lists more than any model has")


def _metadata(table: Any, path: Path) -> Mapping[str, str]:
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise bad(path, "damaged: its metadata is not a table of strings")
    if sum(len(k) + len(v) for k, v in table.items()) > LARGEST_METADATA:
        raise bad(path, "damaged: more than 1 MiB of metadata")
    return table


def _tensor(name: str, entry: Any, path: Path) -> Tensor:
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise bad(path, f'damaged: "{show(name, 80)}" is not a valid tensor name')
    where = f'tensor "{show(name, 80)}"'
    if not isinstance(entry, dict):
        raise bad(path, f"damaged: {where} is not a table")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    width = _WIDTHS.get(dtype) if isinstance(dtype, str) else None
    if not isinstance(dtype, str):
        raise bad(path, f"damaged: {where} has no dtype")
    if width is None:
        raise bad(path, f"not readable: {where} has the dtype {show(dtype, 20)}, which sdcli does not support")
    if not _whole_numbers(shape) or len(shape) > 16:
        raise bad(path, f"damaged: {where} has an invalid shape")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise bad(path, f"damaged: {where} has invalid data_offsets")
    tensor = Tensor(dtype, tuple(shape), offsets[0], offsets[1])
    if tensor.parameters * width != tensor.size:
        raise bad(path, f"damaged: {where} has {tensor.size} bytes, its shape needs {tensor.parameters * width}")
    return tensor


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**48 for n in value
    )


def _check_layout(tensors: Mapping[str, Tensor], data: int, path: Path) -> None:
    """No overlaps, no gaps, and the data ends where the file does."""
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            fault = "overlaps another" if tensor.begin < position else "leaves a gap before it"
            raise bad(path, f'damaged: tensor "{show(name, 80)}" {fault}')
        position = tensor.end
    if position > data:
        raise bad(path, f"cut off: it has {data:,} of {position:,} bytes of data")
    if position < data:
        raise bad(path, f"damaged: {disk_text(data - position)} after its last tensor")
