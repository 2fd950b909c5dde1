"""What draws for a run on another machine: tells what is there, finds the model, and passes on what goes to a worker's
process and what comes from it.

It is an actor of a cluster, and dies with the run. The process is what sdcli.workers.child is, so that what kills it,
for want of memory most often, leaves somebody to tell of it; without the actor it ends by itself. All that travels is
JSON, or bytes that a process here writes and reads too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import IO, Any

from sdcli import __version__, schema
from sdcli.errors import Bug, DeviceUnusable, SdcliError
from sdcli.machine import several, survey
from sdcli.models.model import Model
from sdcli.workers.worker import EXIT_SECONDS, last_words, started

AT_ONCE = 1 << 20  # bytes read from the process
TOGETHER = 0.05  # seconds in which events are gathered
TAIL = 1000  # bytes, in which the line fits that ends an order
MOST_WAITING = 64 << 20  # bytes that wait to be fetched: then the process waits too


class Node:
    """`read` may be called while `write` is."""

    def __init__(self) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray's: how many CPUs it was asked for; see _hardware
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._waiting = bytearray()
        self._ended = False
        self._changed = threading.Condition()

    def tell(self, asked: str) -> str:
        """The version here, and the hardware as one of so many workers may use it: a GPU, or a share of the CPU."""
        return _answer(lambda: {"version": __version__, "hardware": _hardware(**json.loads(asked))})

    def find(self, asked: str) -> str:
        """The model with the paths it has here, its files being those that the run was planned for."""
        return _answer(lambda: {"model": schema.to_json(_found(json.loads(asked)), whole=True)})

    def start(self, command: list[str]) -> None:
        self.end()
        self._waiting.clear()
        self._ended = False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._process = started([sys.executable, *command], self._stderr)
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def end(self) -> None:
        if self._process is None:
            return
        self._close(self._process.stdin)
        self.ended()
        for stream in (self._process.stdout, self._stderr):
            self._close(stream)
        self._process = None

    def write(self, line: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def read(self) -> bytes:
        """What the process wrote since; nothing: it has ended. Events that come one soon after the other travel
        together, unless an order ends with them."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            self._changed.wait_for(lambda: self._ended or self._waiting.rfind(b'{"ended"', -TAIL) >= 0, TOGETHER)
            found = bytes(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
            return found

    def ended(self) -> tuple[int, str]:
        """The process's exit code, and what it said last."""
        assert self._process is not None and self._stderr is not None
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return code, last_words(self._stderr)

    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _close(self, stream: IO[bytes] | None) -> None:
        with contextlib.suppress(OSError):  # what was not written goes to nobody
            if stream is not None:
                stream.close()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), AT_ONCE):
            with self._changed:
                self._changed.wait_for(lambda: len(self._waiting) < MOST_WAITING)
                self._waiting += data
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _answer(of: Callable[[], dict[str, Any]]) -> str:
    """Or the error: no exception of ours travels, and nobody has to know our classes to read it."""
    try:
        return json.dumps(of())
    except SdcliError as error:
        return json.dumps({"version": __version__, "error": error.to_json()})
    except Exception as error:
        return json.dumps({"version": __version__, "error": Bug(f"{type(error).__name__}: {error}").to_json()})


def _hardware(gpu: bool, cpus: int, of: int, workers: int) -> Any:
    seen = survey.look()
    hardware = survey.choose("auto" if gpu else "cpu", seen)
    if gpu and hardware.kind == "cpu":
        problem = survey.gpu_problem(seen)
        message = problem.message if problem is not None else "it has no GPU that sdcli can use"
        raise DeviceUnusable(message, hint="sdcli doctor")
    threads = hardware.threads if gpu else max(1, hardware.threads * cpus // of)
    # which of several equal GPUs it is given is not known before, and may be another the next time
    own = replace(hardware, source="ray", uuid=None, threads=threads, fast_threads=0)
    return schema.to_json(several.part(own, workers), whole=True)


# --- the model


def _found(asked: dict[str, Any]) -> Model:
    from sdcli.scale import here

    model = schema.from_json(Model, asked["model"], whole=True)
    return here.located(model, asked["name"], asked["hashes"], offline=asked["offline"])
