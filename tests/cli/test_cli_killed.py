"""Runs that are killed, interrupted, and beside each other: short forms of `scripts/prove runs`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.proofs import runs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_a_run_that_is_killed_at_any_moment_loses_no_image_and_resuming_draws_the_rest(tmp_path: Path) -> None:
    ends = runs.brief("killed", 30, 11, tmp_path)
    assert [end.wrong for end in ends if end.wrong] == []
    assert sum(end.images for end in ends) > 50 and sum(end.resumed for end in ends) > 20


def test_a_run_that_is_interrupted_at_any_moment_says_so_and_can_be_resumed(tmp_path: Path) -> None:
    ends = runs.brief("interrupted", 8, 12, tmp_path)
    assert [end.wrong for end in ends if end.wrong] == [] and sum(end.resumed for end in ends) > 3


def test_sixteen_runs_in_one_folder_at_once_lose_and_replace_nothing(tmp_path: Path) -> None:
    ends = runs.brief("beside", 1, 13, tmp_path)
    assert [end.wrong for end in ends if end.wrong] == [] and sum(end.images for end in ends) == 32
