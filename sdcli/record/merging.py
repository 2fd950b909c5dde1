"""The records of shards, put together into those of one run: what they drew, and what is missing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sdcli import __version__, reading, schema
from sdcli.errors import BadFile, ImagesFailed, SdcliError, Usage
from sdcli.files import REAL, cannot_write, write_new
from sdcli.plan.fallbacks import changes_pixels
from sdcli.plan.plan import Plan
from sdcli.record import report as reports
from sdcli.record import runs
from sdcli.record.entries import BatchTimes, Image, tally
from sdcli.record.found_runs import called
from sdcli.record.names import Destination, new_run, with_copies
from sdcli.record.report import Measured, MemoryUse, PhaseTime, Report, WorkerUse
from sdcli.record.runs import Intent, Recovered
from sdcli.record.store import place
from sdcli.request.request import Shard
from sdcli.terminal import counted, show

LARGEST_IMAGE = 1 << 30
# Of a request, what may differ between shards: which images they draw, and what that machine has.
_OWN = ("shard", "output", "device", "devices", "max_vram", "max_ram", "offline", "overwrite", "keep_steps")


@dataclass(frozen=True, kw_only=True)
class Merged:
    destination: Destination
    report: Report
    notes: tuple[str, ...]  # which shards lack images, and what differs


@dataclass(frozen=True)
class Part:
    """A shard's run, as it is on disk."""

    shard: Shard
    found: Recovered
    report: Report | None

    @property
    def plan(self) -> Plan:
        return self.found.run.plan

    @property
    def name(self) -> str:
        return f"shard {self.shard}"

    @cached_property
    def _told(self) -> Mapping[int, Image]:
        return {one.index: one for one in self.report.images} if self.report is not None else {}

    def image(self, index: int) -> Image:
        """As its report says; as its journal does, where the run ended without a report, or was resumed since."""
        job, intent, told = self.plan.job(index), self.found.done.get(index), self._told.get(index)
        if intent is None:
            return told if told is not None and told.error else reports.image_of(job, index, "missing")
        if told is not None and told.pixel_sha256 == intent.pixel_sha256:
            return told
        return reports.recovered_image(job, intent)


def merge(records: Sequence[Path], output: Path | None = None) -> Merged:
    """A run in `output`, or in the folder that all shards share, to which images that lie elsewhere are copied."""
    parts = sorted(map(_part, records), key=lambda part: part.shard.number)
    _check_alike(parts)
    folder = _folder(parts, output)
    plan = _whole_plan(parts)
    run = new_run()
    destination = replace(
        parts[0].found.run.destination, folder=folder, records=folder / "runs" / run, run=run, overwrite=False
    )
    images, intents = _gathered(parts, destination)
    report = _report(parts, plan, run, images)
    try:
        REAL.make_folder(destination.records)
        write_new(REAL, destination.records / runs.JOURNAL, _journal(parts, plan, destination, intents, report))
    except OSError as error:
        raise cannot_write(destination.records, error) from None
    reports.write(report, destination.records / runs.REPORT)
    return Merged(destination=destination, report=report, notes=tuple(_notes(parts, plan)))


def _part(records: Path) -> Part:
    if runs.is_running(records):
        raise Usage(f"run {show(records.name, 80)} is being drawn", hint="wait until that process ends")
    found = runs.recover(runs.read(records))
    shard = found.run.plan.request.shard
    if shard is None:
        raise Usage(
            f"run {show(records.name, 80)} is no shard: it was drawn without --shard", hint="sdcli help formats"
        )
    return Part(shard, found, _report_of(records))


def _report_of(records: Path) -> Report | None:
    path = records / runs.REPORT
    try:
        return reports.from_json(reading.read(reading.whole(path, 1 << 30), str(path)), str(path))
    except (OSError, BadFile):
        return None


# --- are they of one list?


def _check_alike(parts: Sequence[Part]) -> None:
    first = parts[0]
    for other in parts[1:]:
        difference = _difference(first, other)
        if difference:
            raise Usage(f"{first.name} and {other.name} are not of one run: {difference}", hint="sdcli runs")


