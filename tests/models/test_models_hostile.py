"""Models that would run code: a part of `scripts/prove hostile`, from each of its kinds."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from scripts.proofs import hostile


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_would_run_code_is_refused_or_has_no_part_in_the_image() -> None:
    ends = hostile.tried(one_of=8)
    assert len(ends) >= 20 and len({kind for kind, _, _ in ends}) >= 5
    assert [end for end in ends if end[2]] == []


def test_the_payloads_do_run_where_they_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for thing in (hostile.Opens(), hostile.Shell(), hostile.Executes()):
        opened = pickle.loads(pickle.dumps(thing))
        opened.close() if hasattr(opened, "close") else None
        (tmp_path / hostile.CANARY).unlink()
