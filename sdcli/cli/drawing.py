"""A planned run is drawn, saved and shown: connects the engine, the store and the sinks."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli import events
from sdcli.asking import planning, unknown_words
from sdcli.asking.planning import PlannedRun
from sdcli.cli import builtin, plan_screen
from sdcli.cli.answer import bug_of, say_error, say_note, trace
from sdcli.cli.ending import check, over
from sdcli.errors import (
    CannotWrite,
    ImagesFailed,
    Interrupted,
    SdcliError,
    Stop,
    Terminated,
    from_json,
    stopped_by,
)
from sdcli.events import Decoded, Event, Failed, Planned, Queued, Timed, Warned
from sdcli.machine import survey
from sdcli.machine.clock import since_start
from sdcli.machine.environment import environment
from sdcli.plan.batches import Batch, missing
from sdcli.plan.plan import Plan
from sdcli.record import documents, found_runs, names, remembering, report, runs
from sdcli.record.report import Folding
from sdcli.record.sinks.filmstrip import Filmstrip
from sdcli.record.sinks.json_lines import JsonLines
from sdcli.record.sinks.paths import Paths
from sdcli.record.sinks.progress import Progress
from sdcli.record.sinks.watch import Sink, Watch
from sdcli.record.store import store
from sdcli.terminal import StdoutLost, is_terminal, put, say, show, speaks_unicode, width

if TYPE_CHECKING:
    from sdcli.draw.engines import Engine


def draw(
    typed: dict[str, Any], planned: PlannedRun, destination: names.Destination, screen: Screen,
    before: runs.Recovered | None = None, kept: Mapping[int, bytes] | None = None, cluster: Engine | None = None,
) -> int:  # fmt: skip
    """Its exit code. `before`: what of the run is there already, where it goes on; `kept`: the last steps that were
    kept of unfinished batches; `cluster`: what draws, where this machine does not."""
    plan, around = planned.plan, environment(planned.plan.hardware)
    done = before.done if before is not None else {}
    journal = runs.reopen(before.run, around) if before is not None else None
    folding = Folding(started=runs.now(), run=destination.run, clock=since_start, environment=around)
    folding.add_recovered(done)
    happening = _events(planned, cluster or typed.get("engine", "local"), done, kept or {})
    stored = store(_without(done, happening), destination, environment=around, journal=journal, earlier=done)
    strip = Filmstrip(plan.request.filmstrip, on_saved=screen.strip)
    sinks: tuple[Sink, ...] = (screen.progress, screen.image, strip, *screen.results(folding, destination))
    watch = Watch(*sinks, record=folding)
    error = _drain(watch(stored), stored, folding, plan, destination) or watch.lost
    happening.close()  # an interruption may have come anywhere; workers end before this process does
    over()
    again = _resuming(destination, typed)
    if error is None and plan.request.sweep:
        error = _with_grid(folding, plan, destination, screen)
    finished = _recorded(error, folding, planned, destination, again)
    try:
        screen.finish(finished, destination)
    except StdoutLost as lost:
        if finished.error is None:
            raise _completed(lost, folding, planned, destination, again) or lost from None
        say_error(from_json(dict(finished.error)))  # the first error is the run's
    if error is not None and typed.get("debug"):
        trace(error)
    return finished.exit_code


def _recorded(
    error: SdcliError | None,
    folding: Folding,
    planned: PlannedRun,
    destination: names.Destination,
    again: str,
) -> report.Report:
    """The report, also written to disk. A failure to write it is the run's error only if there was no other."""
    finished = folding.report(_completed(error, folding, planned, destination, again))
    if not os.path.isdir(destination.records):  # it ended before it began
        return finished
    try:
        report.write(finished, destination.records / "report.json")
    except CannotWrite as failed:
        if error is None:
            failed.hint = again
            return folding.report(_completed(failed, folding, planned, destination, again))
    remembering.remember(planned.plan, finished)
    return finished


