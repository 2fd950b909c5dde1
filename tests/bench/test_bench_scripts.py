"""The maintainers' tools that measure: their figures come from bench's own statistics."""

from __future__ import annotations

from pathlib import Path

from scripts import record_peers


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
