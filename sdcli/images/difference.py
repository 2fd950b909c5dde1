"""How far the pixels of two images of one size are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

_AT_ONCE = 1 << 22  # values: large images are compared in little memory


@dataclass(frozen=True)
class Difference:
    """`largest` of 255, the `share` of values that differ, and `psnr` in dB: None where every value is the same."""

    largest: int
    share: float
    psnr: float | None

    @property
    def identical(self) -> bool:
        return self.largest == 0


def compare(a: bytes, b: bytes) -> Difference:
    """Of RGB bytes, row by row."""
    if len(a) != len(b):
        raise ValueError("images of two sizes have no values in common")
    if a == b:
        return Difference(largest=0, share=0.0, psnr=None)
    counts = _distances(a, b)
    squares = sum(distance * distance * count for distance, count in enumerate(counts))
    return Difference(
        largest=max(distance for distance, count in enumerate(counts) if count), share=1 - counts[0] / len(a),
        psnr=10 * math.log10(255 * 255 * len(a) / squares),
    )  # fmt: skip


def _distances(a: bytes, b: bytes) -> list[int]:
    """How many values are apart by 0, 1 … 255."""
    import numpy

    counts = numpy.zeros(256, "i8")
    for start in range(0, len(a), _AT_ONCE):
        ours, theirs = (numpy.frombuffer(each[start : start + _AT_ONCE], "u1").astype("i2") for each in (a, b))
        counts += numpy.bincount(numpy.abs(ours - theirs), minlength=256)
    return [int(count) for count in counts]
