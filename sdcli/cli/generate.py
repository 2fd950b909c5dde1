"""`sdcli generate`: the plan, the engine, the store and the sinks, joined. Decisions are made elsewhere."""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import typer

from sdcli import events
from sdcli.cli import adapters, builtin, complete, not_taken, plan_screen, remembering
from sdcli.cli.answer import say_error
from sdcli.cli.ask import Asked
from sdcli.cli.ending import termination
from sdcli.cli.former import FORMER_FLAGS, NOT_NEEDED
from sdcli.cli.pull import plan_with_model
from sdcli.errors import Interrupted, SdcliError, Terminated
from sdcli.events import Event, Planned, Timed, Warned
from sdcli.machine import hardware
from sdcli.machine.clock import since_start
from sdcli.machine.environment import environment
from sdcli.plan.plan import Plan
from sdcli.plan.refusal import refused
from sdcli.record import names, report, runs
from sdcli.record.report import Folding
from sdcli.record.sinks.filmstrip import Filmstrip
from sdcli.record.sinks.json_lines import JsonLines
from sdcli.record.sinks.json_object import write_object
from sdcli.record.sinks.paths import Paths
from sdcli.record.sinks.progress import Progress
from sdcli.record.sinks.watch import Sink, watch
from sdcli.record.store import store
from sdcli.request import tokenizer
from sdcli.request.options import OPTIONS, SCREEN
from sdcli.request.options import command as make
from sdcli.request.request import Job
from sdcli.terminal import is_terminal, say, show, speaks_unicode, width

Batches = Iterable[tuple[int, tuple[Job, ...]]]


def command() -> Callable[..., None]:
    return make(
        _generate, [*OPTIONS, *FORMER_FLAGS, *SCREEN], name="generate", words="PROMPT", complete=complete.values,
        help='Draw pictures from prompts: sdcli generate "a cat" -n 4',
    )  # fmt: skip


def _generate(typed: dict[str, Any]) -> None:
    asked = plan_with_model(typed)
    plan = asked.plan
    if not plan.fits:
        raise refused(plan)
    engine = _engine(typed.get("engine", "local"), plan.model.vocabulary)
    destination = names.prepare(plan.request, count=len(plan.jobs), model=plan.model.name, origins=plan.origins)
    screen = Screen(typed, plan)
    screen.announce()
    around = environment(plan.hardware)
    folding = Folding(started=runs.now(), run=destination.run, clock=since_start, environment=around)
    stream = store(_events(asked, engine), destination, environment=around)
    strip = Filmstrip(plan.request.filmstrip)
    stream = watch(stream, folding, screen.progress, screen.picture, strip, *screen.results(folding, destination))
    error = _drain(stream, folding, plan)
    finished = folding.report(error)
    kept = sum(image.kept for image in finished.images)
    error = _told(error, kept, len(finished.images), destination)
    if kept or error is None:
        report.write(finished, destination.records / "report.json")
        remembering.remember(plan, finished)
    screen.finish(finished, destination, error)
    raise typer.Exit(finished.exit_code)


# --- the engine and its events


def _engine(name: str, vocabulary: str | None) -> Callable[[Plan, Batches], Iterator[Event]]:
    """Where drawing happens. The real one is imported only once its first event is asked for."""
    if name == "fake":
        fake = importlib.import_module("sdcli.draw.fake")
        return partial(fake.run, count_tokens=partial(tokenizer.count, folder=vocabulary))
    return _local


def _local(plan: Plan, batches: Batches) -> Iterator[Event]:
    local = importlib.import_module("sdcli.draw.local")
    yield from local.run(plan, batches)


def _events(asked: Asked, engine: Callable[[Plan, Batches], Iterator[Event]]) -> Iterator[Event]:
    yield Planned(plan=asked.plan)
    yield Timed(phase="plan", seconds=since_start())
    for warning in asked.plan.warnings:
        if warning.code == builtin.CODE:
            yield Warned(code=warning.code, message=warning.message)
    yield from engine(asked.plan, _batches(asked))


