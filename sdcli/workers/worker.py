"""Drawing that is done by another process, which may die without taking this one with it. It keeps as many models
loaded as fit."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Protocol

from sdcli import events, schema
from sdcli.errors import Bug, OutOfMemory, SdcliError, from_json
from sdcli.events import Event, Memory
from sdcli.machine.hardware import Hardware
from sdcli.plan import together
from sdcli.plan.batches import Batch
from sdcli.plan.calibration import context
from sdcli.plan.plan import Plan
from sdcli.plan.together import Held
from sdcli.plan.upscaling import UpscalePlan
from sdcli.terminal import show

EXIT_SECONDS = 10.0  # a worker has to exit by itself
LONGEST_LINE = 1 << 22  # bytes of an event, pixels apart; a worker that writes a longer one is broken
KILLED = -9
CHILD = (sys.executable, "-P", "-m", "sdcli.workers.child")  # what starts a worker's process; its engine follows
PATIENCE = 300.0  # seconds of silence; loading a large model from a slow disk takes minutes
STEPS_OF_PATIENCE = 20


class Died(Exception):
    """The worker ended, or answered what no worker answers; `error` is what to tell who waits for the image."""

    def __init__(self, error: SdcliError) -> None:
        super().__init__(error.message)
        self.error = error


class Process(Protocol):
    """What takes orders: a process here, or one on another machine."""

    stdin: IO[bytes] | None
    stdout: IO[bytes] | None
    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


class Worker:
    """Draws plans like an engine. Its process starts with the first, and again after it has died."""

    def __init__(self, engine: str = "local", command: Sequence[str] = CHILD) -> None:
        self.engine = engine
        self.command = command
        self.process: Process | None = None
        self.starts = 0
        self._models: dict[str, Held] = {}  # that the process has loaded, least recently used first
        self._device = 0  # bytes of a GPU that the process has taken, and its name
        self._gpu = ""
        self.beside: Held | None = None  # what stayed loaded beside the model drawn with last
        self._stderr: IO[bytes] | None = None
        self._drawing: int | None = None  # the order's number
        self._orders = 0
        self._writing = threading.Lock()
        self._heard = 0.0  # on time.monotonic
        self._because = ""  # why it was killed from here

    def start(self) -> None:
        """Its process imports what it draws with while other things are done here."""
        self._running()

    def ready(self) -> None:
        """Waits until it can take an order: a process here starts with its first."""

    def run(
        self, plan: Plan, batches: Iterable[Batch] | None = None, kept: Mapping[int, bytes] | None = None
    ) -> Iterator[Event]:
        """Closing the generator cancels what is left; the model stays loaded, and so do others as long as they fit
        beside this plan. A process that died is Died."""
        yield from self.begun(plan, batches, kept)

    def begun(
        self, plan: Plan, batches: Iterable[Batch] | None = None, kept: Mapping[int, bytes] | None = None
    ) -> Generator[Event, None, None]:
        """The same, where the worker has its order before anybody asks for an event."""
        numbers = [number for number, _ in (plan.numbered() if batches is None else batches)]
        self._running()
        drop = self._make_room(plan)
        steps = {number: base64.b64encode(step).decode() for number, step in (kept or {}).items()}
        order = {"plan": schema.to_json(plan, whole=True), "batches": numbers, "drop": drop, "kept": steps}
        return self._ordered(order, plan.hardware)

    def _make_room(self, plan: Plan) -> tuple[str, ...]:
        """The models that have to go; the plan's own is the most recently used from now on."""
        name = plan.model.name
        others = {other: held for other, held in self._models.items() if other != name}
        drop = together.leaving(others, plan)
        stay = {other: held for other, held in others.items() if other not in drop}
        self.beside = together.total(stay.values()) if stay else None
        self._models = {**stay, name: together.held(plan)}
        return drop

    def enlarge(self, plan: UpscalePlan) -> Iterator[Event]:
        """The same of images that are made larger. What else is loaded in the process stays beside it."""
        yield from self._ordered({"enlarge": schema.to_json(plan, whole=True)})

    def _ordered(self, order: Mapping[str, Any], hardware: Hardware | None = None) -> Generator[Event, None, None]:
        happening = self._happening(order, hardware)
        next(happening)
        return happening

    def _happening(self, order: Mapping[str, Any], hardware: Hardware | None) -> Generator[Any, None, None]:
        """None first, once the order is on its way."""
        process = self._running()
        self._orders += 1
        self._drawing, self._heard = self._orders, time.monotonic()
        self._gpu = self._gpu if hardware is None else hardware.device
        self._write({"draw": self._orders, **order})
        try:
            yield None
            for event in self._events(process):
                if isinstance(event, Memory) and event.reserved_peak is not None and hardware is not None:
                    self._device = event.reserved_peak + context(hardware.backend)
                yield event
        except GeneratorExit:
            self.cancel()
            with contextlib.suppress(Died, SdcliError):
                for _ in self._events(process):
                    pass
            raise
        finally:
            self._drawing = None

    def try_out(self, plan: Plan) -> None:
        """What decides on such plans and was never tried on this machine, so that the next one knows it."""
        for _ in self._ordered({"plan": schema.to_json(plan, whole=True), "batches": [], "try": True}):
            pass

    def cancel(self) -> None:
        """Ends what is being drawn, after the step it is at. May be called from any thread."""
        if self._drawing is not None:
            with contextlib.suppress(Died, SdcliError):
                self._write({"cancel": self._drawing})

    def without_own(self, hardware: Hardware) -> Hardware:
        """With the process's memory counted as free: of what it holds it gives back what the next plan has no room
        for."""
        held = self.resident()
        device = held if hardware.kind == "cpu" else self._device if held and hardware.device == self._gpu else 0
        return replace(
            hardware,
            free=min(hardware.total, hardware.free + device),
            ram_free=min(hardware.ram_total, hardware.ram_free + held),
        )

    @property
    def held(self) -> tuple[str, ...]:
        """The models that it keeps for the next plans, least recently used first."""
        return tuple(self._models) if self._alive() else ()

    def resident(self) -> int:
        """Bytes of the process; 0 where there is none."""
        import psutil

        process = self._alive()
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(process.pid).memory_info().rss) if process else 0
        return 0

    @property
    def silent(self) -> float | None:
        """Seconds since the worker said anything; None while there is nothing to say."""
        return None if self._drawing is None else time.monotonic() - self._heard

    def end_if_stuck(self, plan: Plan) -> None:
        """Kills a process that has said nothing for much longer than a step of this plan takes."""
        silent, usual = self.silent, plan.seconds.step if plan.seconds is not None else 0.0
        if silent is not None and silent > max(PATIENCE, STEPS_OF_PATIENCE * usual):
            self.kill(f"it had done nothing for {silent:.0f} s")

    def kill(self, because: str = "") -> None:
        if process := self._alive():
            self._because = because
            process.kill()

    def close(self) -> None:
        """Ends the process, by force where it does not end by itself."""
        self._end()

    def _end(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            process.stdin.close()
        try:
            process.wait(timeout=EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        if self._stderr is not None:
            self._stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the process

    def _alive(self) -> Process | None:
        process = self.process
        return process if process is not None and process.poll() is None else None

    def _running(self) -> Process:
        if process := self._alive():
            return process
        self._end()
        self.process = self._start()
        self.starts += 1
        self._models, self._device = {}, 0
        self._because = ""
        return self.process

    def _start(self) -> Process:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        return started([*self.command, self.engine], self._stderr)

    def _write(self, order: Mapping[str, Any]) -> None:
        process = self.process
        assert process is not None and process.stdin is not None
        with self._writing:
            try:
                process.stdin.write(json.dumps(order).encode() + b"\n")
                process.stdin.flush()
            except (OSError, ValueError):
                raise self._died(process) from None

    def _events(self, process: Process) -> Iterator[Event]:
        assert process.stdout is not None
        while True:
            try:
                line = process.stdout.readline(LONGEST_LINE)
                answer = json.loads(line) if line else None
                event = None if answer is None or "ended" in answer else events.received(answer, process.stdout)
            except (OSError, ValueError, KeyError, TypeError, SdcliError):
                process.kill()
                raise self._died(process, "it answered what no worker answers") from None
            if answer is None:
                raise self._died(process)
            self._heard = time.monotonic()
            if event is not None:
                yield event
                continue
            self._models = {name: held for name, held in self._models.items() if name in answer.get("held", ())}
            self._device = answer.get("device", 0)
            if answer["error"]:
                raise from_json(answer["error"])
            else:
                return

    def _died(self, process: Process, because: str = "") -> Exception:
        code = process.wait()
        because = because or self._because
        if code == KILLED and not because:
            message = "the process that draws was killed, most likely because memory ran out"
            return Died(OutOfMemory(message, hint="sdcli doctor"))
        return Died(Bug(f"the process that draws ended: {because or self._last_words() or f'exit code {code}'}"))

    def _last_words(self) -> str:
        assert self._stderr is not None
        return last_words(self._stderr)


def started(command: Sequence[str], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """A process that takes orders."""
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment(), **own_group()
    )


def last_words(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    lines = stderr.read()[-10_000:].decode(errors="replace").strip().splitlines()
    return show(lines[-1], 200) if lines else ""


def environment() -> dict[str, str]:
    """Makes a child import this sdcli, whatever folder it starts in."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": package + (os.pathsep + path if path else "")}


def own_group() -> dict[str, Any]:
    """Its own process group: Ctrl-C reaches only the parent, which then ends its children in order."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"process_group": 0}