def _with_grid(folding: Folding, plan: Plan, destination: names.Destination, screen: Screen) -> SdcliError | None:
    """A sweep's images side by side, once there are all of them."""
    from sdcli.explore import writing  # of no use to others

    images = folding.images()
    if not any(image.kept for image in images):
        return None
    try:
        paths = writing.write(destination.run, plan.request.sweep, images, destination.folder)
    except CannotWrite as failed:
        return failed
    screen.grid(paths[0])
    return None


# --- the engine and its events


def _events(
    planned: PlannedRun, engine: Engine | str, done: Collection[int], kept: Mapping[int, bytes]
) -> Generator[Event, None, None]:  # fmt: skip
    yield Planned(plan=planned.plan)
    yield Timed(phase="plan", seconds=since_start() - planned.imported)
    if planned.imported:
        yield Timed(phase="import", seconds=planned.imported)
    for warning in planned.plan.warnings:
        if warning.code == unknown_words.CODE:
            yield Warned(code=warning.code, message=warning.message)
    if not planned.plan.jobs and planned.later is None:
        return  # a shard of fewer batches than there are shards
    queued: deque[Queued] = deque()
    with _engine(planned.plan, engine) if isinstance(engine, str) else engine as drawing:
        for event in drawing.run(planned.plan, _batches(planned, done, queued), kept):
            while queued:
                yield queued.popleft()
            yield event


def _engine(plan: Plan, name: str) -> Engine:
    """One that draws in this process, or a worker for each of several devices."""
    if plan.workers:
        from sdcli.scale.pool import Pool

        return Pool(name)
    from sdcli.draw import engines

    return engines.engine(name)


def _batches(planned: PlannedRun, done: Collection[int], queued: deque[Queued]) -> Iterable[Batch]:
    """The plan's batches with an image still to be drawn, a list that the engine may look ahead into; then, if jobs
    come from stdin, those, one by one as they are read."""
    own = missing(planned.plan.numbered(), done)
    return own if planned.later is None else itertools.chain(own, _later(planned, queued))


def _later(planned: PlannedRun, queued: deque[Queued]) -> Iterator[Batch]:
    for number, job in enumerate(planned.later or (), len(planned.plan.batches)):
        queued.append(Queued(batch=number, jobs=(job,)))
        yield number, (job,)


def _without(done: Collection[int], happening: Iterator[Event]) -> Iterator[Event]:
    """What happens, but for images that are there already."""
    return (event for event in happening if not (isinstance(event, (Decoded, Failed)) and event.index in done))


def _drain(
    stream: Iterator[Event], stored: Iterator[Event], folding: Folding, plan: Plan, destination: names.Destination
) -> SdcliError | None:  # fmt: skip
    """Run to the end; an interruption or a typed failure ends the run, and what is saved stays."""
    try:
        for _ in stream:
            check()
    except (KeyboardInterrupt, Stop) as stop:
        with contextlib.suppress(KeyboardInterrupt, Stop, StopIteration):
            stored.throw(stop)  # type: ignore[attr-defined]  # raised while watching: the journal ends with it too
        error = stopped_by(stop)
        folding(events.Interrupted(signal=error.type))
        with contextlib.suppress(SdcliError, OSError):  # an image may have been renamed as the signal arrived
            folding.add_recovered(runs.last_image(destination, plan))
        return error
    except SdcliError as failed:
        return failed
    except Exception as failure:  # the engine raises typed errors; this comes from saving or showing
        from sdcli.draw import oom

        with contextlib.suppress(Exception):
            stored.throw(failure)  # type: ignore[attr-defined]
        if not oom.is_out_of_memory(failure):
            return bug_of(failure)
        because = oom.first_line(failure)
    else:
        return None
    from sdcli.draw.exhausted import exhausted  # only now does nothing hold the drawn tensors any more

    return exhausted(plan, "outside of drawing", because)