def _difference(first: Part, other: Part) -> str:
    if first.shard.of != other.shard.of:
        return f"one list was shared out in {first.shard.of}, the other in {other.shard.of}"
    before, after = (schema.to_json(part.plan.request) for part in (first, other))
    for name in before:
        if name not in _OWN and before[name] != after[name]:
            return f"{name} is {show(before[name], 60)} and {show(after[name], 60)}"
    one, two = first.plan.model, other.plan.model
    if (one.name, one.revision, one.hash) != (two.name, two.revision, two.hash):
        return f"the model is {_named(one)} and {_named(two)}"
    return "their lists differ" if first.plan.whole != other.plan.whole else ""


def _named(model: Any) -> str:
    return show(" ".join(str(part) for part in (model.name, model.revision, model.hash) if part), 120)


def _folder(parts: Sequence[Part], output: Path | None) -> Path:
    if output is not None:
        return output.absolute()
    folders = {part.found.run.destination.folder for part in parts}
    if len(folders) > 1:
        raise Usage(
            f"these runs lie in {len(folders)} folders",
            hint="the same command with -o FOLDER   (images are copied there)",
        )
    return folders.pop()


# --- what comes of them


def _whole_plan(parts: Sequence[Part]) -> Plan:
    """The plan of all that they list. With every shard there it is the one that no shard was taken of."""
    jobs = {job.index: job for part in parts for job in part.plan.jobs}
    batches = {batch for part in parts for batch in part.plan.batches}
    first = parts[0].plan
    return replace(
        first, request=replace(first.request, shard=None), jobs=tuple(job for _, job in sorted(jobs.items())),
        batches=tuple(sorted(batches)), seconds=None,
    )  # fmt: skip


def _gathered(parts: Sequence[Part], to: Destination) -> tuple[list[Image], list[Intent]]:
    """Every image that is listed, where it lies now. The same shard drawn twice counts once."""
    images: dict[int, Image] = {}
    intents: dict[int, Intent] = {}
    names: set[str] = set()
    for part in parts:
        for index in sorted(job.index for job in part.plan.jobs):
            if index in images and images[index].kept:
                continue
            image, intent = part.image(index), part.found.done.get(index)
            if intent is not None:
                intent = replace(intent, file=_brought(part.found.run.destination, to, intent, names))
                names.add(intent.file)
                image, intents[index] = replace(image, file=intent.file), intent
            images[index] = image
    return [image for _, image in sorted(images.items())], [intent for _, intent in sorted(intents.items())]


def _brought(source: Destination, to: Destination, intent: Intent, names: set[str]) -> str:
    if source.folder == to.folder:
        return intent.file
    for there in with_copies(intent.file):
        if there in names or not os.path.lexists(to.folder / there):
            break
        if _sha256(to.folder / there) == intent.file_sha256:
            return there  # brought before
    try:
        data = reading.whole(source.folder / intent.file, LARGEST_IMAGE)
        name, path, _ = place(to, with_copies(intent.file), intent.index, data, own=names, files=REAL)
        REAL.sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(to.folder / intent.file, error) from None
    return name


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _journal(
    parts: Sequence[Part], plan: Plan, destination: Destination, intents: Iterable[Intent], report: Report
) -> Iterator[bytes]:
    """Jobs that were read one by one are written so: a line of a million jobs would be longer than what is read."""
    run = parts[0].found.run
    first = plan if plan.whole is not None else replace(plan, jobs=plan.batch(0), batches=plan.batches[:1])
    yield runs.line({"type": "run", **runs.head(destination, first, run.environment, run.files, runs.now())})
    for number in range(len(first.batches), len(plan.batches)):
        yield runs.line({"type": "queued", "batch": number, "jobs": schema.to_json(plan.batch(number), whole=True)})
    by_index = {index: number for number, batch in enumerate(plan.batches) for index in batch}
    for intent in intents:
        yield runs.line({"type": "intent", **schema.to_json(replace(intent, batch=by_index[intent.index]))})
        yield runs.line({"type": "done", "index": intent.index})
    for image in report.images:
        if image.status == "failed":
            yield runs.line({"type": "failed", "index": image.index, "error": schema.to_json(image.error)})
    yield runs.line({"type": "end", "status": report.status, "exit_code": report.exit_code})


# --- the report


