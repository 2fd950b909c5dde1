"""The parent's side of a worker: starts it, tells it to draw, pauses it between its turns, always ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdcli.bench import worker
from sdcli.bench.worker import Drawn, Order
from sdcli.errors import Bug, OutOfMemory, from_json
from sdcli.terminal import show
from sdcli.workers.worker import environment, own_group

CAN_PAUSE = hasattr(signal, "SIGSTOP")
EXIT_SECONDS = 10.0  # seconds a worker has to exit by itself
PROGRAM = ("-m", "sdcli.bench.worker")


class Worker:
    """One process with one model in it. Use as a context: it always ends."""

    def __init__(self, order: Order, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stderr = folder / "stderr.txt"
        self._paused = False
        with self._stderr.open("wb") as stderr:
            # If the parent dies, the kernel hangs up stopped workers, and a running one reads the end of stdin.
            self.process = subprocess.Popen(
                [sys.executable, *PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stderr, env=environment(), **own_group(),
            )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self._commands, self._answers = self.process.stdin, self.process.stdout
        self._write(worker.send(order))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # a worker that draws reads no command before its image is done
        self.end(EXIT_SECONDS if kind is None else 0.2)

    def draw(self, on_step: Callable[[int, int], None], *, watched: bool = False) -> Drawn:
        """Draws another batch. `watched` times the GPU's kernels, which distorts the step times."""
        self._command(worker.BUSY if watched else worker.DRAW)
        return Drawn(**self._wait("drawn", on_step))

    def rate(self) -> float | None:
        """Measures the device's best rate in this plan's dtype."""
        self._command(worker.RATE)
        rate = self._wait("rate", lambda step, of: None)
        return float(rate) if rate else None

    def pause(self) -> None:
        """Stops the process where the system can; elsewhere it waits for its next command anyway."""
        if CAN_PAUSE and not self._paused and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        if self._paused and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)
        self._paused = False

    def end(self, patience: float = EXIT_SECONDS) -> None:
        """Asks the worker to exit; kills it if it does not."""
        self.resume()
        with contextlib.suppress(OSError, ValueError):
            self._commands.close()
        try:
            self.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._answers.close()

    def _command(self, command: str) -> None:
        self.resume()
        self._write(command.encode() + b"\n")

    def _write(self, content: bytes) -> None:
        try:
            self._commands.write(content)
            self._commands.flush()
        except OSError:
            raise self._lost() from None

    def _wait(self, kind: str, on_step: Callable[[int, int], None]) -> Any:
        for line in self._answers:
            answer: Mapping[str, Any] = json.loads(line)
            if "error" in answer:
                raise from_json(dict(answer["error"]))
            if "step" in answer:
                on_step(*answer["step"])
            if kind in answer:
                return answer[kind]
        raise self._lost()

    def _lost(self) -> Exception:
        code = self.process.wait()
        stderr = self._stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if CAN_PAUSE and code == -signal.SIGKILL:
            return OutOfMemory(
                "the process being measured was killed by the system, most likely because memory ran out",
                hint="sdcli doctor",
            )
        last = show(stderr[-1], 200) if stderr else f"exit code {code}"
        return Bug(f"the process being measured ended: {last}")