def _completed(
    error: SdcliError | None,
    folding: Folding,
    planned: PlannedRun,
    destination: names.Destination,
    again: str,
) -> SdcliError | None:
    """The error with what was kept, and how to draw the rest."""
    if error is None:
        return None
    counted = folding.tally
    if not error.done and counted.kept:
        error.done = f"{counted.kept} of {counted.images} images in {show(destination.folder, 200)}"
    if isinstance(error, (Interrupted, Terminated)) and not error.hint:
        error.hint = _going_on(folding, planned, destination, again)
    return error


def _going_on(folding: Folding, planned: PlannedRun, destination: names.Destination, again: str) -> str:
    """The line that draws the rest, where anything is left."""
    begun = os.path.isfile(destination.records / runs.JOURNAL)
    if not begun or (not folding.tally.lost and planned.later is None):
        return ""
    return again if planned.later is None else f"{again}   (prompts not yet read from stdin are not in it)"


def _resuming(destination: names.Destination, typed: Mapping[str, Any]) -> str:
    line = f"sdcli resume {found_runs.called(destination.records)}"
    return line if planning.of_cluster(typed) is None else f"{line} --engine {typed['engine']}"


# --- what is shown


class Screen:
    """Messages on stderr, results on stdout, as the flags request."""

    def __init__(self, typed: dict[str, Any], plan: Plan, kept: Collection[int] = ()) -> None:
        self.plan = plan
        self.json = bool(typed.get("json"))
        self.json_lines = bool(typed.get("json_lines"))
        self.quiet = bool(typed.get("quiet"))
        self.real = typed.get("engine", "local") == "local"
        self.show = typed.get("show")
        self.progress = Progress(sys.stderr, verbose=bool(typed.get("verbose")), quiet=self.quiet, kept=kept)

    def announce(self) -> None:
        """The plan in a line or two, before anything is loaded."""
        if self.quiet:
            return
        notice = survey.gpu_warning(self.plan.hardware, asked=self.plan.request.device)
        if notice is not None:
            say(f"{notice.message}; {notice.hint}")
        for warning in self.plan.warnings:
            if warning.code != unknown_words.CODE:  # that one comes with the events
                say_note(warning.message)
        plan = self.plan if self.real else replace(self.plan, seconds=None)  # predictions are of the local engine
        for line in plan_screen.render_summary(plan, width(sys.stderr), not speaks_unicode(sys.stderr)):
            say(line)

    def results(self, folding: Folding, destination: names.Destination) -> list[Sink]:
        """A path, or an object, for each image as soon as it is on disk."""
        if self.json:
            return []
        if self.json_lines:
            return [JsonLines(put, folding, destination.folder)]
        return [Paths(put, os.getcwd())]

    def image(self, event: Event) -> None:
        """The image itself, if the terminal can show it."""
        if isinstance(event, events.Decoded) and self._shows():
            from sdcli.record.sinks.inline_image import inline_image

            columns, rows = shutil.get_terminal_size()
            say(inline_image(event.width, event.height, event.pixels, columns, rows - 4, os.environ))

    def _shows(self) -> bool:
        usual = len(self.plan.jobs) <= 4 and is_terminal(sys.stderr) and not self.quiet
        return usual if self.show is None else bool(self.show)

    def saved_control(self, path: Path) -> None:
        if not self.quiet:
            say(f"control image: {show(os.path.relpath(path))}")

    def grid(self, path: Path) -> None:
        if not self.quiet:
            say(f"grid: {show(os.path.relpath(path))}, and .png, .csv and .json beside it")

    def strip(self, path: Path) -> None:
        if not self.quiet:
            say(f"filmstrip: {show(os.path.relpath(path))}")

    def finish(self, finished: report.Report, destination: names.Destination) -> None:
        where = destination.records / "report.json"
        error = from_json(dict(finished.error)) if finished.error else None
        self.progress.finish(finished if error is None or finished.exit_code == ImagesFailed.code else None, where)
        if self.plan.model.kind == "builtin" and error is None and not self.quiet:
            say(builtin.photographs())
        if self.json:
            put(*documents.pieces(report.to_json(finished, destination.folder)), b"\n")  # one line
        elif error is not None:
            say_error(error)
