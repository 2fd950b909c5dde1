"""Whether other programs want the cores now."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdcli.machine import processor


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "allowed_cores", lambda: frozenset(range(4)))


def told(root: Path, text: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/loadavg").write_text(text)
    return root


@pytest.mark.parametrize(
    ("running", "threads", "busy"), [(1, 4, False), (2, 4, True), (3, 2, False), (4, 2, True), (9, 1, True)]
)
def test_a_machine_is_busy_where_others_leave_too_few_cores(
    running: int, threads: int, busy: bool, tmp_path: Path, cores: None
) -> None:
    root = told(tmp_path, f"9.00 0.10 0.20 {running}/321 4711\n")
    assert processor.busy(threads, root, pause=0.0) is busy


@pytest.mark.parametrize("text", ["", "1 2 3", "1 2 3 x/y 5"])
def test_where_the_count_is_not_told_the_load_of_the_last_minute_decides(
    text: str, tmp_path: Path, cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = told(tmp_path, text)
    for load, busy in ((0.3, False), (3.0, True), (None, False)):
        monkeypatch.setattr(processor, "_load", lambda load=load: load)
        assert processor.busy(2, root, pause=0.0) is busy
