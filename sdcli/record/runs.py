"""run.jsonl, the journal of a run: written line by line before and after each image, read back after a crash."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

from sdcli import __version__, reading, schema
from sdcli.errors import BadFile, Usage
from sdcli.events import Degraded
from sdcli.files import REAL, Files, cannot_write, discard, write_whole
from sdcli.plan.plan import Plan
from sdcli.record import documents, used_files
from sdcli.record.names import Destination, part_of_run, part_prefix, values_of
from sdcli.record.names import filled as fill
from sdcli.record.names import parse_template as parse
from sdcli.record.used_files import UsedFile
from sdcli.request.request import Job
from sdcli.terminal import quoted, show

NAME, NEWEST = "sdcli.run", 1
JOURNAL, REPORT = "run.jsonl", "report.json"
LONGEST_LINE = 256 << 20
LARGEST_STEP = 256 << 20
LAST_LINES = 64 << 10  # bytes at a journal's end, those of its last image among them
_STEP = ".step.safetensors"
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CRC = re.compile(rb',"crc":"([0-9a-f]{8})"\}\n\Z')


def step_file(records: Path, batch: int) -> Path:
    """The last step that was kept of a batch, until its images are saved."""
    return records / f"{batch:06d}{_STEP}"


def kept_steps(records: Path) -> dict[int, bytes]:
    """By batch."""
    kept = {}
    for number, path in _step_files(records).items():
        with contextlib.suppress(OSError):
            kept[number] = reading.whole(path, LARGEST_STEP)
    return kept


def _step_files(records: Path) -> dict[int, Path]:
    named = {path.name.removesuffix(_STEP): path for path in records.glob("*" + _STEP)}
    return {int(number): path for number, path in named.items() if number.isdecimal()}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def plan_json(plan: Plan, whole: bool = False) -> dict[str, Any]:
    """The plan as runs and reports keep it: without `ways`, the table that served the choice. Only the journal has it
    `whole`, with where its files are, so that the run can be resumed."""
    data: dict[str, Any] = schema.to_json(plan, whole)
    data.pop("ways", None)
    return data


# --- writing


class Journal:
    """The open journal. Each line is one write and one fsync; a line that failed leaves no trace."""

    def __init__(self, path: Path, file: int, length: int, files: Files) -> None:
        self.path = path
        self._file = file
        self._length = length
        self._files = files
        self._broken = False

    def append(self, kind: str, **fields: Any) -> None:
        data = line({"type": kind, **fields})
        if self._broken:
            raise OSError(errno.EIO, "an earlier line could not be removed")
        try:
            write_whole(self._files, self._file, data)
            self._files.sync(self._file)
        except OSError:
            # Half a line in the middle would make the whole journal unreadable; at the end it is only torn.
            try:
                self._files.truncate(self._file, self._length)
            except OSError:
                self._broken = True
            raise
        self._length += len(data)

    def check(self) -> None:
        """OSError where it can no longer be found: lines go on into a file that is gone."""
        self._files.find(self.path)

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):  # every line is on the disk already
                self._files.close(file)


def line(fields: Mapping[str, Any]) -> bytes:
    """One JSON object with the checksum of its own bytes as the last key."""
    body = b"".join(documents.pieces(fields))
    return body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body)


def begin(
    destination: Destination, plan: Plan, environment: Mapping[str, Any], *, files: Files = REAL, created: str = ""
) -> Journal:
    """The folders and the journal of a new run, on disk before the first image."""
    path = destination.records / JOURNAL
    try:
        files.make_folder(destination.folder)
        files.make_folder(destination.records)
        file = files.create(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    journal = Journal(path, file, 0, files)
    _lock(file)
    try:
        journal.append("run", **head(destination, plan, environment, used_files.seen(plan), created or now()))
        for folder in (destination.records, destination.records.parent, destination.folder):
            files.sync_folder(folder)
        _discard_abandoned(destination, plan, files)
    except BaseException as error:
        journal.close()
        if not isinstance(error, OSError):
            raise
        discard(files, path)
        raise cannot_write(path, error) from None
    return journal


def head(
    destination: Destination, plan: Plan, environment: Mapping[str, Any], used: Sequence[UsedFile], created: str
) -> dict[str, Any]:
    """What the first line says."""
    return {
        "schema": f"{NAME}/{NEWEST}",
        "run": destination.run,
        "created": created,
        "version": __version__,
        "output": _output(destination),
        "plan": plan_json(plan, whole=True),
        "files": schema.to_json(tuple(used)),
        "environment": schema.to_json(environment),
    }


def _output(destination: Destination) -> dict[str, Any]:
    """How names are made, for resume; the folder only if the records lie outside it."""
    return {
        "folder": str(destination.folder) if destination.records_apart else None,
        "kind": destination.kind,
        "pattern": destination.pattern,
        "format": destination.format,
        "model": destination.model,
        "overwrite": destination.overwrite,
    }


def reopen(run: RecordedRun, environment: Mapping[str, Any], *, files: Files = REAL) -> Journal:
    """The journal of an interrupted run, open to continue: its torn end is cut off and the resumption noted."""
    path = run.destination.records / JOURNAL
    try:
        file = files.append(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    if _lock(file) is False:
        files.close(file)
        raise Usage(f"run {show(run.run)} is being drawn by another process", hint="wait until that process ends")
    journal = Journal(path, file, run.length, files)
    try:
        files.truncate(file, run.length)
        journal.append("resumed", at=now(), environment=schema.to_json(environment))
    except OSError as error:
        journal.close()
        raise cannot_write(path, error) from None
    return journal


def _lock(file: int) -> bool | None:
    """False when another process holds the journal, None where the storage has no locks."""
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _lock_on_windows(file: int) -> bool:
    """One byte far behind the end: a lock on Windows forbids reading too, and others may read."""
    import importlib

    msvcrt: Any = importlib.import_module("msvcrt")
    position = os.lseek(file, 0, os.SEEK_CUR)
    try:
        os.lseek(file, 1 << 40, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    finally:
        os.lseek(file, position, os.SEEK_SET)
    return True


def is_running(records: Path) -> bool:
    return _locked(records) is False


def _locked(records: Path) -> bool | None:
    """What `_lock` says of this run's journal; None also where there is no journal to open."""
    try:
        file = os.open(records / JOURNAL, os.O_RDWR)
    except OSError:
        return None
    try:
        return _lock(file)
    finally:
        os.close(file)