def _batches(asked: Asked) -> Batches:
    """The plan's own batches; where jobs come from stdin, those after them, one by one as they are read."""
    plan = asked.plan
    own = [(number, plan.batch(number)) for number in range(len(plan.batches))]
    if asked.later is None:
        return own
    return itertools.chain(own, ((number, (job,)) for number, job in enumerate(asked.later, len(own))))


def _drain(stream: Iterator[Event], folding: Folding, plan: Plan) -> SdcliError | None:
    """Run to the end; an interruption or a typed failure ends the run, what is saved stays."""
    try:
        with termination():
            for _ in stream:
                pass
    except KeyboardInterrupt:
        folding(events.Interrupted(signal="interrupted"))
        return Interrupted("interrupted")
    except Terminated as error:
        folding(events.Interrupted(signal="terminated"))
        return error
    except SdcliError as error:
        return error
    except Exception as error:  # the engine tells of its own; this is of saving and of what is said
        from sdcli.draw import oom

        if not oom.is_out_of_memory(error):
            raise
        because = oom.first_line(error)
    else:
        return None
    from sdcli.draw.exhausted import exhausted  # only now has what was drawn no holder any more

    return exhausted(plan, "outside of drawing", because)


def _told(error: SdcliError | None, kept: int, wanted: int, destination: names.Destination) -> SdcliError | None:
    if error is not None and not error.done and kept:
        error.done = f"{kept} of {wanted} pictures in {show(destination.folder, 200)}"
    return error


# --- what is said


class Screen:
    """Talk on stderr, results on stdout, as the flags ask for them."""

    def __init__(self, typed: dict[str, Any], plan: Plan) -> None:
        self.plan = plan
        self.json = bool(typed.get("json"))
        self.json_lines = bool(typed.get("json_lines"))
        self.quiet = bool(typed.get("quiet"))
        self.show = typed.get("show")
        self.progress = Progress(sys.stderr, verbose=bool(typed.get("verbose")), quiet=self.quiet)

    def announce(self) -> None:
        """The plan in a line or two, before anything is loaded."""
        if self.quiet:
            return
        notice = hardware.gpu_warning(self.plan.hardware, asked=self.plan.request.device)
        if notice is not None:
            say(f"{notice.message}; {notice.hint}")
        for warning in self.plan.warnings:
            if warning.code in (NOT_NEEDED, *not_taken.CODES, *adapters.CODES):
                say(f"note: {warning.message}")
        for line in plan_screen.render_summary(self.plan, width(sys.stderr), not speaks_unicode(sys.stderr)):
            say(line)

    def results(self, folding: Folding, destination: names.Destination) -> list[Sink]:
        """A path, or an object, for each picture as soon as it is on the disk."""
        if self.json:
            return []
        if self.json_lines:
            return [JsonLines(sys.stdout.buffer, folding, destination.folder)]
        return [Paths(sys.stdout.buffer, os.getcwd())]

    def picture(self, event: Event) -> None:
        """The picture itself, where the terminal can show it."""
        if isinstance(event, events.Decoded) and self._shows():
            from sdcli.record.sinks.picture import picture

            columns, rows = shutil.get_terminal_size()
            say(picture(event.width, event.height, event.pixels, columns, rows - 4, os.environ))

    def _shows(self) -> bool:
        usual = len(self.plan.jobs) <= 4 and is_terminal(sys.stderr) and not self.quiet
        return usual if self.show is None else bool(self.show)

    def finish(self, finished: report.Report, destination: names.Destination, error: SdcliError | None) -> None:
        where = destination.records / "report.json"
        self.progress.finish(finished if error is None else None, where)
        if self.plan.model.kind == "builtin" and error is None and not self.quiet:
            say(builtin.photographs())
        if self.json:
            write_object(finished, destination.folder, sys.stdout.buffer)
        elif error is not None:
            say_error(error)
