"""Every way of writing images, with calls that fail and at deaths: short forms of `scripts/prove faults`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from record_samples import plan

from scripts.proofs import faults
from scripts.proofs.faults import WAYS


@pytest.mark.parametrize("name", WAYS)
def test_a_call_that_fails_loses_nothing_and_the_run_can_be_resumed(tmp_path: Path, name: str) -> None:
    of = plan(images=2)
    every = [one for one in faults.faults(tmp_path, of, ("EMFILE",), (name,)) if one.lasting]
    assert {fault.kind for fault in every} >= {"create", "write", "sync", "close", "replace", "sync_folder"}
    for number, fault in enumerate(every):
        assert (fault, faults.failed(fault, of, tmp_path / str(number))) == (fault, [])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", WAYS)
def test_a_process_that_is_killed_at_any_call_loses_nothing_and_the_run_can_be_resumed(
    tmp_path: Path, name: str
) -> None:
    ended = list(faults.deaths(WAYS[name], plan(images=2), tmp_path, (True,)))
    assert len(ended) > 15 and [wrong for wrong in ended if wrong] == []
