"""Measuring: each configuration in its own processes, in turn, until the intervals are narrow or time is up."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from sdcli.bench import statistics
from sdcli.bench.process import Worker
from sdcli.bench.surroundings import Watch
from sdcli.bench.worker import Drawn, Order
from sdcli.errors import Interrupted, SdcliError, Stop
from sdcli.plan.plan import Plan

MAX_TIME, QUICK_TIME = 900.0, 50.0  # seconds; an image that has begun is finished
WARM_IMAGES, WARM_SECONDS = 8, 60.0  # the longest warm-up of a process
RATE_SECONDS = 6.0  # to measure the best rate in one number type, on a busy machine
MOST_PROCESSES, MOST_IMAGES = 40, 200


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One case: its name, the options that differ, the flags that select it, and its plan or error."""

    name: str
    options: Mapping[str, str]
    flags: str
    plan: Plan | None = None
    error: SdcliError | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    processes: int = statistics.LEAST_PROCESSES
    quick: bool = False
    max_time: float = MAX_TIME
    engine: str = "local"


@dataclass(kw_only=True)
class Sample:
    """One batch, as its worker reported it; `steps` includes the first."""

    process: int
    number: int
    warmup: bool
    drawn: Drawn

    @property
    def steps(self) -> list[float]:
        return self.drawn.step_seconds


@dataclass(kw_only=True)
class OngoingCase:
    """Everything measured of one configuration so far."""

    configuration: Configuration
    images: list[Sample] = field(default_factory=list)
    error: SdcliError | None = None
    steady: bool = True  # the warm-up of every process became steady
    rate: float | None = None  # the device's best, measured beside it
    busy: Drawn | None = None  # one batch with the GPU's kernels timed

    @property
    def measured(self) -> list[Sample]:
        return [image for image in self.images if not image.warmup]

    def processes(self) -> list[list[tuple[float, ...]]]:
        """As statistics wants them: processes of images of steps, warm-up and first steps left out."""
        return statistics.by_process((image.process, image.steps) for image in self.measured)


