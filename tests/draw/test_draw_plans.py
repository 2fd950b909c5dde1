"""Equal setup, equal pixels, over random plans: a part of `scripts/prove plans`."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.proofs import plans

PLANS = range(3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    plans.make(folder)
    return folder


@pytest.mark.parametrize("number", PLANS)
def test_a_random_plan_draws_the_same_pixels_in_every_way(
    models: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.chdir(models)
    seen = plans.with_half(plans.judged(number, small=True), plans.half(number, small=True))
    assert not seen.wrong, f"{seen.wrong}: {seen.case}"
    assert set(seen.equal) == set(plans.CLAIMS)
    assert len(set(seen.images.values())) == len(seen.images) > 1
    assert seen.moved.largest <= 2, seen.case