# --- reading


@dataclass(frozen=True, kw_only=True, slots=True)
class Intent:
    """What an image will be, written before its name appears."""

    index: int
    batch: int
    file: str  # relative to the output folder, with `/`
    bytes: int
    pixel_sha256: str
    file_sha256: str
    status: str = "saved"  # saved | suspect


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A journal, read."""

    run: str
    created: str
    version: str
    destination: Destination
    plan: Plan  # with the jobs that were read later
    files: tuple[UsedFile, ...] = ()  # that it draws from, as they were
    environment: Mapping[str, Any] = field(default_factory=dict)
    intents: Mapping[int, Intent] = field(default_factory=dict)  # the last of each image
    noted: frozenset[int] = frozenset()  # those with a `done` line
    failed: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    degraded: tuple[Degraded, ...] = ()
    end: Mapping[str, Any] | None = None
    length: int = 0  # bytes up to the end of the last whole line


def read(records: Path) -> RecordedRun:
    """The journal in this folder. A torn last line is dropped; a bad line elsewhere is BadFile."""
    path = records / JOURNAL
    where = show(path)
    try:
        with open(path, "rb") as file:
            return _run(_Lines(file, where, _forget(records)), records.resolve(), where)
    except OSError as error:
        raise BadFile(f"{where} cannot be read: {show(error.strerror)}", hint=_forget(records)) from None


class _Lines:
    """The lines of a journal, one by one: it may have millions. `length`: bytes up to the end of the last whole one."""

    def __init__(self, file: IO[bytes], where: str, hint: str) -> None:
        self._file, self._where, self._hint = file, where, hint
        self.length = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        torn_at = number = 0
        while raw := self._file.readline(LONGEST_LINE):
            number += 1
            if torn_at:
                raise BadFile(f"{self._where}, line {torn_at}: damaged", hint=self._hint)
            parsed = _checked(raw)
            if parsed is None:
                torn_at = number
                continue
            self.length += len(raw)
            yield parsed
        if not self.length:
            raise BadFile(f"{self._where}: no complete line", hint=self._hint)


def _forget(records: Path) -> str:
    return show(f"mv {quoted(str(records))} {quoted(f'{records}-damaged')}") + "   (its images stay)"


def _checked(raw: bytes) -> dict[str, Any] | None:
    """The object of one line, or None when its bytes are not those that were written."""
    checksum = _CRC.search(raw)
    if checksum is None or zlib.crc32(raw[: checksum.start()] + b"}") != int(checksum[1], 16):
        return None
    try:
        return reading.read(raw, "a line")
    except BadFile:
        return None


def _run(lines: _Lines, records: Path, where: str) -> RecordedRun:
    following = iter(lines)
    head = next(following)
    if head.get("type") != "run":
        raise BadFile(f"{where}: its first line does not describe a run")
    documents.check_schema(head, NAME, NEWEST, where)
    if not _RUN.fullmatch(str(head.get("run"))):
        raise BadFile(f"{where}: {show(head.get('run'), 60)} is not the name of a run")
    plan = head.get("plan")
    documents.check_schema(plan if isinstance(plan, dict) else {}, "sdcli.plan", 1, where)
    planned = schema.from_json(Plan, plan, where, whole=True)
    queued: list[tuple[Job, ...]] = []
    intents: dict[int, Intent] = {}
    done: set[int] = set()
    failed: dict[int, Mapping[str, Any]] = {}
    degraded: list[Degraded] = []
    end = None
    for data in following:
        kind = data.get("type")
        if kind == "queued":
            queued.append(_queued(data, len(planned.batches) + len(queued), where))
        elif kind == "intent":
            intent = _intent(data, where)
            intents[intent.index] = intent
            failed.pop(intent.index, None)
        elif kind == "done":
            done.add(_index(data, where))
        elif kind == "failed":
            failed[_index(data, where)] = data.get("error") or {}
        elif kind == "degraded":
            degraded.append(schema.from_json(Degraded, data, where))
        elif kind == "resumed":
            end = None
        elif kind == "end":
            end = data
    environment = head.get("environment")
    return RecordedRun(
        run=str(head.get("run")),
        created=str(head.get("created")),
        version=str(head.get("version")),
        destination=_destination(head, records, where),
        plan=_with_queued(planned, queued, where),
        files=tuple(schema.from_json(UsedFile, one, where) for one in _listed(head.get("files"))),
        environment=environment if isinstance(environment, dict) else {},
        intents=intents,
        noted=frozenset(done),
        failed=failed,
        degraded=tuple(degraded),
        end=end,
        length=lines.length,
    )


def _listed(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []


def _queued(data: Mapping[str, Any], number: int, where: str) -> tuple[Job, ...]:
    if data.get("batch") != number:
        raise BadFile(f"{where}: its jobs are not in order")
    return tuple(schema.from_json(Job, job, where, whole=True) for job in _listed(data.get("jobs")))


def _with_queued(plan: Plan, queued: Sequence[tuple[Job, ...]], where: str) -> Plan:
    """And the batches of jobs that were read while the run was drawn."""
    jobs = (*plan.jobs, *itertools.chain.from_iterable(queued))
    indices = [job.index for job in jobs]
    if indices[len(plan.jobs) :] != sorted(set(indices))[len(plan.jobs) :]:  # other shards have those between
        raise BadFile(f"{where}: its jobs are not in order")
    return replace(plan, jobs=jobs, batches=(*plan.batches, *(tuple(job.index for job in batch) for batch in queued)))


def _index(data: Mapping[str, Any], where: str) -> int:
    index = data.get("index")
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise BadFile(f"{where}: a line without the index of its image")
    return index


def _intent(data: Mapping[str, Any], where: str) -> Intent:
    intent = schema.from_json(Intent, data, where)
    path = PurePosixPath(intent.file)
    if path.is_absolute() or ".." in path.parts or "\\" in intent.file or not path.name:
        raise BadFile(f"{where}: {show(intent.file, 120)} is not a file inside the output folder")
    return intent


def _destination(head: Mapping[str, Any], records: Path, where: str) -> Destination:
    output = head.get("output")
    output = output if isinstance(output, dict) else {}
    folder = output.get("folder")
    return Destination(
        folder=Path(folder) if isinstance(folder, str) else records.parent.parent,
        records=records,
        run=str(head.get("run")),
        kind=str(output.get("kind", "numbered")),
        pattern=str(output.get("pattern", "")),
        format=str(output.get("format", "png")),
        model=str(output.get("model", "")),
        overwrite=output.get("overwrite") is True,
    )


# --- after a crash


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What an interrupted run left on disk."""

    run: RecordedRun
    done: Mapping[int, Intent]
    missing: tuple[int, ...]  # to be drawn, in order; those that failed among them