class Bench:
    """The state of a measurement. `stopped_by` is interval, max-time, limit (on processes
    or images) or interrupted once it is over."""

    def __init__(self, configurations: Sequence[Configuration], limits: Limits, folder: Path) -> None:
        self.limits = limits
        self.folder = folder
        self.cases = [OngoingCase(configuration=one, error=one.error) for one in configurations]
        self.stopped_by = "interval"
        self.process = 0
        self._started = time.monotonic()
        hardware = next(one.plan.hardware for one in configurations if one.plan is not None)
        self.watch = Watch(hardware)
        self._out_of_time = self._at_limit = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def remaining(self) -> list[OngoingCase]:
        return [case for case in self.cases if case.error is None]

    @property
    def planned(self) -> int:
        return statistics.LEAST_IMAGES if self.limits.quick else self.limits.processes

    def run(self, listener: Listener) -> None:
        """Measures to the end. An interruption keeps what was measured and is raised again."""
        try:
            while self.remaining and not self._over():
                for group in self._groups():
                    self._round(group, listener)
                self.process += 1
                listener.round_done()
            if self._out_of_time or self._at_limit:
                self.stopped_by = "max-time" if self._out_of_time else "limit"
        except (KeyboardInterrupt, Stop, Interrupted):
            self.stopped_by = "interrupted"
            self._keep_warmup(self.cases)
            raise

    # --- when to stop

    def _over(self) -> bool:
        if self.process == 0:
            return False
        if self.limits.quick or self._out_of_time:
            return True
        if self.process >= self.limits.processes and all(self._enough(case) for case in self.remaining):
            return True
        self._at_limit = self.process >= MOST_PROCESSES
        self._out_of_time = self.seconds + self.seconds / self.process > self.limits.max_time
        return self._at_limit or self._out_of_time

    def _enough(self, case: OngoingCase) -> bool:
        return statistics.enough(case.processes(), self.planned)

    def _time_for(self, case: OngoingCase) -> bool:
        """Whether one more image of this case, as slow as its last, would end in time."""
        last = case.images[-1].drawn.seconds if case.images else 0.0
        if self.seconds + last <= self.limits.max_time - self._reserved():
            return True
        self._out_of_time = True
        return False

    def _too_late(self) -> bool:
        """Whether time is up; each case's first process draws an image however long it takes, for a comparison."""
        if self.process == 0 or self.seconds <= self.limits.max_time:
            return False
        self._out_of_time = True
        return True

    def _reserved(self) -> float:
        """Seconds of the allowed time reserved to measure rates in the first process."""
        kinds = {_type(case.configuration.plan) for case in self.remaining}
        return min(len(kinds) * RATE_SECONDS, self.limits.max_time / 2) if self.process == 0 else 0.0

    # --- one process of each

    def _groups(self) -> list[list[OngoingCase]]:
        """All cases side by side, so that each is measured throughout; one after the other where memory is short."""
        cases = self.remaining
        return [cases] if fit_together([case.configuration.plan for case in cases if case.configuration.plan]) else [
            [case] for case in cases
        ]  # fmt: skip

    def _round(self, cases: Sequence[OngoingCase], listener: Listener) -> None:
        with ExitStack() as stack:
            workers: dict[int, Worker] = {}
            for case in cases:
                if self._too_late():
                    break
                with self._errors_of(case):
                    worker = stack.enter_context(self._worker(case))
                    workers[id(case)] = worker
                    self._draw(case, worker, listener, warmup=True)
                    worker.pause()
            started = [case for case in cases if id(case) in workers]
            self.watch.start([worker.process.pid for worker in workers.values()])
            try:
                self._warm_up([case for case in started if case.error is None], workers, listener)
                self._measure([case for case in started if case.error is None], workers, listener)
                for case in started if self.process == 0 else ():
                    if case.error is None:
                        with self._errors_of(case):
                            self._measure_rate(case, workers[id(case)], listener)
            finally:
                self.watch.stop()

    def _worker(self, case: OngoingCase) -> Worker:
        plan = case.configuration.plan
        assert plan is not None
        folder = self.folder / f"{self.cases.index(case)}-{self.process}"
        return Worker(Order(plan=plan, engine=self.limits.engine, folder=str(folder)), folder)

    @contextmanager
    def _errors_of(self, case: OngoingCase) -> Iterator[None]:
        """A configuration that fails is a case that says so; the others continue."""
        try:
            yield
        except Interrupted:
            raise
        except SdcliError as error:
            case.error = error

    def _warm_up(self, cases: Sequence[OngoingCase], workers: Mapping[int, Worker], listener: Listener) -> None:
        waiting = list(cases)
        while waiting:
            for case in list(waiting):
                medians = self.medians(case)
                spent = sum(image.drawn.seconds for image in self._of_process(case))
                if statistics.warmed_up(medians):
                    waiting.remove(case)
                elif len(medians) >= WARM_IMAGES or spent >= WARM_SECONDS or not self._time_for(case):
                    case.steady = False
                    waiting.remove(case)
                else:
                    with self._errors_of(case), self.watch.looking():
                        self._turn(case, workers[id(case)], listener, warmup=True)
                if case.error is not None and case in waiting:
                    waiting.remove(case)

    def _measure(self, cases: Sequence[OngoingCase], workers: Mapping[int, Worker], listener: Listener) -> None:
        active = list(cases)
        for _ in range(MOST_IMAGES):
            for case in list(active):
                if self._process_done(case):
                    active.remove(case)
                    continue
                with self._errors_of(case):
                    self._turn(case, workers[id(case)], listener, warmup=False)
                if case.error is not None:
                    active.remove(case)
            listener.round_done()
            if not active:
                return
        self._at_limit = True

    def _process_done(self, case: OngoingCase) -> bool:
        """Enough of this process: 20 steps, or with --quick an interval of its images that is narrow."""
        images = [image for image in self._of_process(case) if not image.warmup]
        if not self._time_for(case):
            self._keep_warmup([case])
            return True
        if self.limits.quick:
            return self._enough(case)
        return sum(len(statistics.steady(image.steps)) for image in images) >= statistics.LEAST_STEPS

    def _keep_warmup(self, cases: Sequence[OngoingCase]) -> None:
        """Where nothing else was measured, counts the last image of the warm-up; the result says so."""
        for case in cases:
            if case.images and not case.measured:
                case.images[-1].warmup, case.steady = False, False

    def _turn(self, case: OngoingCase, worker: Worker, listener: Listener, *, warmup: bool) -> None:
        worker.resume()
        try:
            self._draw(case, worker, listener, warmup=warmup)
        finally:
            worker.pause()

    def _draw(self, case: OngoingCase, worker: Worker, listener: Listener, *, warmup: bool) -> None:
        listener.turn(case, warmup)
        drawn = worker.draw(listener.step)
        number = len(self._of_process(case))
        case.images.append(Sample(process=self.process, number=number, warmup=warmup, drawn=drawn))
        listener.drew(case)

    def _measure_rate(self, case: OngoingCase, worker: Worker, listener: Listener) -> None:
        """The best rate, once per number type; on a GPU also how long its kernels run. After what is measured: the
        memory that it takes is not the model's."""
        plan = case.configuration.plan
        assert plan is not None
        same = [other for other in self.cases if other.rate and other.configuration.plan is not None]
        rates = [other.rate for other in same if _type(other.configuration.plan) == _type(plan)]
        if not rates:
            listener.probing(case)
        case.rate = rates[0] if rates else worker.rate()
        if plan.hardware.kind == "cuda" and self.seconds + case.images[-1].drawn.seconds <= self.limits.max_time:
            case.busy = worker.draw(listener.step, watched=True)
        worker.pause()

    def _of_process(self, case: OngoingCase) -> list[Sample]:
        return [image for image in case.images if image.process == self.process]

    def medians(self, case: OngoingCase) -> list[float]:
        """Of the images of the process now running."""
        return [median(statistics.steady(image.steps)) for image in self._of_process(case)]


class Listener:
    """Called as things happen; does nothing by default."""

    def turn(self, case: OngoingCase, warmup: bool) -> None:
        """`case` draws next."""

    def step(self, step: int, of: int) -> None:
        """The case has taken this step."""

    def drew(self, case: OngoingCase) -> None:
        """The case has drawn."""

    def probing(self, case: OngoingCase) -> None:
        """The device's best rate is measured next."""

    def round_done(self) -> None:
        """A round is over: a good moment to save."""


def _type(plan: Plan | None) -> tuple[str, str] | None:
    return (plan.setup.dtype, plan.setup.device) if plan is not None else None


def fit_together(plans: Sequence[Plan]) -> bool:
    """Whether all of them can be in memory at once, with a tenth to spare."""
    if not plans:
        return True
    hardware = plans[0].hardware
    host = sum(plan.footprint.host_peak for plan in plans)
    device = sum(plan.footprint.device_peak for plan in plans)
    cores = os.cpu_count() or 1
    on_device = hardware.kind == "cpu" or device < 0.9 * hardware.free
    return len(plans) <= max(8, cores) and host < 0.9 * hardware.ram_free and on_device


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for images and latents while measuring; deleted afterwards."""
    path = Path(tempfile.mkdtemp(prefix="sdcli-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def rate_of(macs: int, seconds: float) -> float | None:
    """Operations a second: a multiply-add is two."""
    return 2 * macs / seconds if seconds > 0 and math.isfinite(seconds) else None
