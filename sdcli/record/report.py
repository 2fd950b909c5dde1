"""What a run did, folded from its events: `sdcli.report/1`, on stdout with --json and in report.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sdcli import __version__, events, schema
from sdcli.errors import Cancelled, ImagesFailed, Interrupted, SdcliError, Terminated
from sdcli.events import Event
from sdcli.files import REAL, Files, cannot_write, replace_whole
from sdcli.plan.plan import Plan, PlanWarning
from sdcli.plan.together import Held
from sdcli.record import documents
from sdcli.record.entries import BatchTimes, Image, Tally, tally
from sdcli.record.rows import Rows
from sdcli.record.runs import Intent, plan_json
from sdcli.request.request import Job
from sdcli.schema import transient
from sdcli.terminal import counted

NAME, NEWEST = "sdcli.report", 1
MOST_STEPS = 10_000
MOST_WARNINGS = 200
BEFORE, AFTER = ("plan", "import"), ("save",)  # phases around those that the plan counts
BEFORE_LOAD = ("before-load", "import")  # Memory events that say what the process held before any weights


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    name: str
    seconds: float = 0.0
    count: int = 0
    device_peak: int | None = None
    host_peak: int | None = None
    predicted_device_peak: int | None = None  # by the plan, to be compared; null on a CPU as device_peak is
    predicted_host_peak: int | None = None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    device_peak: int
    host_peak: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    allocated_peak: int | None = None
    reserved_peak: int | None = None
    driver_peak: int | None = None
    pinned_peak: int | None = None
    host_peak: int | None = None
    host_before_load: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    predicted: Predicted | None = None
    measured: Measured = field(default_factory=Measured)
    beside: Held | None = None  # predicted, of other models that stayed loaded: what was measured includes them
    ratio: float | None = None  # measured / predicted


@dataclass(frozen=True, kw_only=True)
class WorkerUse:
    """What one of several that drew the run did: a device, or a shard."""

    name: str
    device: str
    images: int = 0
    seconds: float = 0.0  # spent on batches
    peak: int | None = None  # of the device, or of the process where it has no memory of its own

    @property
    def rate(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    schema: str = f"{NAME}/{NEWEST}"
    version: str = ""
    run: str
    folder: str | None = None
    status: str  # done | partial | failed | interrupted | cancelled
    exit_code: int
    error: Mapping[str, Any] | None = None
    started: str
    seconds: float
    plan: Mapping[str, Any] = field(default_factory=dict)
    phases: tuple[PhaseTime, ...] = ()
    batches: Sequence[BatchTimes] = ()
    images: Sequence[Image] = ()
    memory: MemoryUse = field(default_factory=MemoryUse)
    workers: tuple[WorkerUse, ...] = ()  # where several drew
    degraded: tuple[events.Degraded, ...] = ()
    warnings: tuple[PlanWarning, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    counted: Tally | None = transient(default=None, compare=False)

    @property
    def tally(self) -> Tally:
        return self.counted or tally(self.images, self.batches)

    def phase(self, name: str) -> PhaseTime:
        return next((phase for phase in self.phases if phase.name == name), PhaseTime(name=name))


# --- out and in


def to_json(report: Report, folder: Path | None = None) -> dict[str, Any]:
    """As for the file; with `folder` as for stdout, where paths are absolute."""
    data: dict[str, Any] = schema.to_json(replace(report, images=(), batches=()))
    data["folder"] = None if folder is None else str(folder)
    data["batches"] = [schema.to_json(batch) for batch in report.batches]
    data["images"] = [image_json(image, folder) for image in report.images]
    return data


def image_json(image: Image, folder: Path | None = None) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, value in schema.to_json(image).items():
        if name == "job":
            data |= {field: item for field, item in (value or _NO_JOB).items() if field not in data}
        else:
            data[name] = value
    if folder is None:
        return data
    path = str(folder / image.file) if image.file is not None else None
    head = {key: data.pop(key) for key in ("index", "status", "file")}
    return {**head, "path": path, **data}


_NO_JOB = dict.fromkeys(one.name for one in fields(Job))


def from_json(data: Mapping[str, Any], where: str = "report.json") -> Report:
    documents.check_schema(data, NAME, NEWEST, where)
    images = data.get("images")
    if isinstance(images, list):
        data = {**data, "images": [_with_job(image) for image in images]}
    return schema.from_json(Report, data, where)


def _with_job(image: Any) -> Any:
    """An image's entry with its job's fields gathered again; one that is in no plan has no seed."""
    if not isinstance(image, Mapping) or image.get("seed") is None:
        return image
    names = {one.name for one in fields(Job)}
    return {**image, "job": {name: value for name, value in image.items() if name in names}}


def pieces(report: Report) -> Iterator[bytes]:
    """The file in pieces, a line for each image: 10,000 of them as one text would take much memory."""
    kept = [one for one in fields(report) if not one.metadata.get("transient")]
    for number, one in enumerate(kept):
        value = None if one.name == "folder" else getattr(report, one.name)
        yield (b",\n" if number else b"{") + documents.dump(one.name) + b":"
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            for position, entry in enumerate(value.lines() if isinstance(value, Rows) else map(_entry, value)):
                yield (b",\n " if position else b"[\n ") + entry
            yield b"]"
        else:
            yield from documents.pieces(schema.to_json(value), end=b"\n ", levels=2)
    yield b"}\n"


def _entry(item: Any) -> bytes:
    return documents.dump(image_json(item) if isinstance(item, Image) else schema.to_json(item))


def _image(entry: bytes) -> Image:
    return schema.from_json(Image, _with_job(json.loads(entry)))


def _batch(entry: bytes) -> BatchTimes:
    return schema.from_json(BatchTimes, json.loads(entry))


def write(report: Report, path: Path, files: Files = REAL) -> None:
    """report.json, the old one or the new one, never half of either."""
    try:
        replace_whole(files, path, pieces(report))
    except OSError as error:
        raise cannot_write(path, error) from None


# --- folding


def fold(
    stream: Iterable[Event],
    *,
    started: str,
    run: str,
    seconds: float,
    error: SdcliError | None = None,
) -> Report:
    folding = Folding(started=started, run=run, clock=lambda: seconds)
    for event in stream:
        folding(event)
    return folding.report(error)


@dataclass(slots=True)
class _Sums:
    """BatchTimes in the making: a value made anew for each event would be most of a run's bookkeeping."""

    tokens: tuple[int, ...] = ()  # of each image
    images: tuple[int, ...] = ()
    step_seconds: list[float] | None = None  # None: a run keeps no more of them
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    save_seconds: float = 0.0
    steps: int = 0
    denoise_seconds: float = 0.0
    chunks: int = 1


