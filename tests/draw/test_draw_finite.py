"""Values that are not finite, from inside a model: a part of `scripts/prove finite`."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.proofs import finite
from scripts.proofs.finite import Case


@pytest.mark.parametrize(
    ("place", "seed", "end"),
    [
        ("the text encoder", 1, "failed and failed"),
        ("the UNet's middle", 2, "failed and failed"),
        ("a block on the way up", 5, "failed and saved"),
        ("the decoder's last layer", 1, "saved and saved"),
    ],
)
def test_no_image_is_saved_that_is_not_finite(
    tmp_path: Path, tiny_folders: dict[str, Path], place: str, seed: int, end: str
) -> None:
    case = Case(place, "bf16", seed)
    assert finite.judged(case, finite.plan_of(tiny_folders["sd15"], case.dtype), tmp_path) == (end, [])
