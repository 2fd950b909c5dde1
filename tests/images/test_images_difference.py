"""How far two images are apart: beside the same sums done without sdcli."""

from __future__ import annotations

import math

import numpy
import pytest

from sdcli.images import difference
from sdcli.images.difference import Difference, compare


def test_equal_bytes_are_identical_and_have_no_psnr() -> None:
    assert compare(b"", b"") == compare(b"\x00\x80\xff", b"\x00\x80\xff") == Difference(largest=0, share=0.0, psnr=None)
    assert compare(b"\x00\x80\xff", b"\x00\x80\xff").identical


def test_the_direction_of_a_difference_does_not_matter() -> None:
    assert compare(b"\x00\xff\x07", b"\xff\x00\x07") == compare(b"\xff\x00\x07", b"\x00\xff\x07")
    assert compare(b"\x00\xff\x07\x07", b"\xff\x00\x07\x07") == Difference(
        largest=255, share=0.5, psnr=20 * math.log10(2) / 2
    )


def test_one_value_of_a_million_counts() -> None:
    a = bytes(1_000_000)
    found = compare(a, a[:-1] + b"\x01")
    assert (found.largest, found.share) == (1, pytest.approx(1e-6, rel=1e-9))
    assert found.psnr == pytest.approx(10 * math.log10(255 * 255 * 1e6))
    assert not found.identical


def test_what_is_compared_piece_by_piece_is_what_numpy_says_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference, "_AT_ONCE", 1000)
    random = numpy.random.default_rng(3)
    a = random.integers(0, 256, 30_001, dtype="u1")
    b = numpy.where(random.random(len(a)) < 0.3, random.integers(0, 256, len(a), dtype="u1"), a)
    apart = numpy.abs(a.astype(float) - b)
    found = compare(a.tobytes(), b.astype("u1").tobytes())
    assert found.largest == apart.max()
    assert found.share == pytest.approx((apart > 0).mean(), rel=1e-12)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / (apart**2).mean()), rel=1e-12)


def test_two_sizes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        compare(b"12", b"123")