class Folding:
    """The fold, an event at a time: figures are kept, pixels never. A sink for `watch`. What is known of an image or
    a batch once it is over is a row.

    `clock` says the seconds since the process started.
    """

    def __init__(
        self,
        *,
        started: str,
        run: str,
        clock: Callable[[], float],
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        self.started = started
        self.run = run
        self.plan: Plan | None = None
        self._clock = clock
        self._last_file: float | None = None
        self._recovered: dict[int, Intent] = {}
        self._times: dict[str, list[float]] = {}  # seconds and count
        self._peaks: dict[str, list[int | None]] = {}  # device and host
        self._loads: list[float] = [0.0, 0]
        self._measured = Measured()
        self._device_peak: int | None = None
        self._drawn: dict[int, _Sums] = {}  # batches that are being drawn
        self._batches: Rows[BatchTimes] = Rows(_entry, _batch)
        self._kept_steps = 0
        self._stepped: dict[str, list[float]] = {}  # seconds and count of the stages that go in steps
        self._decoded: dict[int, Job] = {}
        self._images: Rows[Image] = Rows(_entry, _image)
        self._tally = Tally()
        self._degraded: list[events.Degraded] = []
        self._warnings: dict[tuple[str, str], PlanWarning] = {}
        self._environment: dict[str, Any] = dict(environment or {})
        self._stopped: SdcliError | None = None
        self._workers: dict[str, WorkerUse] = {}
        self.beside: Held | None = None  # what else the process held

    def __call__(self, event: Event) -> None:
        if event.worker:
            self._see_worker(event)
        match event:
            case events.Planned():
                self._see_plan(event)
            case events.Timed():
                self._time(event.phase, event.seconds)
            case events.Loaded():
                self._loads[0] += event.seconds
                self._loads[1] += 1
            case events.Encoded():
                self._see_encoded(event)
            case events.EncodedImage():
                self._time(event.stage, event.seconds)
                self._sums(event.batch).encode_seconds += event.seconds
            case events.Step():
                self._see_step(event)
            case events.Denoised():
                self._time(event.stage, event.seconds)
            case events.Memory():
                self._see_memory(event)
            case events.Decoded():
                self._see_decoded(event)
            case events.Saved():
                self._see_saved(event)
            case events.Failed():
                self._see_failed(event)
            case events.Degraded():
                self._degraded.append(event)
            case events.Warned():
                self._warn(PlanWarning(code=event.code, message=event.message))
            case events.Interrupted():
                self._see_interrupted(event)
            case events.Done():
                self._environment |= event.environment

    # --- events that leave more than a sum

    def _see_plan(self, event: events.Planned) -> None:
        self.plan = event.plan
        for warning in event.plan.warnings:
            self._warn(warning)

    def _see_encoded(self, event: events.Encoded) -> None:
        self._time(event.stage, event.seconds)
        sums = self._sums(event.batch)
        sums.tokens = event.tokens
        sums.encode_seconds += event.seconds
        sums.chunks += event.chunks - 1

    def _see_step(self, event: events.Step) -> None:
        sums = self._sums(event.batch)
        if sums.step_seconds is None and self._kept_steps + event.of <= MOST_STEPS:
            sums.step_seconds = []
            self._kept_steps += event.of
        if sums.step_seconds is not None:
            sums.step_seconds.append(event.seconds)
        sums.steps += 1
        sums.denoise_seconds += event.seconds
        stepped = self._stepped.setdefault(event.stage, [0.0, 0])
        stepped[0] += event.seconds
        stepped[1] += event.step == 1
        if event.device_peak is not None:
            self._peak(event.stage, event.device_peak, None)

    def _see_memory(self, event: events.Memory) -> None:
        if event.phase in BEFORE_LOAD:
            before = larger(self._measured.host_before_load, event.host_peak)
            self._measured = replace(self._measured, host_before_load=before)
        else:
            names = ("allocated_peak", "reserved_peak", "driver_peak", "pinned_peak", "host_peak")
            peaks = {name: larger(getattr(self._measured, name), getattr(event, name)) for name in names}
            self._measured = replace(self._measured, **peaks)
            self._device_peak = larger(self._device_peak, event.device_peak)
        if event.phase != "before-load":
            self._peak(event.phase, event.device_peak, event.host_peak)

    def _see_decoded(self, event: events.Decoded) -> None:
        self._time(event.stage, event.seconds)
        self._sums(event.batch).decode_seconds += event.seconds
        self._decoded[event.index] = event.job

    def _see_saved(self, event: events.Saved) -> None:
        self._last_file = self._clock()
        self._time("save", event.seconds)
        self._sums(event.batch).save_seconds += event.seconds
        image = Image(
            index=event.index,
            status=event.status,
            job=self._job(event.index),
            file=event.file,
            format=event.format,
            bytes=event.bytes,
            width=event.width,
            height=event.height,
            tokens=self._count_of(event.batch, event.index),
            pixel_sha256=event.pixel_sha256,
            file_sha256=event.file_sha256,
        )
        self._finish(image, event.batch)

    def _see_failed(self, event: events.Failed) -> None:
        image = image_of(self._job(event.index), event.index, "failed")
        tokens = self._count_of(event.batch, event.index)
        self._finish(replace(image, tokens=tokens, error=dict(event.error)), event.batch)

    def _see_worker(self, event: Event) -> None:
        use = self._workers.get(event.worker)
        if use is None:
            use = WorkerUse(name=event.worker, device="")
        match event:
            case events.Encoded() | events.EncodedImage() | events.Denoised() | events.Decoded():
                use = replace(use, seconds=use.seconds + event.seconds)
            case events.Saved():
                use = replace(use, images=use.images + 1)
            case events.Memory():
                peak = larger(event.reserved_peak, event.device_peak) or event.host_peak
                use = replace(use, peak=larger(use.peak, peak))
        self._workers[event.worker] = use

    def _see_interrupted(self, event: events.Interrupted) -> None:
        kind = Terminated if event.signal == "terminated" else Interrupted
        self._stopped = kind("stopped before the end", done=f"{self._tally.kept} images are saved")

    # --- bookkeeping

    def _time(self, phase: str, seconds: float) -> None:
        times = self._times.setdefault(phase, [0.0, 0])
        times[0] += seconds
        times[1] += 1

    def _peak(self, phase: str, device: int | None, host: int | None) -> None:
        peaks = self._peaks.setdefault(phase, [None, None])
        peaks[0], peaks[1] = larger(peaks[0], device), larger(peaks[1], host)

    def _sums(self, batch: int) -> _Sums:
        sums = self._drawn.get(batch)
        if sums is None:
            sums = self._drawn[batch] = _Sums()
        return sums

    def _finish(self, image: Image, number: int) -> None:
        """An image is there, or never will be; with the last one of a batch the batch is over too."""
        self._keep(image)
        self._decoded.pop(image.index, None)
        sums = self._sums(number)
        if image.index not in sums.images:
            sums.images = (*sums.images, image.index)
        expected = len(self._listed(number)) or len(sums.tokens)
        if expected and len(sums.images) >= expected:
            self._close(number)

    def _keep(self, image: Image) -> None:
        self._tally.add_image(image)
        self._images.put(image.index, image)

    def _close(self, number: int) -> None:
        sums = self._drawn.pop(number)
        batch = BatchTimes(
            index=number, images=self._listed(number) or sums.images, encode_seconds=sums.encode_seconds,
            step_seconds=tuple(sums.step_seconds or ()), decode_seconds=sums.decode_seconds,
            save_seconds=sums.save_seconds, steps=sums.steps, denoise_seconds=sums.denoise_seconds,
            chunks=sums.chunks,
        )  # fmt: skip
        self._tally.add_batch(batch)
        self._batches.put(number, batch)

    def _listed(self, batch: int) -> tuple[int, ...]:
        """Its images, where the plan lists them."""
        return self.plan.batches[batch] if self.plan is not None and batch < len(self.plan.batches) else ()

    def _warn(self, warning: PlanWarning) -> None:
        if len(self._warnings) < MOST_WARNINGS:
            self._warnings.setdefault((warning.code, warning.message), warning)

    def _job(self, index: int) -> Job | None:
        planned = self.plan.job(index) if self.plan is not None else None
        return planned or self._decoded.get(index)

    def _count_of(self, batch: int, index: int) -> int | None:
        """The tokens of one image of its batch; images that no plan lists come in the order of their batch."""
        sums, listed = self._sums(batch), self._listed(batch)
        seen = sums.images
        position = listed.index(index) if index in listed else (seen.index(index) if index in seen else len(seen))
        return sums.tokens[position] if position < len(sums.tokens) else None

    # --- the end

    def entry(self, index: int) -> Image | None:
        """What is known of one image so far."""
        return self._images.find(index)

    def add_recovered(self, intents: Mapping[int, Intent]) -> None:
        """Images that the journal and the disk have, though no event said so."""
        self._recovered |= intents

    @property
    def tally(self) -> Tally:
        """Of all images asked for, as far as they are known."""
        self._add_untold()
        return self._tally

    def images(self) -> Sequence[Image]:
        """All that were asked for, once nothing more happens."""
        for number in list(self._drawn):
            self._close(number)
        self._add_untold()
        return self._images.all()

    def _add_untold(self) -> None:
        """Images of which no event told."""
        planned = self.plan.jobs if self.plan is not None else ()
        untold = {job.index for job in planned} | self._recovered.keys()
        untold.difference_update(self._images.numbers())
        for index in sorted(untold):
            job, intent = self._job(index), self._recovered.get(index)
            self._keep(recovered_image(job, intent) if intent is not None else image_of(job, index, "missing"))

    def report(self, error: SdcliError | None = None) -> Report:
        """Once nothing more happens."""
        images, counted, stopped = self.images(), self.tally, error or self._stopped
        failure = stopped or shortfall(counted)
        return Report(
            version=__version__,
            run=self.run,
            status=status_of(counted, stopped),
            exit_code=failure.code if failure else 0,
            error=failure.to_json() if failure else None,
            started=self.started,
            seconds=self._last_file if self._last_file is not None else self._clock(),
            plan=plan_json(self.plan) if self.plan else {},
            phases=self._phases(),
            batches=self._batches.all(),
            images=images,
            memory=self._memory_use(),
            workers=self._uses(),
            degraded=tuple(self._degraded),
            warnings=tuple(self._warnings.values()),
            environment=self._environment,
            counted=counted,
        )

    def _phases(self) -> tuple[PhaseTime, ...]:
        times = dict(self._times)
        if "load" not in times and self._loads[1]:
            times["load"] = self._loads
        times |= {name: sums for name, sums in self._stepped.items() if name not in times}  # stopped within the first
        planned = {phase.name: phase for phase in self.plan.footprint.phases} if self.plan is not None else {}
        expected = [*BEFORE, *planned, *AFTER]
        names = [*expected, *(name for name in times if name not in expected)]
        on_cpu = self.plan is not None and self.plan.setup.device == "cpu"
        return tuple(
            PhaseTime(
                name=name,
                seconds=times.get(name, [0.0, 0])[0],
                count=int(times.get(name, [0.0, 0])[1]),
                device_peak=self._peaks.get(name, [None, None])[0],
                host_peak=self._peaks.get(name, [None, None])[1],
                predicted_device_peak=planned[name].device if name in planned and not on_cpu else None,
                predicted_host_peak=planned[name].host if name in planned else None,
            )
            for name in names
            if name in times or name in self._peaks
        )

    def _uses(self) -> tuple[WorkerUse, ...]:
        """In the order of the plan, also of those that drew nothing; then those that joined later."""
        planned = self.plan.workers if self.plan is not None else ()
        names = {own.name: own.hardware.name for own in planned}
        idle = {name: WorkerUse(name=name, device=device) for name, device in names.items()}
        seen = {name: replace(use, device=names.get(name, "")) for name, use in self._workers.items()}
        return tuple((idle | seen).values())

    def _memory_use(self) -> MemoryUse:
        if self.plan is None:
            return MemoryUse(measured=self._measured)
        footprint = self.plan.footprint
        predicted = Predicted(device_peak=footprint.device_peak, host_peak=footprint.host_peak)
        if self.plan.setup.device == "cpu":
            measured, expected = self._measured.host_peak, predicted.host_peak
        else:
            measured, expected = self._measured.reserved_peak or self._device_peak, predicted.device_peak
        expected += self.beside.device if self.beside is not None else 0
        ratio = measured / expected if measured is not None and expected > 0 else None
        return MemoryUse(predicted=predicted, measured=self._measured, beside=self.beside, ratio=ratio)


def image_of(job: Job | None, index: int, status: str) -> Image:
    if job is None:
        return Image(index=index, status=status)
    return Image(index=index, status=status, width=job.size[0], height=job.size[1], job=job)


def recovered_image(job: Job | None, intent: Intent) -> Image:
    return replace(
        image_of(job, intent.index, intent.status),
        file=intent.file,
        format=intent.file.rpartition(".")[2].lower().replace("jpeg", "jpg"),
        bytes=intent.bytes,
        pixel_sha256=intent.pixel_sha256,
        file_sha256=intent.file_sha256,
    )


def larger(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


def status_of(found: Tally, stopped: SdcliError | None) -> str:
    if isinstance(stopped, Cancelled):
        return "cancelled"
    if isinstance(stopped, (Interrupted, Terminated)):
        return "interrupted"
    if stopped is None and not found.lost and not found.suspect:
        return "done"
    return "partial" if found.kept else "failed"


def shortfall(found: Tally) -> ImagesFailed | None:
    """The error of a run that reached its end with fewer images than requested."""
    lost, suspect, kept = found.lost, found.suspect, found.kept
    if not lost and not suspect:
        return None
    of = counted(found.images, "image")
    causes = [f"{lost} of {of} could not be saved"] if lost else []
    causes += [f"{suspect} of {of} came out as one flat colour"] if suspect else []
    again = "the same command with --seed for each missing image" if lost else "the same command with another --seed"
    hints = {str(hint or again) for hint in found.hints}
    return ImagesFailed(
        "; ".join(causes),
        done=f"{kept} saved" if kept else "nothing was saved",
        hint=hints.pop() if len(hints) == 1 else again,
        failed=lost,
        suspect=suspect,
    )
