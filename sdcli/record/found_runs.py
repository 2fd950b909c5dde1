"""The runs that left records on this disk: where they are, and how far each came."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdcli.errors import BadFile, Usage
from sdcli.machine.folders import state_folder
from sdcli.record import runs
from sdcli.record.names import DEFAULT_FOLDER
from sdcli.record.runs import JOURNAL, RecordedRun
from sdcli.terminal import quoted, show

DAMAGED = "damaged"
UNFINISHED = ("interrupted", "stopped", "partial", "failed")
CANCELLED = "cancelled"  # nobody wanted the rest any more: resumed by its name alone


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """`stopped`: it ended without saying so, killed or with the machine."""

    run: str
    state: str  # running | done | partial | failed | interrupted | cancelled | stopped | damaged
    kept: int = 0
    images: int = 0
    created: str = ""
    model: str = ""
    prompt: str = ""
    records: str = ""


def usual_folders() -> tuple[Path, ...]:
    """Where images go unless -o says otherwise, and where single files have their records."""
    return Path(DEFAULT_FOLDER), state_folder()


def found(folders: Iterable[Path]) -> list[Path]:
    """The folders of records in these output folders, newest first."""
    return sorted({records for folder in folders for records in _in(folder)}, key=lambda path: path.name, reverse=True)


def _in(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder / "runs") as entries:
            yield from [Path(entry.path) for entry in entries if os.path.isfile(Path(entry.path) / JOURNAL)]
    except OSError:
        return


def look(records: Path) -> FoundRun:
    try:
        run = runs.read(records)
    except BadFile:
        return FoundRun(run=records.name, state=DAMAGED, records=str(records))
    kept = len(kept_images(run))
    return FoundRun(
        run=run.run, state=_state(run, records, kept), kept=kept, images=len(run.plan.jobs), created=run.created,
        model=run.plan.model.name, prompt=run.plan.jobs[0].prompt if run.plan.jobs else "", records=str(records),
    )  # fmt: skip


def kept_images(run: RecordedRun) -> list[int]:
    """Those whose file is there, by its size alone: hashing is for whoever goes on with the run."""
    return [
        index for index, intent in run.intents.items() if _size(run.destination.folder / intent.file) == intent.bytes
    ]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _state(run: RecordedRun, records: Path, kept: int) -> str:
    if runs.is_running(records):
        return "running"
    if kept >= len(run.plan.jobs):
        return "done"
    if run.end is None:
        return "stopped"
    status = str(run.end.get("status"))
    return status if status in (*UNFINISHED, CANCELLED) else "partial"  # its images were moved or deleted since


def to_resume(named: str | None) -> Path:
    """The records of the run of this name, or of this path; without one, of the newest that is not finished."""
    if named is None:
        return _newest_unfinished(usual_folders(), "")
    path = Path(os.path.expanduser(named))
    if path.name == JOURNAL:
        path = path.parent
    if os.path.isfile(path / JOURNAL):  # Path's own raise where the disk fails
        return path
    if os.path.isdir(path):
        return _newest_unfinished((path,), f" in {show(path, 200)}")
    for records in found(usual_folders()):
        if records.name == named:
            return records
    raise Usage(f"there is no run {show(named, 80)} here", hint="sdcli runs")


def _newest_unfinished(folders: Iterable[Path], where: str) -> Path:
    for records in found(folders):
        one = look(records)
        if one.state in UNFINISHED and one.kept < one.images:
            return records
    raise Usage(f"no run{where} is unfinished", hint="sdcli runs")


def called(records: Path) -> str:
    """What `sdcli resume` takes for it: its name, or its path where that is not looked through by itself."""
    usual = {os.path.abspath(folder) for folder in usual_folders()}
    if os.path.abspath(records.parent.parent) in usual:
        return records.name
    try:
        return quoted(os.path.relpath(records))
    except ValueError:  # on another drive
        return quoted(str(records))
