"""Where the pieces run: each in processes of its own, on this machine's GPU or on a pretend one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.measure_memory import environment, weights

LONGEST = 150.0  # seconds of one process; beyond them it counts as failed

Row = tuple[str, str, str, bool | None]  # what, seen, goal, whether it holds; None: not run


class OutOfTime(Exception):
    """The limit came before the piece's end: nothing is known of it."""


@dataclass(frozen=True)
class Piece:
    """Something to find out; `go` gives values for JSON, with a `message` if it failed."""

    name: str
    seconds: float  # with less than this left it is not begun
    go: Callable[[Lab], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Ended:
    exit: int
    out: str
    error: dict[str, Any]  # of what failed, with its message, as sdcli tells it in JSON


@dataclass(frozen=True, kw_only=True)
class Lab:
    weights: Path  # where the models are, or will be
    deadline: float  # by time.monotonic()
    size: str  # of the pretend GPU: what was asked for, or as large as the real one
    pretend: bool  # everything runs on it; otherwise it only counts beside the real one
    tiny: bool  # models of a few channels, at 64×64

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def model(self, family: str) -> Path:
        try:
            return weights(self.weights, family, self.tiny, max(self.left, 0))
        except subprocess.TimeoutExpired:
            raise OutOfTime from None

    def side(self, side: int) -> int:
        return 64 if self.tiny else side

    def run(self, *words: str, counting: bool = False, longest: float = LONGEST) -> Ended:
        """`python -m WORDS` in a folder of its own, with nothing remembered."""
        blank = ["--blank"] if counting else []
        on = ["-m", "tests.pretend_gpu", *blank, self.size] if self.pretend or counting else []
        visible = {"CUDA_VISIBLE_DEVICES": "0"} if on else {}  # the pretend one, whatever is said of real ones
        left = self.left
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
            try:
                done = subprocess.run(
                    [sys.executable, "-P", *on, "-m", *words], cwd=home, env=environment(SDCLI_HOME=home, **visible),
                    capture_output=True, text=True, encoding="utf-8", timeout=max(0, min(left, longest)),
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                if left <= longest:
                    raise OutOfTime from None
                return Ended(exit=124, out="", error={"message": f"not done after {longest:.0f} s"})
        return Ended(exit=done.returncode, out=done.stdout, error=_error(done.stdout, done.stderr))

    def ask(self, *words: str) -> dict[str, Any]:
        """What scripts/gpu/inside.py answers there."""
        ended = self.run("scripts.gpu.inside", *words)
        return json.loads(ended.out) if ended.exit == 0 else {"message": ended.error["message"]}


def _error(out: str, err: str) -> dict[str, Any]:
    try:
        return dict(json.loads(out)["error"])
    except (ValueError, KeyError, TypeError):
        return {"message": (err.strip().splitlines() or ["no message"])[-1][:300]}
