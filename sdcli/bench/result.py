"""What was measured, as `sdcli.bench/1`: the values, and how they are written, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcli import __version__, reading, schema
from sdcli.bench import statistics
from sdcli.bench.likeness import Likeness
from sdcli.bench.statistics import Ratio, Summary
from sdcli.errors import BadFile
from sdcli.files import REAL, cannot_write, replace_whole
from sdcli.record import documents
from sdcli.record.report import MemoryUse
from sdcli.schema import renamed
from sdcli.terminal import show

NAME, NEWEST = "sdcli.bench", 1
LARGEST_FILE = 256 << 20  # a sweep holds an image of each case
LONGEST_STEP = 1e9  # seconds
ANOTHER = "sdcli bench --quick --save new.json"
ELSEWHERE = "--save ~/bench.json"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step and one image consist of; only equal work shares the key."""

    key: str
    model: str
    model_hash: str
    width: int
    height: int
    steps: int
    batch_size: int
    guidance: float
    sampler: str
    macs_per_step: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Median seconds; `cold_total` from the start of the process to its first image."""

    import_: float | None = renamed("import")
    load: float | None
    compile: float | None = None  # of the slowest process: the first fills the others' cache
    encode: float | None
    denoise: float | None
    decode: float | None
    save: float | None
    cold_total: float | None


@dataclass(frozen=True, kw_only=True)
class Throughput:
    steps_per_second: float | None
    images_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class WorkRate:
    """Operations a second, and what share of the best rate seen on this device that is."""

    flops_per_second: float | None = None
    ceiling: float | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Energy:
    joules_per_image: float | None = None
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageRun:
    """One batch with every step of it, the first included."""

    process: int
    image: int
    warmup: bool
    seconds: float
    step_seconds: tuple[float, ...]
    step_bytes: tuple[int, ...] = ()
    event_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration: the options that differ, and everything measured of it."""

    name: str
    options: Mapping[str, str]
    setup: Mapping[str, Any]  # empty if it could not be planned
    reference: bool
    pareto: bool = False
    error: Mapping[str, Any] | None
    phases: Phases
    first_step_seconds: float | None
    warmup_images: int
    warmup_stable: bool
    step: Summary | None
    rates: Throughput
    work_rate: WorkRate
    launch_bound: float | None
    memory: MemoryUse
    energy: Energy = field(default_factory=Energy)
    image: Likeness
    ratio: Ratio | None
    flags: str
    image_uri: str | None = renamed("picture", default=None)  # its first image as a data URI
    runs: tuple[ImageRun, ...]

    @property
    def summary(self) -> Summary:
        """`step`, of a case that was measured."""
        assert self.step is not None
        return self.step

    @property
    def on_cpu(self) -> bool:
        return bool(self.setup.get("device") == "cpu")

    @property
    def peak(self) -> int | None:
        return self.memory.measured.reserved_peak or self.memory.measured.host_peak

    @property
    def peaks(self) -> tuple[int | None, int | None]:
        """Measured and predicted, of the host's memory on a CPU, else of the device's."""
        measured, predicted = self.memory.measured, self.memory.predicted
        if self.on_cpu:
            return measured.host_peak, predicted.host_peak if predicted else None
        return measured.reserved_peak, predicted.device_peak if predicted else None

    def steps(self) -> list[float]:
        return [step for process in self.processes() for image in process for step in image]

    def processes(self) -> list[list[tuple[float, ...]]]:
        """Its measured steps, as statistics wants them."""
        return statistics.by_process((run.process, run.step_seconds) for run in self.runs if not run.warmup)


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    schema: str = f"{NAME}/{NEWEST}"
    version: str = __version__
    status: str  # done | interrupted
    stopped_by: str  # interval | max-time | limit | interrupted
    seconds: float
    contended: bool
    reasons: tuple[str, ...]
    error: Mapping[str, Any] | None = None
    work: Work
    configurations: tuple[Case, ...]
    environment: Mapping[str, Any]

    @property
    def measured(self) -> tuple[Case, ...]:
        return tuple(case for case in self.configurations if case.step is not None)


def best(result: BenchResult) -> Case | None:
    """The fastest case that draws the reference's image; one of another size draws another."""
    cases = [case for case in result.measured if case.image.lossy is False]
    return min(cases, key=lambda case: case.summary.median, default=None)


# --- files


def write(result: BenchResult, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(REAL, path, documents.pieces(schema.to_json(result), end=b"\n "))
    except OSError as error:
        raise cannot_write(path, error, hint=f"sdcli bench {ELSEWHERE}") from None


def read(path: Path) -> BenchResult:
    """A result that was written by `write` or printed by --json; anything else is a bad file."""
    return check(reading.read(path, most=LARGEST_FILE, hint=ANOTHER), str(path))


def check(data: Mapping[str, Any], where: str) -> BenchResult:
    documents.check_schema(data, NAME, NEWEST, where, ANOTHER)
    try:
        result = schema.from_json(BenchResult, data)
    except BadFile:
        result = None
    if result is None or not _is_complete(result):
        raise BadFile(f"{show(where)} is not a complete result of sdcli bench", hint=ANOTHER)
    return result


def _is_complete(result: BenchResult) -> bool:
    """What a comparable result needs beyond its types."""
    steps = [step for case in result.configurations for run in case.runs for step in run.step_seconds]
    return (
        bool(result.configurations)
        and all(0 <= step < LONGEST_STEP for step in steps)
        and isinstance(result.environment.get("machine"), str)
    )


def machine_text(environment: Mapping[str, Any]) -> str:
    parts = [environment.get("device") or environment.get("cpu") or "this machine"]
    for name in ("torch", "diffusers"):
        if environment.get(name):
            parts.append(f"{name} {environment[name]}")
    return show(", ".join(str(part) for part in parts), 160)
