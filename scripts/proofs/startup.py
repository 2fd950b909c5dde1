"""Starting costs what it promises."""

from __future__ import annotations

import importlib.util
from pathlib import Path

NAME = "startup"
CLAIM = "Commands that draw nothing start without torch, within their time (CPU time, best of 15)."


def main() -> list[tuple[str, str, str, bool]]:
    path = Path(__file__).resolve().parents[1] / "benchmark_startup.py"
    specification = importlib.util.spec_from_file_location("benchmark_startup", path)
    assert specification and specification.loader
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    rows: list[tuple[str, str, str, bool]] = benchmark.main()
    return rows