def recover(run: RecordedRun, *, files: Files = REAL) -> Recovered:
    """An image is done when its file exists with the hash its intent names. Partial files are removed, as are the steps
    that were kept of batches whose images are all done."""
    done = {index: intent for index, intent in run.intents.items() if _whole(run.destination.folder, intent)}
    for index, intent in run.intents.items():
        if index not in done and index not in run.noted:
            _discard_claim(run.destination.folder / intent.file, files)
    _discard_own_parts(run.destination, run.plan, files)
    for number, path in _step_files(run.destination.records).items():
        if number < len(run.plan.batches) and set(run.plan.batches[number]) <= set(done):
            discard(files, path)
    missing = tuple(job.index for job in run.plan.jobs if job.index not in done)
    return Recovered(run=run, done=done, missing=missing)


def last_image(destination: Destination, plan: Plan, *, files: Files = REAL) -> dict[int, Intent]:
    """The one that a run was saving as it was interrupted, if it is done; partial files are removed."""
    _discard_own_parts(destination, plan, files)
    try:
        with open(destination.records / JOURNAL, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_LINES))
            lines = [parsed for line in file.readlines() if (parsed := _checked(line)) is not None]
    except OSError:
        return {}
    intents = [_intent(line, "") for line in lines if line.get("type") == "intent"]
    return {intent.index: intent for intent in intents[-1:] if _whole(destination.folder, intent)}


