"""Runs that are killed, interrupted, and beside each other: short forms of `scripts/prove runs`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.proofs import runs
from scripts.proofs.runs import Lab

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return runs.lab(tmp_path)


def test_a_run_that_is_killed_at_any_moment_loses_no_image_and_resuming_draws_the_rest(lab: Lab) -> None:
    ends = runs.repeated(lab, 60, 11, runs.killed)
    assert [end.wrong for end in ends if end.wrong] == []
    assert sum(end.images for end in ends) > 100 and sum(end.resumed for end in ends) > 40


def test_a_run_that_is_interrupted_at_any_moment_says_so_and_can_be_resumed(lab: Lab) -> None:
    ends = runs.repeated(lab, 8, 12, runs.interrupted)
    assert [end.wrong for end in ends if end.wrong] == [] and sum(end.resumed for end in ends) > 3


def test_sixteen_runs_in_one_folder_at_once_lose_and_replace_nothing(lab: Lab) -> None:
    ends = runs.repeated(lab, 1, 13, lambda lab, folder, _: runs.beside(lab, folder))
    assert [end.wrong for end in ends if end.wrong] == [] and sum(end.images for end in ends) == 32