def _report(parts: Sequence[Part], plan: Plan, run: str, images: Sequence[Image]) -> Report:
    told = [(part, part.report) for part in parts if part.report is not None]
    counted = tally(images)
    failure = _lacking(parts, plan) or reports.shortfall(counted)
    status = reports.status_of(counted, None)
    numbers = {batch: number for number, batch in enumerate(plan.batches)}
    return Report(
        version=__version__,
        run=run,
        status="partial" if failure and status == "done" else status,
        exit_code=failure.code if failure else 0,
        error=failure.to_json() if failure else None,
        started=min(part.found.run.created for part in parts),
        seconds=sum(one.seconds for _, one in told),
        plan=runs.plan_json(plan),
        phases=_phases([one for _, one in told]),
        batches=tuple(_batches(told, numbers)),
        images=tuple(images),
        memory=_memory([one for _, one in told]),
        workers=tuple(_use(part, one) for part, one in told),
        degraded=tuple(fallback for _, one in told for fallback in one.degraded),
        warnings=tuple(dict.fromkeys(warning for _, one in told for warning in one.warnings)),
        environment=parts[0].found.run.environment,
    )


def _phases(told: Sequence[Report]) -> tuple[PhaseTime, ...]:
    found: dict[str, PhaseTime] = {}
    for phase in (phase for one in told for phase in one.phases):
        before = found.get(phase.name)
        found[phase.name] = phase if before is None else replace(
            before, seconds=before.seconds + phase.seconds, count=before.count + phase.count,
            device_peak=reports.larger(before.device_peak, phase.device_peak),
            host_peak=reports.larger(before.host_peak, phase.host_peak),
        )  # fmt: skip
    return tuple(found.values())


def _batches(
    told: Sequence[tuple[Part, Report]], numbers: Mapping[tuple[int, ...], int]
) -> Iterator[BatchTimes]:  # fmt: skip
    batches = {}
    for _, one in told:
        for batch in one.batches:
            number = numbers.get(tuple(batch.images))
            if number is not None and number not in batches:
                batches[number] = replace(batch, index=number)
    for _, batch in sorted(batches.items()):
        yield batch


def _memory(told: Sequence[Report]) -> MemoryUse:
    """The most that any of them took."""
    if not told:
        return MemoryUse()
    most = max(told, key=lambda one: one.memory.ratio or 0.0).memory
    measured: dict[str, int | None] = {}
    for one in told:
        for name, value in vars(one.memory.measured).items():
            measured[name] = reports.larger(measured.get(name), value)
    return replace(most, measured=Measured(**measured))


def _use(part: Part, one: Report) -> WorkerUse:
    memory = one.memory.measured
    on_cpu = part.plan.setup.device == "cpu"
    return WorkerUse(
        name=str(part.shard), device=part.plan.hardware.name, images=len(part.found.done), seconds=one.seconds,
        peak=memory.host_peak if on_cpu else memory.reserved_peak,
    )  # fmt: skip


# --- what is missing


def _missing_shards(parts: Sequence[Part]) -> list[int]:
    there = {part.shard.number for part in parts}
    return [number for number in range(1, parts[0].shard.of + 1) if number not in there]


def _lacking(parts: Sequence[Part], plan: Plan) -> SdcliError | None:
    missing = _missing_shards(parts)
    whole = plan.whole.images if plan.whole is not None else None
    if not missing or whole == len(plan.jobs):  # a shard without a job need not have been drawn
        return None
    of = parts[0].shard.of
    where = f"shard {_ranges(missing)} of {of}" if len(missing) == 1 else f"shards {_ranges(missing)} of {of}"
    images = "" if whole is None else f", {counted(whole - len(plan.jobs), 'image')}"
    return ImagesFailed(
        f"{where} {'is' if len(missing) == 1 else 'are'} missing{images}",
        hint=f"the command that drew the others with --shard {missing[0]}/{of}",
    )


def _ranges(numbers: Sequence[int]) -> str:
    """1-3, 7"""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)


def _notes(parts: Sequence[Part], plan: Plan) -> Iterator[str]:
    for part in parts:
        if part.found.missing:
            images = counted(len(part.found.missing), "image")
            yield f"{part.name}: {images} missing, sdcli resume {called(part.found.run.destination.records)}"
        elif plan.whole is None and part.found.run.end is None:
            yield f"{part.name} ended before its prompts did"
    for part in parts[1:]:
        if changes_pixels(parts[0].plan.setup, part.plan.setup):
            yield f"{part.name} was drawn under another setup than {parts[0].name}: its images may differ slightly"
