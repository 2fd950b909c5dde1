"""The store: a finished image comes in, a file under its final name goes out, whole or not at all.

Encode in memory, write and sync a temporary file beside the target, note the intent in the journal, give the file its
name without replacing anything, sync the folder, note that it is done. Every file call goes through `Files`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdcli import __version__, schema
from sdcli.errors import Bug, Cancelled, CannotWrite, Interrupted, OutOfMemory, SdcliError, Stop, Terminated, stopped_by
from sdcli.events import (
    Decoded,
    Degraded,
    Done,
    Encoded,
    Event,
    Failed,
    KeptStep,
    Planned,
    Queued,
    Saved,
    Warned,
)
from sdcli.events import Interrupted as InterruptedEvent
from sdcli.files import REAL, Files, cannot_write, discard, publish, replace_whole, write_new
from sdcli.models.fingerprint import fingerprints
from sdcli.models.model import Model
from sdcli.plan.plan import Plan
from sdcli.record.encode import ImageFile, encode
from sdcli.record.found_runs import called
from sdcli.record.metadata import own
from sdcli.record.names import Destination, already_there, inside, next_number
from sdcli.record.runs import Intent, Journal, begin, step_file
from sdcli.terminal import show

MOST_NAMES = 10_000  # tried for one image before giving up


def store(
    events: Iterator[Event],
    destination: Destination,
    *,
    environment: Mapping[str, Any] | None = None,
    journal: Journal | None = None,
    earlier: Mapping[int, Intent] | None = None,
    files: Files = REAL,
    clock: Callable[[], float] = time.perf_counter,
    weights: Callable[[Model], Mapping[str, str]] = fingerprints,
) -> Iterator[Event]:
    """Every event passes; after each Decoded comes its Saved, or its Failed and then CannotWrite.

    The journal begins with the first Planned; a resumed run passes its own, and its `earlier` images. An image is
    on disk before its Decoded is passed on, so that nothing a watcher does can lose it.
    """
    run_store = RunStore(destination, dict(environment or {}), journal, files, clock, weights)
    for intent in (earlier or {}).values():
        run_store.count(intent.file, intent.status)
        run_store.expect(intent)
    try:
        for event in events:
            if isinstance(event, Decoded):
                yield from run_store.save(event)
                continue
            if isinstance(event, KeptStep):
                yield from run_store.keep(event)
                continue
            run_store.note(event)
            yield event
        run_store.end()
    except SdcliError as error:
        run_store.end(error)
        raise
    except (KeyboardInterrupt, Stop) as stop:  # raised here, or thrown in by a watcher
        run_store.end(stopped_by(stop))
        raise
    except Exception as failure:  # unforeseen; the message is written where it is caught
        run_store.end(OutOfMemory("", hint="sdcli help memory") if isinstance(failure, MemoryError) else Bug(""))
        raise
    finally:
        run_store.close()


@dataclass(frozen=True, kw_only=True)
class Written:
    name: str
    path: Path
    journal_error: OSError | None  # the image is on disk, but noting it in the journal failed


@dataclass
class Batch:
    """What the events so far say about a batch being drawn."""

    size: int = 1
    passed: int = 0  # its images that are finished, drawn or failed
    degraded: list[Degraded] = field(default_factory=list)


class RunStore:
    """What the store remembers between two images: a few numbers, never pixels."""

    def __init__(
        self,
        destination: Destination,
        environment: dict[str, Any],
        journal: Journal | None,
        files: Files,
        clock: Callable[[], float],
        weights: Callable[[Model], Mapping[str, str]],
    ) -> None:
        self.destination = destination
        self.environment = environment
        self.journal = journal
        self.files = files
        self.clock = clock
        self.plan: Plan | None = None
        self.weights: Mapping[str, str] | None = None  # the model's, once they are needed
        self._fingerprints = weights
        self.batches: dict[int, Batch] = {}  # unfinished ones, of any worker
        self.told_of_steps = False
        self.number = 0
        self.first = 0  # number of the first image of the plan, where several draw
        self.names: set[str] = set()  # of this run's images, where the disk alone does not say which must stay
        self.saved = 0
        self.flawed = 0  # failed or suspect
        self.stopped: SdcliError | None = None

    def count(self, name: str, status: str) -> None:
        if self.destination.overwrite or self.destination.kind != "numbered":
            self.names.add(name)
        self.saved += 1
        self.flawed += status == "suspect"

    def expect(self, intent: Intent) -> None:
        """Goes on with the numbers of a run that several draw: an image's is its place in the plan."""
        number = re.match(r"(\d{4,7})-", intent.file)
        if number is not None and not self.first:
            self.first = max(0, int(number[1]) - intent.index)

    # --- events without an image

    def note(self, event: Event) -> None:
        if isinstance(event, Planned):
            self.plan = event.plan
            if self.journal is None:
                self.journal = begin(self.destination, event.plan, self.environment, files=self.files)
        elif isinstance(event, Queued):
            self._append("queued", batch=event.batch, jobs=schema.to_json(event.jobs, whole=True))
        elif isinstance(event, Encoded):
            self._batch(event.batch).size = len(event.tokens)
        elif isinstance(event, Degraded):
            self._batch(event.batch).degraded.append(event)
            self._append("degraded", **schema.to_json(event))
        elif isinstance(event, Failed):
            self.flawed += 1
            self._passed(event.batch)
            self._append("failed", index=event.index, error=schema.to_json(event.error))
        elif isinstance(event, InterruptedEvent):
            self.stopped = Terminated("terminated") if event.signal == "terminated" else Interrupted("interrupted")
        elif isinstance(event, Done):
            self.environment = {**self.environment, **event.environment}

    def keep(self, event: KeptStep) -> Iterator[Event]:
        """On disk before it is passed on. Where it cannot be written the image can still be drawn."""
        yield event
        path = step_file(self.destination.records, event.batch)
        try:
            replace_whole(self.files, path, [event.state])
        except OSError as error:
            if not self.told_of_steps:
                reason = show(error.strerror or error)
                yield Warned(code="kept-step", message=f"steps could not be kept in {show(path.parent)}: {reason}")
            self.told_of_steps = True

    def _batch(self, number: int) -> Batch:
        return self.batches.setdefault(number, Batch())

    def _passed(self, number: int) -> None:
        """One more image of this batch is finished; with the last one the batch is forgotten, and the step it kept."""
        batch = self._batch(number)
        batch.passed += 1
        if batch.passed >= batch.size:
            del self.batches[number]
            if self.plan is not None and self.plan.request.keep_steps:
                discard(self.files, step_file(self.destination.records, number))

    def _append(self, kind: str, **fields: Any) -> None:
        if self.journal is None:
            return
        try:
            self.journal.append(kind, **fields)
        except OSError as error:
            raise self._cannot_write(self.journal.path, error) from None

    def _cannot_write(self, path: Path, error: OSError) -> CannotWrite:
        planned = max(self.saved, len(self.plan.jobs) if self.plan else 0)
        done = f"{self.saved} of {planned} images are saved in {show(self.destination.folder)}"
        return cannot_write(path, error, done=done, hint=f"sdcli resume {called(self.destination.records)}")

    def end(self, error: SdcliError | None = None) -> None:
        """The journal's last line. After an error, failing to write it is not reported too."""
        error = error or self.stopped
        planned = len(self.plan.jobs) if self.plan else 0
        flawed = self.flawed > 0 or self.saved < planned
        code = error.code if error else (5 if flawed else 0)
        ended = "interrupted" if code in (Interrupted.code, Terminated.code) else "done" if code == 0 else ""
        ended = "cancelled" if isinstance(error, Cancelled) else ended
        status = ended or ("partial" if self.saved else "failed")
        if self.journal is not None:
            try:
                self.journal.append("end", status=status, exit_code=code)
            except OSError as failed:
                if error is None:
                    raise self._cannot_write(self.journal.path, failed) from None

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    # --- images

    def save(self, event: Decoded) -> Iterator[Event]:
        started = self.clock()
        plan, journal = self.plan, self.journal
        if plan is None or journal is None:
            raise Bug("an image came before its plan")
        pixel_sha256 = hashlib.sha256(event.pixels).hexdigest()
        record = self._record(plan, event, pixel_sha256)
        asked = plan.request
        file = encode(
            event.pixels, event.width, event.height, self.destination.format, record, asked.metadata, asked.quality
        )  # fmt: skip
        intent = Intent(
            index=event.index,
            batch=event.batch,
            file="",
            bytes=len(file.data),
            pixel_sha256=pixel_sha256,
            file_sha256=hashlib.sha256(file.data).hexdigest(),
            status="suspect" if file.flat else "saved",
        )
        try:
            written = self._write(event, file.data, intent, journal)
        except (OSError, CannotWrite) as error:
            refusal = error if isinstance(error, CannotWrite) else self._cannot_write(self._target(error), error)
            self.flawed += 1
            yield event
            yield Failed(batch=event.batch, index=event.index, error=refusal.to_json())
            raise refusal from None
        self.count(written.name, intent.status)
        self._passed(event.batch)
        saved = _saved(event, intent, written, self.destination.format, self.clock() - started)
        yield event
        yield from _warnings(saved, file, plan.request.metadata)
        yield saved
        if written.journal_error is not None:
            raise self._cannot_write(journal.path, written.journal_error)

    def _record(self, plan: Plan, event: Decoded, pixel_sha256: str) -> own.ImageRecord:
        batch = self._batch(event.batch)
        return own.ImageRecord(
            version=__version__,
            job=event.job,
            setup=event.setup or plan.setup,
            model=own.RecordedModel(
                name=plan.model.name, revision=plan.model.revision, hash=plan.model.hash, weights=self._weights(plan)
            ),
            scheduler=event.scheduler,
            negative=event.job.negative_prompt,
            batch=own.batch_position(plan, event.batch, event.index, batch.size, batch.passed),
            degraded=tuple(schema.to_json(fallback) for fallback in batch.degraded),
            pixel_sha256=pixel_sha256,
            environment=self.environment,
        )

    def _weights(self, plan: Plan) -> Mapping[str, str]:
        """Looked at once, with the first image: the files were just read then, and are in the system's cache."""
        if self.weights is None:
            self.weights = self._fingerprints(plan.model)
        return self.weights

    def _target(self, error: OSError) -> Path:
        named = error.filename2 or error.filename
        return Path(named) if isinstance(named, str) and not named.endswith(".part") else self.destination.folder

    def _write(self, event: Decoded, data: bytes, intent: Intent, journal: Journal) -> Written:
        """On OSError nothing of this image exists under any name."""
        journal.check()  # a folder that is gone would be made anew, for an image that no journal has
        if self.destination.kind == "numbered":
            self._number(event.index)

        def announced(name: str) -> None:
            journal.append("intent", **schema.to_json(replace(intent, file=name)))

        names = self.destination.names(event.job, self.number)
        name, path, attempt = place(
            self.destination, names, event.index, data, own=self.names, files=self.files, announced=announced
        )
        return self._settle(name, path, attempt, intent, journal)

    def _number(self, index: int) -> None:
        """The next one; in the order of the plan where several draw, since who is first is chance."""
        if self.plan is None or not self.plan.workers:
            self.number = self.number or next_number(self.destination.folder)
            return
        self.first = self.first or next_number(self.destination.folder)
        self.number = self.first + index

    def _settle(self, name: str, path: Path, attempt: int, intent: Intent, journal: Journal) -> Written:
        """The image has its name; from here on it counts, whatever fails."""
        self.number += attempt + 1
        journal_error: OSError | None = None
        try:
            self.files.sync_folder(path.parent)
            journal.append("done", index=intent.index)
        except OSError as error:
            journal_error = error
        return Written(name=name, path=path, journal_error=journal_error)


