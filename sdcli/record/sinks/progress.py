"""Progress on stderr: one live line on a terminal, a plain line now and then elsewhere; the summary at the end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sdcli import events
from sdcli.events import Event
from sdcli.live import LiveLine, bar, clock_text
from sdcli.plan.plan import Plan
from sdcli.record.report import Report
from sdcli.record.sinks.summary import asked, fallback_text, step_text, summary
from sdcli.sizes import gib
from sdcli.terminal import disk_text, fit, folded, show

FRAME = 0.05  # seconds between two frames of the live line
RECENT = 10  # steps the rate is taken over


@dataclass(frozen=True, kw_only=True)
class State:
    """How far the run is, in steps; pure, so that a line can be drawn from it anywhere."""

    step: int
    of: int
    done: int  # steps of the whole run, this one included
    total: int
    seconds: float  # of one step, lately
    first: int = 1  # images of the batch being drawn
    last: int = 1
    images: int = 1
    device_bytes: int | None = None
    device_peak: int | None = None

    @property
    def left(self) -> float:
        return max(0, self.total - self.done) * self.seconds


def pieces_of(state: State) -> list[str]:
    """Count, rate, time left, memory: in the order in which they may be left out, last first."""
    pieces = [f"{state.step}/{state.of}"]
    if state.seconds > 0:
        rate = 1 / state.seconds
        pieces.append(f"{rate:.1f}/s" if rate >= 1 else f"{step_text(state.seconds)} each")
    pieces.append(clock_text(state.left))
    if state.device_bytes is not None:
        peak = f", max {gib(state.device_peak)}" if state.device_peak is not None else ""
        pieces.append(f"{gib(state.device_bytes)} GiB{peak}")
    return pieces


def label_of(state: State) -> str:
    if state.images == 1:
        return "steps"
    return (
        f"{state.first}/{state.images}" if state.first == state.last else f"{state.first}-{state.last}/{state.images}"
    )


def bar_line(state: State, width: int) -> tuple[str, str, str, str]:
    return bar(label_of(state), pieces_of(state), state.done / max(1, state.total), width)


class RunProgress:
    """How far all batches are, in whatever order their steps come. Batches that no plan lists are of prompts that are
    read one by one, and have one image each."""

    def __init__(self) -> None:
        self._positions: list[tuple[int, int]] = []  # of each batch the number of its first image, and how many it has
        self._planned = 0  # images
        self._steps: dict[tuple[int, str], tuple[int, int]] = {}  # of batch and stage: done and in all
        self._done = 0  # steps of stages that are over
        self._total = 0  # steps of all batches known
        self._images = 0

    def plan(self, plan: Plan, kept: Collection[int] = ()) -> None:
        """`kept`: images that are there already."""
        for number, batch in enumerate(plan.batches):
            self._positions.append((self._planned + 1, len(batch)))
            self._planned += len(batch)
            self._total += 0 if all(index in kept for index in batch) else plan.batch(number)[0].all_calls

    def _position(self, batch: int) -> tuple[int, int]:
        beyond = batch - len(self._positions)
        return self._positions[batch] if beyond < 0 else (self._planned + beyond + 1, 1)

    def step(self, event: events.Step, seconds: float) -> State:
        first, images = self._position(event.batch)
        self._images = max(self._images, self._planned, first + images - 1)
        self._steps[event.batch, event.stage] = (event.step, event.of)
        done = self._done + sum(step for step, _ in self._steps.values())
        # steps that no plan counted: of prompts read as they come
        self._total = max(self._total, self._done + sum(of for _, of in self._steps.values()))
        if event.step == event.of:
            self._done += event.of
            del self._steps[event.batch, event.stage]
        return State(
            step=event.step, of=event.of, done=done, total=self._total, seconds=seconds, first=first,
            last=first + images - 1, images=self._images, device_bytes=event.device_bytes,
            device_peak=event.device_peak,
        )  # fmt: skip


class Progress:
    """A sink."""

    def __init__(
        self,
        stream: IO[str],
        *,
        verbose: bool = False,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        columns: int | None = None,
        kept: Collection[int] = (),
    ) -> None:
        self._kept = kept
        self._line = LiveLine(stream, frame=FRAME, clock=clock, columns=columns)
        self._columns = columns
        self._verbose, self._quiet = verbose, quiet
        self._recent: dict[str, deque[float]] = {}  # of each worker
        self._run = RunProgress()
        self._compiles = False

    def __call__(self, event: Event) -> None:
        if self._quiet:
            return
        match event:
            case events.Planned():
                self._run.plan(event.plan, self._kept)
                self._compiles = event.plan.setup.execution == "compile"
                self._line.say(*asked(event.plan.jobs, self._line.width) if event.plan.jobs else ())
            case events.Loaded():
                self._show_loading(event)
            case events.Encoded():
                self._show_compiling()
            case events.Step():
                self._show_step(event)
            case events.Denoised():
                self._line.hide()
            case events.Tile():
                self._show_tile(event)
            case events.Warned():
                self._tell(f"note: {show(event.message)}")
            case events.Degraded():
                self._tell(_fallback_note(event))
            case events.Failed():
                self._tell(f"image {event.index + 1} failed: {show(event.error.get('message', ''))}")
            case _:
                pass

    # --- steps

    def _show_step(self, event: events.Step) -> None:
        recent = self._recent.setdefault(event.worker, deque(maxlen=RECENT))
        if event.step == 1:
            recent.clear()
        recent.append(event.seconds)
        state = self._run.step(event, self._seconds_a_step())
        if self._line.moves:
            self._line.show(*bar_line(state, self._line.room), now=state.step >= state.of)
        elif self._line.due(state.done / max(1, state.total), anyway=state.done in (1, state.total)):
            left = [f"{clock_text(state.left)} left"] if state.done < state.total else []
            line = "  " + " · ".join([_place(state), *pieces_of(state)[1:2], *left])
            self._line.say(fit(line, self._line.width))

    def _seconds_a_step(self) -> float:
        """Of all workers together."""
        each = [sum(recent) / len(recent) for recent in self._recent.values() if recent]
        rate = sum(1 / seconds for seconds in each if seconds > 0)
        return 1 / rate if rate else 0.0

    def _show_loading(self, event: events.Loaded) -> None:
        if self._line.moves:
            text = f"  load  {show(event.component, 40)} {disk_text(event.bytes)}"
            self._line.show(fit(text, self._line.room), now=True)

    def _show_tile(self, event: events.Tile) -> None:
        if self._line.moves:
            text = f"  upscale  tile {event.tile}/{event.of}"
            self._line.show(fit(text, self._line.room), now=event.tile == event.of)

    def _show_compiling(self) -> None:
        """Once: it may take minutes, and says nothing itself."""
        if not self._compiles:
            return
        self._compiles, text = False, "  compile  the UNet's blocks; the first time takes a minute or more"
        if self._line.moves:
            self._line.show(fit(text, self._line.room), now=True)
        else:
            self._line.say(fit(text, self._line.width))

    def _tell(self, message: str) -> None:
        """A sentence: wrapped where there are columns to wrap to, whole in a log."""
        columns = self._line.width if self._line.moves or self._columns else 10_000
        self._line.say(*folded(message, columns, rest="      "))

    # --- the end

    def finish(self, report: Report | None = None, where: Path | None = None) -> None:
        """Take the line away; say what the run took, if it drew anything."""
        self._line.hide()
        if report is not None and not self._quiet:
            self._line.say(*summary(report, self._line.width, verbose=self._verbose, where=where))


def _place(state: State) -> str:
    steps = f"step {state.step}/{state.of}"
    return steps if state.images == 1 else f"image {label_of(state)} {steps}"


def _fallback_note(event: events.Degraded) -> str:
    return f"note: {fallback_text(event)} ({show(event.because)})"
