"""`sdcli generate`: connects the plan, the engine, the store and the sinks. Decisions are made elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdcli import events
from sdcli.cli import builtin, complete, input_images, not_needed, plan_screen, remembering
from sdcli.cli.answer import Answered, bug_of, say_error, say_note, trace
from sdcli.cli.ask import PlannedRun
from sdcli.cli.ending import check, over
from sdcli.cli.pull import plan_with_model
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
from sdcli.events import Event, Planned, Timed, Warned
from sdcli.machine import survey
from sdcli.machine.clock import since_start
from sdcli.machine.environment import environment
from sdcli.plan.batches import Batch
from sdcli.plan.plan import Plan
from sdcli.plan.refusal import refused
from sdcli.record import documents, names, report, runs
from sdcli.record.report import Folding
from sdcli.record.sinks.filmstrip import Filmstrip
from sdcli.record.sinks.json_lines import JsonLines
from sdcli.record.sinks.paths import Paths
from sdcli.record.sinks.progress import Progress
from sdcli.record.sinks.watch import Sink, Watch
from sdcli.record.store import store
from sdcli.request.options import OPTIONS, SAVE_CONTROL, SCREEN
from sdcli.request.options import command as make
from sdcli.terminal import StdoutLost, is_terminal, put, say, show, speaks_unicode, width

MOST_SEEDS = 20  # that a hint lists one by one


def command() -> Callable[..., None]:
    options = [*OPTIONS, *not_needed.FLAGS, *SCREEN, SAVE_CONTROL]
    return make(
        _generate, options, name="generate", words="PROMPT", complete=complete.values,
        help='Draw images from prompts: sdcli generate "a cat" -n 4',
    )  # fmt: skip


def _generate(typed: dict[str, Any]) -> None:
    raise Answered(draw(plan_with_model(typed), typed))


def draw(planned: PlannedRun, typed: dict[str, Any]) -> int:
    """One run, from its plan to the last word on the screen; its exit code."""
    plan = planned.plan
    if not plan.fits:
        raise refused(plan)
    destination = names.prepare(plan.request, count=len(plan.jobs), model=plan.model.name, origins=plan.origins)
    screen = Screen(typed, plan)
    screen.announce()
    if typed.get("save_control"):
        for path in input_images.save_controls(plan.jobs, destination.folder):
            screen.saved_control(path)
    around = environment(plan.hardware)
    folding = Folding(started=runs.now(), run=destination.run, clock=since_start, environment=around)
    stored = store(_events(planned, typed.get("engine", "local")), destination, environment=around)
    strip = Filmstrip(plan.request.filmstrip, on_saved=screen.strip)
    sinks: tuple[Sink, ...] = (screen.progress, screen.image, strip, *screen.results(folding, destination))
    watch = Watch(*sinks, record=folding)
    error = _drain(watch(stored), stored, folding, plan, destination.records) or watch.lost
    over()
    finished = _recorded(error, folding, planned, destination)
    try:
        screen.finish(finished, destination)
    except StdoutLost as lost:
        if finished.error is None:
            raise _completed(lost, folding, planned, destination) or lost from None
        say_error(from_json(dict(finished.error)))  # the first error is the run's
    if error is not None and typed.get("debug"):
        trace(error)
    return finished.exit_code


def _recorded(
    error: SdcliError | None, folding: Folding, planned: PlannedRun, destination: names.Destination
) -> report.Report:
    """The report, also written to disk. A failure to write it is the run's error only if there was no other."""
    finished = folding.report(_completed(error, folding, planned, destination))
    if not destination.records.exists():  # it ended before it began
        return finished
    try:
        report.write(finished, destination.records / "report.json")
    except CannotWrite as failed:
        if error is None:
            return folding.report(_completed(failed, folding, planned, destination))
    remembering.remember(planned.plan, finished)
    return finished


# --- the engine and its events


def _events(planned: PlannedRun, engine: str) -> Iterator[Event]:
    yield Planned(plan=planned.plan)
    yield Timed(phase="plan", seconds=since_start() - planned.imported)
    if planned.imported:
        yield Timed(phase="import", seconds=planned.imported)
    for warning in planned.plan.warnings:
        if warning.code == builtin.CODE:
            yield Warned(code=warning.code, message=warning.message)
    from sdcli.draw import engines

    with engines.engine(engine) as drawing:
        yield from drawing.run(planned.plan, _batches(planned))


def _batches(planned: PlannedRun) -> Iterable[Batch]:
    """The plan's batches; then, if jobs come from stdin, those, one by one as they are read."""
    plan = planned.plan
    own = plan.numbered()
    if planned.later is None:
        return own
    return itertools.chain(own, ((number, (job,)) for number, job in enumerate(planned.later, len(own))))


def _drain(
    stream: Iterator[Event], stored: Iterator[Event], folding: Folding, plan: Plan, records: Path
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
            folding.add_recovered(runs.recover(runs.read(records)).done)
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
    error: SdcliError | None, folding: Folding, planned: PlannedRun, destination: names.Destination
) -> SdcliError | None:
    """The error with what was kept, and how to draw the rest."""
    if error is None:
        return None
    kept, total = folding.kept
    if not error.done and kept:
        error.done = f"{kept} of {total} images in {show(destination.folder, 200)}"
    if not error.hint and isinstance(error, (Interrupted, Terminated)):
        error.hint = _the_rest(folding, planned, destination)
    return error


def _the_rest(folding: Folding, planned: PlannedRun, destination: names.Destination) -> str:
    """The same command for the remaining seeds, if one line can name them; else where the rest is listed."""
    jobs = planned.plan.jobs
    kept = {image.index for image in folding.images() if image.kept}
    remaining = [job for job in jobs if job.index not in kept]
    kinds = {replace(job, index=0, seed=0) for job in jobs}
    seeds = [job.seed for job in remaining]
    consecutive = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    if planned.later is not None or len(kinds) > 1 or not seeds or (len(seeds) > MOST_SEEDS and not consecutive):
        return f"the same command for the images listed as missing in {show(destination.records / runs.REPORT, 300)}"
    listed = f"{seeds[0]}..{seeds[-1]}" if consecutive else ",".join(map(str, seeds))
    return f"the same command with --seed {listed}" + (" and without -n" if len(jobs) > 1 else "")


# --- what is shown


class Screen:
    """Messages on stderr, results on stdout, as the flags request."""

    def __init__(self, typed: dict[str, Any], plan: Plan) -> None:
        self.plan = plan
        self.json = bool(typed.get("json"))
        self.json_lines = bool(typed.get("json_lines"))
        self.quiet = bool(typed.get("quiet"))
        self.real = typed.get("engine", "local") == "local"
        self.show = typed.get("show")
        self.progress = Progress(sys.stderr, verbose=bool(typed.get("verbose")), quiet=self.quiet)

    def announce(self) -> None:
        """The plan in a line or two, before anything is loaded."""
        if self.quiet:
            return
        notice = survey.gpu_warning(self.plan.hardware, asked=self.plan.request.device)
        if notice is not None:
            say(f"{notice.message}; {notice.hint}")
        for warning in self.plan.warnings:
            if warning.code != builtin.CODE:  # that one comes with the events
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
