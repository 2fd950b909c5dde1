"""How far one case's first image is from the reference's."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

# dB below which a difference is more than rounding: of the same number type in another order, or of another type.
SAME_TYPE, OTHER_TYPE = 35.0, 30.0


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """`psnr` in dB, None where every byte is the same; `lossy`: further apart than rounding explains. All None if the
    two were not compared."""

    pixel_sha256: str = ""
    psnr: float | None = None
    identical: bool | None = None
    latent_mean_abs: float | None = None
    lossy: bool | None = None


@functools.lru_cache(maxsize=128)
def compare(
    pixels: Path, reference: Path, latents: Path | None, reference_latents: Path | None, *, same_type: bool
) -> Likeness | None:
    """None if the images differ in size."""
    ours, theirs = pixels.read_bytes(), reference.read_bytes()
    if len(ours) != len(theirs):
        return None
    decibels = None if ours == theirs else psnr(ours, theirs)
    apart = mean_abs(latents, reference_latents) if latents and reference_latents else None
    return Likeness(
        identical=decibels is None, psnr=decibels, latent_mean_abs=0.0 if decibels is None and apart is None else apart,
        lossy=decibels is not None and decibels < (SAME_TYPE if same_type else OTHER_TYPE),
    )  # fmt: skip


def psnr(ours: bytes, theirs: bytes) -> float:
    """Of RGB bytes, one after the other."""
    import numpy

    apart = numpy.frombuffer(ours, "u1").astype("i8") - numpy.frombuffer(theirs, "u1")
    total = int(apart @ apart)
    return 10 * math.log10(255 * 255 * len(ours) / total) if total else math.inf


def mean_abs(ours: Path, theirs: Path) -> float | None:
    """Of fp32 values as this machine wrote them."""
    import numpy

    a, b = (numpy.fromfile(path, "f4").astype("f8") for path in (ours, theirs))
    if len(a) != len(b) or not len(a):
        return None
    with numpy.errstate(all="ignore"):  # of broken latents, whose distance is not finite
        apart = float(numpy.abs(a - b).mean())
    return apart if math.isfinite(apart) else None