def place(
    destination: Destination, names: Iterator[str], index: int, data: bytes, *, own: Collection[str], files: Files,
    announced: Callable[[str], None] = lambda name: None,
) -> tuple[str, Path, int]:  # fmt: skip
    """Writes it beside its place, and gives it the first name that is free: that, its path, and how many were taken. A
    name is `announced` before it appears. On OSError nothing of it exists under any name."""
    part: Path | None = None
    try:
        for attempt, name in enumerate(names):
            path = inside(destination.folder, name)
            ours = name in own  # --overwrite replaces files from before this run, not its own images
            if destination.kind == "file" and not ours and path_taken(path) and not destination.overwrite:
                raise already_there(path)  # by another run since this one began
            if ours or (path_taken(path) and not destination.overwrite):
                if attempt > MOST_NAMES:
                    raise FileExistsError(17, "every name is taken", str(path))
                continue
            if part is None or part.parent != path.parent:
                files.make_folder(path.parent)
                part = destination.part(index, name)
                discard(files, part)
                write_new(files, part, [data])
            announced(name)
            try:
                publish(files, part, path, overwrite=destination.overwrite)
            except FileExistsError:
                if destination.kind == "file" and not ours:
                    raise already_there(path) from None
                continue  # taken this very moment: try the next name
            part = None
            return name, path, attempt
        raise AssertionError("names never end")
    finally:
        if part is not None:
            discard(files, part)


def path_taken(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _saved(event: Decoded, intent: Intent, written: Written, format: str, seconds: float) -> Saved:
    return Saved(
        batch=event.batch,
        index=event.index,
        status=intent.status,
        file=written.name,
        path=str(written.path),
        format=format,
        worker=event.worker,
        bytes=intent.bytes,
        width=event.width,
        height=event.height,
        pixel_sha256=intent.pixel_sha256,
        file_sha256=intent.file_sha256,
        seconds=seconds,
    )


def _warnings(saved: Saved, file: ImageFile, metadata: str) -> Iterator[Event]:
    if saved.status == "suspect":
        yield Warned(code="flat-picture", message=f"{show(saved.file)} is one flat colour")
    if file.metadata != metadata:
        yield Warned(
            code="metadata-left-out",
            message=f"{show(saved.file)}: the settings are too long for a {saved.format} and were left out",
        )
