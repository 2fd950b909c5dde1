"""Values from a safetensors file, a piece at a time, in any of its float formats; without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy

PIECE = 1 << 24  # bytes read at a time


def decoded(raw: bytes, dtype: str) -> Any:
    """Little-endian bytes as an array of floats; dtype as in the file (F16, BF16 …)."""
    import numpy

    simple = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "BOOL": "u1", "I16": "<i2",
              "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8"}  # fmt: skip
    if dtype in simple:
        values = numpy.frombuffer(raw, dtype=simple[dtype])
        return values if dtype == "F64" else values.astype(numpy.float32)
    if dtype == "BF16":
        return (numpy.frombuffer(raw, dtype="<u2").astype(numpy.uint32) << 16).view(numpy.float32)
    if dtype in ("F8_E4M3", "F8_E5M2"):
        table = numpy.array(_eights(dtype == "F8_E4M3"), dtype=numpy.float32)
        eights: numpy.ndarray[Any, Any] = table[numpy.frombuffer(raw, dtype=numpy.uint8)]
        return eights
    raise ValueError(dtype)


def _eights(four_three: bool) -> list[float]:
    """The 256 values of an 8-bit float: E4M3 has no infinity, E5M2 is a short half."""
    exponents, bias = (4, 7) if four_three else (5, 15)
    mantissas = 7 - exponents
    values = []
    for code in range(256):
        sign = -1.0 if code & 0x80 else 1.0
        exponent, mantissa = (code & 0x7F) >> mantissas, code & ((1 << mantissas) - 1)
        top = exponent == (1 << exponents) - 1
        if top and four_three and mantissa == (1 << mantissas) - 1:
            values.append(math.nan)
        elif top and not four_three:
            values.append(sign * math.inf if mantissa == 0 else math.nan)
        elif exponent:
            values.append(sign * math.ldexp(1 + mantissa / (1 << mantissas), exponent - bias))
        else:
            values.append(sign * math.ldexp(mantissa, 1 - bias - mantissas))
    return values


def scalar(file: BinaryIO, start: int, end: int, dtype: str) -> float | None:
    """A single number, such as a LoRA's alpha; None for anything longer."""
    if not 0 < end - start <= 8:
        return None
    file.seek(start)
    raw = file.read(end - start)
    try:
        values = decoded(raw, dtype)
    except ValueError:
        return None
    return float(values[0]) if len(values) == 1 else None