def _discard_own_parts(destination: Destination, plan: Plan, files: Files) -> None:
    for folder in _folders(destination, plan):
        _discard_parts(folder, part_prefix(destination.run), files)
    _discard_parts(destination.records, ".", files)  # of the report and of kept steps


def _whole(folder: Path, intent: Intent) -> bool:
    path = folder / intent.file
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size != intent.bytes:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == intent.file_sha256
    except OSError:
        return False


def _discard_claim(path: Path, files: Files) -> None:
    """The empty file that reserved a name on storage without links, left by a crash before the image replaced it."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            discard(files, path)


def _folders(destination: Destination, plan: Plan) -> set[Path]:
    """Every folder an image of this plan may go to."""
    if destination.kind != "template" or "/" not in destination.pattern:
        return {destination.folder}
    pieces = parse(destination.pattern)
    names = {fill(pieces, values_of(destination, job)) for job in plan.jobs}
    return {(destination.folder / name).parent for name in names}


def _discard_abandoned(destination: Destination, plan: Plan, files: Files) -> None:
    """Partial files of other runs that are not running: a running process holds the lock of its journal. Where the
    lock says nothing (no locks, another user's journal, no journal) they stay: the run may be alive. So they do while
    shards draw, whose machines may share the folder, but not their locks."""
    if plan.request.shard is not None:
        return
    for folder in _folders(destination, plan):
        parts = (part_of_run(path.name) for path in folder.glob(".sdcli-*.part"))
        for run in {run for run in parts if run and run != destination.run}:
            if _locked(destination.records.parent / run):
                _discard_parts(folder, part_prefix(run), files)


def _discard_parts(folder: Path, prefix: str, files: Files) -> None:
    try:
        with os.scandir(folder) as entries:
            parts = [entry.path for entry in entries if entry.name.startswith(prefix) and entry.name.endswith(".part")]
    except OSError:
        return
    for part in parts:
        discard(files, Path(part))
