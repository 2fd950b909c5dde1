"""`sdcli runs`: the runs that left records here, and how far each came."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli import __version__, schema
from sdcli.cli.answer import Answered, print_json, say_error, say_note
from sdcli.errors import Usage, from_json
from sdcli.record import found_runs, merging
from sdcli.record.found_runs import UNFINISHED, FoundRun
from sdcli.record.report import to_json
from sdcli.request.options import OPTIONS, OUTPUT, SCREEN, Option
from sdcli.request.options import command as make
from sdcli.terminal import counted, fit, say, show, tell, width

NEWEST = 20  # shown unless --all
ALL = Option(field="all", flags=("--all",), switch=True, panel=OUTPUT, help=f"Also those before the newest {NEWEST}.")


@dataclass(frozen=True, kw_only=True)
class Runs:
    schema: str = "sdcli.runs/1"
    version: str = __version__
    runs: tuple[FoundRun, ...]


def command() -> Callable[..., None]:
    screen = [option for option in SCREEN if option.field in ("json", "quiet", "debug")]
    output = [option for option in OPTIONS if option.field == "output"]
    return make(
        _runs, [ALL, *output, *screen], name="runs", words="FOLDER | merge RUN",
        help="List runs and how far each came, in FOLDER or where images go by default; or merge the records of "
        "shards: sdcli runs merge images/runs/*-of-8",
    )  # fmt: skip


def _runs(typed: dict[str, Any]) -> None:
    words = tuple(typed.get("words", ()))
    if words[:1] == ("merge",) and not os.path.isdir("merge"):
        raise Answered(_merge(words[1:], typed))
    if "output" in typed:
        raise Usage("-o is for runs merge", hint="sdcli runs")
    folders = tuple(Path(os.path.expanduser(word)) for word in typed.get("words", ()))
    for folder in folders:
        if not os.path.isdir(folder):
            raise Usage(f"{show(folder, 200)} is not a folder", hint="sdcli runs")
    listed = found_runs.found(folders or found_runs.usual_folders())
    shown = listed if typed.get("all") or typed.get("json") else listed[:NEWEST]
    runs = [found_runs.look(records) for records in shown]
    if typed.get("json"):
        print_json(schema.to_json(Runs(runs=tuple(runs))))
        return
    if not runs:
        say("no runs here")
        return
    for line in _table(runs, width(sys.stdout)):
        tell(line)
    if len(listed) > len(runs):
        say(f"{len(listed) - len(runs)} older ones: sdcli runs --all")
    unfinished = next((run for run in runs if run.state in UNFINISHED and run.kept < run.images), None)
    if unfinished is not None:
        say(f"to draw what is missing: sdcli resume {found_runs.called(Path(unfinished.records))}")


def _merge(words: Sequence[str], typed: Mapping[str, Any]) -> int:
    if not words:
        raise Usage("runs merge takes the runs of shards", hint="sdcli runs merge sdcli-images/runs/*-of-8")
    output = typed.get("output")
    records = [found_runs.to_resume(word) for word in words]
    merged = merging.merge(records, Path(os.path.expanduser(output)) if output is not None else None)
    report = merged.report
    if typed.get("json"):
        print_json(to_json(report, merged.destination.folder))
        return report.exit_code
    if not typed.get("quiet"):
        found = report.tally
        say(f"{counted(len(records), 'run')} merged: {found.kept} of {counted(found.images, 'image')}")
        for note in merged.notes:
            say_note(note)
    tell(os.path.relpath(merged.destination.records))
    if report.error is not None:
        say_error(from_json(dict(report.error)))
    return report.exit_code


def _table(runs: Sequence[FoundRun], columns: int) -> list[str]:
    rows = [("run", "state", "images", "model", "prompt")]
    rows += [
        (
            run.run,
            run.state,
            f"{run.kept} of {run.images}" if run.images else "",
            show(run.model, 24),
            show(run.prompt, 80),
        )
        for run in runs
    ]
    sides = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        fit("  ".join([*(text.ljust(side) for text, side in zip(row, sides, strict=False)), row[4]]).rstrip(), columns)
        for row in rows
    ]
