"""What starting sdcli costs: CPU time of each command that needs no torch, above a bare Python's; best of 15.

.sdcli/venv/bin/python scripts/benchmark_startup.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 15

# words of the command line → milliseconds above a bare Python
GOALS = {
    ("--version",): 60,
    ("--help",): 60,
    ("samplers",): 60,
    ("plan", "a cat", "-m", "sd15", "--as-if", "cuda:8GiB"): 150,
    ("plan", "a cat", "-m", "sdxl", "--as-if", "cuda:8GiB", "--json"): 150,
}
BOOTSTRAP_GOAL = 30  # scripts/sdcli itself, above a bare Python

Row = tuple[str, str, str, bool]


def main() -> list[Row]:
    bare = best([sys.executable, "-P", "-c", "pass"])
    rows: list[Row] = []
    for words, goal in GOALS.items():
        spent = best([sys.executable, "-P", "-m", "sdcli", *words]) - bare
        rows.append((" ".join(["sdcli", *words]), f"{spent:.0f} ms", f"≤ {goal} ms above bare python", spent <= goal))
    spent = bootstrap(bare)
    if spent is not None:
        goal = BOOTSTRAP_GOAL
        rows.append(("scripts/sdcli, once set up", f"{spent:.0f} ms", f"≤ {goal} ms above bare python", spent <= goal))
    rows.append(("a bare python, for comparison", f"{bare:.0f} ms", "", True))
    return rows


def bootstrap(bare: float) -> float | None:
    """What the checkout's own starter adds to the command it starts, beyond a Python's start."""
    inside = ROOT / ".sdcli" / "venv"
    if Path(sys.prefix).resolve() != inside.resolve():
        return None  # only there do the starter and this Python start the same command
    base = getattr(sys, "_base_executable", sys.executable)
    through = best([base, str(ROOT / "scripts" / "sdcli"), "--version"])
    return through - best([sys.executable, "-P", "-m", "sdcli", "--version"]) - best([base, "-c", "pass"])


def best(command: list[str]) -> float:
    """The least CPU milliseconds of a few runs, after one that writes the bytecode and warms the caches."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SDCLI_"))}
    environment["PYTHONPATH"] = str(ROOT)
    environment["SDCLI_HOME"] = str(ROOT / ".sdcli" / "home-of-benchmarks")
    spent = []
    for _ in range(REPEATS + 1):
        before = cpu_seconds()
        done = subprocess.run(command, env=environment, capture_output=True)
        spent.append(cpu_seconds() - before)
        if done.returncode != 0:
            raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return min(spent[1:]) * 1000


def cpu_seconds() -> float:
    """Of the children that have ended; where the system does not count that, the clock."""
    if resource is None:
        return time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    results = main()
    for what, seen, goal, holds in results:
        print(f"{'ok  ' if holds else 'OVER'} {seen:>7}  {goal:<30} {what}")
    sys.exit(not all(row[-1] for row in results))
