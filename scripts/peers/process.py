"""One program from its start to its end: seconds, memory, and what other programs took of the processor meanwhile."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.measure_memory import environment
from sdcli.bench import surroundings

LOOK = 0.05  # seconds between two looks at a process's memory
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # how threads wait decides how fast a busy machine is


class Failed(Exception):
    """A program did not end as it should."""


@dataclass(frozen=True)
class Ended:
    seconds: float
    peak: int  # bytes
    line: str  # the last of its output
    others: float | None  # see Others


class Others:
    """The share of the processor that other programs take from now on; programs waited for are our own."""

    def __init__(self) -> None:
        self._before, self._own = surroundings.moment(), own_seconds()

    def share(self) -> float | None:
        after = surroundings.moment()
        if self._before is None or after is None or after.total <= self._before.total:
            return None
        busy = after.busy - self._before.busy - (own_seconds() - self._own)
        return max(0.0, busy) / (after.total - self._before.total)


def own_seconds() -> float:
    """Processor time of this process and of those it has waited for."""
    return sum(os.times()[:4])


def plain_environment(**more: str) -> dict[str, str]:
    """Without what the person who measures has set for how sdcli draws and threads wait."""
    inherited = environment().items()
    return {name: value for name, value in inherited if name not in WAITING and not name.startswith("SDCLI_")} | more


def watched(command: Sequence[str], accepts: Sequence[int], variables: Mapping[str, str]) -> Ended:
    """In an empty folder; an exit code that is not accepted is an error."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as err,
    ):
        others, started, peak = Others(), time.perf_counter(), 0
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=folder, env=variables)
        try:
            while process.poll() is None:
                peak = max(peak, high_water(process.pid))
                time.sleep(LOOK)
        finally:
            process.kill()
            process.wait()
        seconds, share = time.perf_counter() - started, others.share()
        said, complaint = _lines(out), _lines(err)
    if process.returncode not in accepts:
        raise Failed(_why(process.returncode, complaint))
    return Ended(seconds, peak, said[-1] if said else "", share)


def _why(code: int, complaint: Sequence[str]) -> str:
    return complaint[-1][:300] if complaint and code > 0 else f"exit code {code}" + " (killed)" * (code == -9)


def _lines(file: Any) -> list[str]:
    file.seek(0)
    return str(file.read()).strip().splitlines()


def high_water(pid: int) -> int:
    """The most resident memory so far; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0
