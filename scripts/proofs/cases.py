"""The tests' cases that are left out every day, for each is much like others that are not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

NAME = "cases"
CLAIM = "The cases that everyday tests leave out, for each is much like others: every combination holds."


def main() -> list[tuple[str, str, str, bool]]:
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-P", "-m", "pytest", "-n0", "-vv", "-m", "proof", "tests"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        return rows(running.stdout.readlines())


def rows(lines: list[str]) -> list[tuple[str, str, str, bool]]:
    """One for each file: how many of its cases hold."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if seen := re.match(r"(tests/\S+?\.py)::.* (PASSED|FAILED|ERROR|SKIPPED)\b", line):
            found.setdefault(seen[1], []).append(seen[2])
    table = [
        (file, f"{ends.count('PASSED')} of {len(ends)}", "all", set(ends) == {"PASSED"})
        for file, ends in sorted(found.items())
    ]
    return table or [("cases", "none ran", "some", False)]


if __name__ == "__main__":
    print(*main(), sep="\n")
