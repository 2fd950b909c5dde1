"""The maintainers' tools that measure: their figures come from bench's own statistics."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from scripts import gpu_bench, record_peers


def test_the_gpu_script_rehearses_every_task_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    gpu_bench.main(["--dry", "--output", str(tmp_path / "gpu.md")])
    page = printed.getvalue()
    assert "no figure below means anything" in page and not (tmp_path / "gpu.md").exists()
    for task in gpu_bench.TASKS:
        section = page.partition(f"## {task.name}\n")[2].partition("\n## ")[0]
        assert "| configuration | step, median |" in section and "Measured with sdcli" in section
        assert section.count("\n| H100") == sum("H100" in other.what for other in task.published)


def run(seconds: float, step: float) -> record_peers.Run:
    parts = {"steps": [step, step * 1.01, step * 0.99], "dtype": "bf16", "import": 1.0, "load": 2.0, "decode": 3.0,
             "setup": "attention fused", "threads": 2}  # fmt: skip
    return record_peers.Run(seconds, 1 << 30, parts)


def test_peers_are_compared_with_intervals_that_count_processes(tmp_path: Path) -> None:
    task = record_peers.Task(tmp_path, "sd15", 20, 512, 512, tmp_path)
    recorded = {
        "diffusers, as it comes": [run(200 + n, 8 + n / 50) for n in range(3)],
        "sdcli": [run(80 + n / 2, 3 + n / 100) for n in range(3)],
    }
    text = record_peers.page(task, recorded, (0.1, 0.1), random=True)
    assert "and count processes" in text and "| 2.50 (2.4" in text and "| 3.01 (2." in text
    alone = record_peers.page(task, {name: runs[:1] for name, runs in recorded.items()}, (0.1, 0.1), random=True)
    assert "ratios assume that processes differ by 2 %" in alone
