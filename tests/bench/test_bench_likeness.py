"""How far two images are apart, against the plain formulas."""

from __future__ import annotations

import math
import random
from array import array
from pathlib import Path

import pytest

from sdcli.bench import likeness


def formula_psnr(ours: bytes, theirs: bytes) -> float:
    total = sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))
    return 10 * math.log10(255 * 255 * len(ours) / total)


@pytest.mark.parametrize("reach", (1, 20, 255))
def test_psnr_is_the_formulas_on_random_images(reach: int) -> None:
    draw = random.Random(reach)
    for _ in range(5):
        ours = draw.randbytes(3 * 40 * 30)
        theirs = bytes(min(255, max(0, value + draw.randint(-reach, reach))) for value in ours)
        assert likeness.psnr(ours, theirs) == pytest.approx(formula_psnr(ours, theirs), rel=1e-9)
    assert likeness.psnr(ours, ours) == math.inf
    assert likeness.psnr(b"\x00" * 300, b"\xff" * 300) == 0  # the farthest that bytes can be


def test_latents_are_apart_by_the_mean_of_their_differences(tmp_path: Path) -> None:
    draw = random.Random(1)
    ours = array("f", [draw.gauss(0, 1) for _ in range(4 * 64 * 64)])
    theirs = array("f", [value + draw.gauss(0, 0.01) for value in ours])
    for name, values in (("ours", ours), ("theirs", theirs), ("short", ours[:8]), ("empty", array("f"))):
        (tmp_path / name).write_bytes(values.tobytes())
    mean = math.fsum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
    assert likeness.mean_abs(tmp_path / "ours", tmp_path / "theirs") == pytest.approx(mean, rel=1e-9)
    assert likeness.mean_abs(tmp_path / "ours", tmp_path / "short") is None
    assert likeness.mean_abs(tmp_path / "empty", tmp_path / "empty") is None


@pytest.mark.parametrize("broken", (math.nan, math.inf))
def test_broken_latents_have_no_distance(broken: float, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).write_bytes(array("f", [1.0, broken]).tobytes())
    assert likeness.mean_abs(tmp_path / "ours", tmp_path / "theirs") is None
