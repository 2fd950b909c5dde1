"""A process that draws on command and answers with what it measured: `python -m sdcli.bench.worker`.

On stdin the order comes first, then one command per line. Each answer, like the order, is a line of JSON. Nothing else
reaches stdout, and little is written while steps run.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sdcli import events, schema
from sdcli.errors import ImagesFailed, Interrupted, SdcliError
from sdcli.errors import from_json as error_from_json
from sdcli.events import Event
from sdcli.files import cannot_write
from sdcli.machine import clock
from sdcli.plan.footprint import COMPILE
from sdcli.plan.plan import Plan
from sdcli.workers.child import own_stdout

DRAW, RATE, BUSY = "draw", "rate", "busy"
REPORT_EVERY = 0.5  # seconds between reports of progress: each costs microseconds, and no step should pay for two


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to draw, again and again, and where its first image and its latents are written."""

    plan: Plan
    engine: str
    folder: str


@dataclass(kw_only=True)
class Drawn:
    """One batch. Seconds as the engine reported them; `event_seconds` is the time spent listening to it."""

    step_seconds: list[float] = field(default_factory=list)
    step_bytes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    save: float = 0.0
    event_seconds: float = 0.0
    pixel_sha256: str = ""
    ready: float = 0.0  # since the process started
    phases: dict[str, float] = field(default_factory=dict)  # import, load and compile, with the first batch
    peaks: dict[str, Any] = field(default_factory=dict)
    image: str | None = None
    pixels: str | None = None
    latents: str | None = None
    degraded: list[Any] = field(default_factory=list)
    busy: float | None = None


def main() -> None:
    commands, answers = sys.stdin.buffer, own_stdout()
    order = receive(commands)
    try:
        WorkerLoop(order, commands, answers).run()
    except SdcliError as error:
        answers.write(_line(error=error.to_json()))
    except KeyboardInterrupt:
        answers.write(_line(error=Interrupted("interrupted").to_json()))
    answers.flush()


def send(order: Order) -> bytes:
    return _line(**schema.to_json(order, whole=True))


def receive(stream: IO[bytes]) -> Order:
    return schema.from_json(Order, json.loads(stream.readline()), whole=True)


def _line(**answer: Any) -> bytes:
    return json.dumps(answer).encode() + b"\n"


class WorkerLoop:
    """The engine at work: one run for every batch, keeping what is loaded between them."""

    def __init__(self, order: Order, commands: IO[bytes], answers: IO[bytes]) -> None:
        self.order = order
        self.plan = order.plan
        self.commands = commands
        self.answers = answers
        self.current: Drawn | None = None
        self._began = 0.0
        self._count = 0
        self._reported = 0.0
        self._watch: Any = None  # watches the GPU during one batch, on request
        self._watches = False

    def run(self) -> None:
        """Draws one batch for every `draw`, until stdin ends."""
        from sdcli.draw.engines import engine

        with engine(self.order.engine) as drawing:
            for number in self._batches():
                for event in drawing.run(self.plan, [(number, self.plan.batch(0))]):
                    before = time.perf_counter()
                    self._record(event)
                    if self.current is not None and isinstance(event, (events.Step, events.Denoised)):
                        self.current.event_seconds += time.perf_counter() - before
                self._answer_drawn()

    def _batches(self) -> Iterator[int]:
        """The number of every batch to draw; answers other commands meanwhile."""
        while command := self.commands.readline().decode().strip():
            if command == RATE:
                self._answer(rate=_local().best_rate(self.plan) if self.order.engine == "local" else None)
                continue
            self._watches = command == BUSY
            self.current = Drawn()
            self._count += 1
            self._began = time.perf_counter()
            yield self._count - 1

    def _answer_drawn(self) -> None:
        if self.current is not None:
            self._answer(drawn=vars(self.current))
            self.current = None

    def _answer(self, **answer: Any) -> None:
        self.answers.write(_line(**answer))
        self.answers.flush()

    def _record(self, event: Event) -> None:
        drawn = self.current
        assert drawn is not None
        match event:
            case events.Timed():
                drawn.phases[event.phase] = drawn.phases.get(event.phase, 0.0) + event.seconds
            case events.Loaded():
                drawn.phases["load"] = drawn.phases.get("load", 0.0) + event.seconds
            case events.Encoded():
                drawn.encode += event.seconds
                self._start_watching()
            case events.Step():
                self._step(drawn, event)
            case events.Denoised():
                self._denoised(drawn, event)
            case events.Memory():
                drawn.peaks[event.phase] = schema.to_json(event)
                if event.phase in ("import", "load"):  # not part of drawing
                    self._began = time.perf_counter()
            case events.Decoded():
                drawn.decode += event.seconds
                self._decoded(drawn, event)
            case events.Degraded():
                drawn.degraded.append(schema.to_json(event))
            case events.Failed():
                raise (
                    error_from_json(dict(event.error)) if event.error else ImagesFailed("an image could not be drawn")
                )

    def _step(self, drawn: Drawn, event: events.Step) -> None:
        drawn.step_seconds.append(event.seconds)
        drawn.step_bytes.append(event.device_bytes or 0)
        now = time.monotonic()
        if now - self._reported > REPORT_EVERY:
            self._reported = now
            self._answer(step=[event.step, event.of])

    def _denoised(self, drawn: Drawn, event: events.Denoised) -> None:
        drawn.denoise = event.seconds
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
            drawn.busy, self._watch = self._watch.seconds, None
        if self._count == 1 and event.latents is not None:
            drawn.latents = self._write("latents.f32", event.latents.float().cpu().contiguous().numpy().tobytes())

    def _start_watching(self) -> None:
        if self._watches and self.order.engine == "local":
            self._watch = _local().busy()
            self._watch.__enter__()

    def _decoded(self, drawn: Drawn, event: events.Decoded) -> None:
        """Saved as a run saves it: encoded, written, synced."""
        before = time.perf_counter()
        content = encoded(event)
        drawn.image = self._write("image.png", content)
        now = time.perf_counter()
        drawn.save += now - before
        drawn.seconds = now - self._began - drawn.phases.get(COMPILE, 0.0)
        if self._count == 1:
            drawn.ready = clock.since_start()
            drawn.pixels = self._write("pixels.rgb", event.pixels)
        if not drawn.pixel_sha256:
            drawn.pixel_sha256 = hashlib.sha256(event.pixels).hexdigest()

    def _write(self, name: str, content: bytes) -> str:
        path = Path(self.order.folder) / name
        try:
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error, hint="TMPDIR=/var/tmp sdcli bench") from None
        return str(path)


def _local() -> Any:
    return importlib.import_module("sdcli.draw.local")


def encoded(event: events.Decoded) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.frombytes("RGB", (event.width, event.height), event.pixels).save(content, "PNG")
    return content.getvalue()


if __name__ == "__main__":
    main()
