"""What a step is said to take is what the UNet and the scheduler took, and saying it costs next to nothing."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

NAME = "step_sums"
CLAIM = (
    "On full-size SD1.5 (random weights, 512×512, CPU) the reported steps add up to a clock held around the same UNet "
    "and scheduler calls within 1 %, and the code of meter and events takes at most 0.5 % of denoising. What meter and "
    "events cost for each listener is timed on a tiny model, and set against the full-size step."
)
STEPS = int(os.environ.get("SDCLI_PROOF_STEPS", "6"))
MANY = 40  # of a tiny model


@dataclass
class Clocks:
    """Seconds by a clock outside: around calls by name, and what the events themselves say."""

    unet: float = 0.0
    scheduler: float = 0.0
    meter: float = 0.0
    events: float = 0.0
    steps: list[float] = field(default_factory=list)
    denoise: float = 0.0

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*given: Any, **named: Any) -> Any:
            before = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                setattr(self, name, getattr(self, name) + time.perf_counter() - before)

        return timed

    @property
    def cost(self) -> float:
        """Seconds a step costs beyond its work."""
        return (self.meter + self.events) / len(self.steps)


@contextmanager
def watched() -> Iterator[Clocks]:
    """The engine with clocks around its calls; what it computes stays as it is."""
    from sdcli.draw import denoise, meter, run

    clocks = Clocks()
    loop, phase, tell = denoise.denoise, run.Run._steps, run.Run._timed

    def timed_loop(unet: Any, scheduler: Any, *rest: Any) -> Iterator[Any]:
        kind = type(scheduler)
        with ExitStack() as stack:
            for name in ("step", "scale_model_input"):
                stack.enter_context(mock.patch.object(kind, name, clocks.around("scheduler", getattr(kind, name))))
            yield from loop(clocks.around("unet", unet), scheduler, *rest)

    def timed_phase(self: Any, state: Any, stage: Any) -> Generator[Any, Any, Any]:
        inner = phase(self, state, stage)
        answer = None
        while True:
            try:
                event = inner.send(answer)
            except StopIteration as done:
                return done.value
            if type(event).__name__ == "Denoised":
                clocks.denoise += event.seconds
            answer = yield event

    def timed_telling(self: Any, state: Any, stage: Any, running: int) -> Iterator[Any]:
        """From asking for the event to its last listener's return; the meter's share of it is the meter's."""
        inner, metered, before = tell(self, state, stage, running), clocks.meter, time.perf_counter()
        for event in inner:
            clocks.steps.append(event.seconds)
            yield event
        clocks.events += time.perf_counter() - before - (clocks.meter - metered)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(denoise, "denoise", timed_loop))
        stack.enter_context(mock.patch.object(run.Run, "_steps", timed_phase))
        stack.enter_context(mock.patch.object(run.Run, "_timed", timed_telling))
        for name in ("mark", "between", "now"):
            around = clocks.around("meter", getattr(meter.Meter, name))
            stack.enter_context(mock.patch.object(meter.Meter, name, around))
        yield clocks


def main() -> list[tuple[str, str, str, bool]]:
    full = by_bench("sd15", STEPS, "512x512")
    work, reported = full.unet + full.scheduler, sum(full.steps)
    what = f"sd15 at full size, {STEPS} steps"
    rows = [
        (
            f"{what}: sum of the reported steps",
            f"{reported:.3f} s, and {work:.3f} s by the clock around {STEPS} UNet and scheduler calls: "
            f"{100 * (reported / work - 1):+.3f} %",
            "within 1 %",
            abs(reported / work - 1) <= 0.01,
        ),
        (f"{what}: bench listening", *_share(full.cost, full)),
    ]
    for name, listen in LISTENERS.items():
        small = listen()
        rows.append((f"{name} listening, {len(small.steps)} steps of a tiny model", *_share(small.cost, full)))
    return rows


def _share(cost: float, full: Clocks) -> tuple[str, str, bool]:
    step = full.denoise / len(full.steps)
    return (
        f"{1e6 * cost:.0f} µs a step, {100 * cost / step:.4f} % of {step:.3f} s",
        "at most 0.5 %",
        cost <= 0.005 * step,
    )


# --- who listens


def by_bench(model: str, steps: int, size: str) -> Clocks:
    """One image as bench's worker draws it, without files."""
    from sdcli.asking import planning
    from sdcli.bench import random_models, worker
    from sdcli.models import resolve

    structure = random_models.tiny() if model == "tiny" else random_models.randomised(resolve.resolve(model))
    typed = {"words": ("a lighthouse",), "seeds": "1", "steps": str(steps), "size": size, "device": "cpu"}
    plan = planning.plan_for(typed, "bench", structure).plan
    with tempfile.TemporaryDirectory(prefix="sdcli-proof-") as folder, watched() as clocks:
        order = worker.Order(plan=plan, engine="local", folder=folder)
        worker.WorkerLoop(order, io.BytesIO(b"draw\n"), io.BytesIO()).run()
    return clocks


def by_generate(*words: str, live: bool = False) -> Clocks:
    """The command itself: store, records, report, progress. `live`: its display is a terminal."""
    from scripts import make_checkpoint
    from sdcli.cli.main import run

    with tempfile.TemporaryDirectory(prefix="sdcli-proof-") as folder, watched() as clocks:
        model = make_checkpoint.write_folder(Path(folder) / "model", "sd15", tiny=True)
        asked = ("generate", "a lighthouse", "-m", str(model), "-s", str(MANY), "--size", "64x64", "--device", "cpu")
        with _streams(Path(folder), live), contextlib.suppress(SystemExit):
            run((*asked, "-o", str(Path(folder) / "images"), *words))
        assert len(clocks.steps) == MANY, (Path(folder) / "err").read_text() if not live else "no image"
    return clocks


@contextmanager
def _streams(folder: Path, live: bool) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context((folder / "out").open("w"))))
        stack.enter_context(contextlib.redirect_stderr(stack.enter_context(_display(folder, live))))
        yield


@contextmanager
def _display(folder: Path, live: bool) -> Iterator[Any]:
    if not live:
        with (folder / "err").open("w") as file:
            yield file
        return
    import pty

    reading, writing = pty.openpty()
    reader = threading.Thread(target=_drained, args=(reading,), daemon=True)
    reader.start()
    with os.fdopen(writing, "w") as terminal:
        yield terminal
    reader.join(5)


def _drained(reading: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(reading, 65536):
            pass
    os.close(reading)


LISTENERS: dict[str, Callable[[], Clocks]] = {
    "bench": lambda: by_bench("tiny", MANY, "64x64"),
    "generate": by_generate,
    "generate --json-lines": lambda: by_generate("--json-lines"),
    "generate's live display": lambda: by_generate(live=True),
}
