"""Progress on stderr: one live line on a terminal, a plain line now and then elsewhere, the summary at the end."""

from __future__ import annotations

import os
import textwrap
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from sdcli import events, terminal
from sdcli.events import Event
from sdcli.machine.hardware import GIB
from sdcli.plan.plan import Plan
from sdcli.record.report import Report
from sdcli.record.sinks.streams import Tolerant
from sdcli.record.sinks.summary import asked, fall_text, step_text, summary
from sdcli.terminal import cells, colour, fit, plain, show, speaks_unicode

if TYPE_CHECKING:
    from rich.live import Live

EVERY_SECONDS = 5.0  # between two plain lines at least, and
EVERY_SHARE = 0.1  # this much of the way
FRAME = 0.05  # seconds between two pictures of the live line
RECENT = 10  # steps the rate is taken over
SHORTEST_BAR = 5
LONGEST_BAR = 40


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
    found = [f"{state.step}/{state.of}"]
    if state.seconds > 0:
        rate = 1 / state.seconds
        found.append(f"{rate:.1f}/s" if rate >= 1 else f"{step_text(state.seconds)} each")
    found.append(clock_text(state.left))
    if state.device_bytes is not None:
        peak = f", max {state.device_peak / GIB:.1f}" if state.device_peak is not None else ""
        found.append(f"{state.device_bytes / GIB:.1f} GiB{peak}")
    return found


def label_of(state: State) -> str:
    if state.images == 1:
        return "steps"
    return (
        f"{state.first}/{state.images}" if state.first == state.last else f"{state.first}-{state.last}/{state.images}"
    )


def bar_line(state: State, width: int) -> tuple[str, str, str, str]:
    """Label, done part, part to do, figures: together at most `width` cells, with figures given up before the bar."""
    label = f"  {label_of(state)} "
    figures = pieces_of(state)
    while len(figures) > 1 and cells(label) + SHORTEST_BAR + _spaced(figures) > width:
        figures.pop()
    room = min(LONGEST_BAR, width - cells(label) - _spaced(figures))
    if room < SHORTEST_BAR:
        return fit(label + " ".join(figures), width), "", "", ""
    filled = room * state.done / max(1, state.total)
    whole = int(filled)
    half = "╸" if whole < room and filled - whole >= 0.5 else ""
    return label, "━" * whole + half, "─" * (room - whole - len(half)), "".join(f"  {piece}" for piece in figures)


def _spaced(figures: Sequence[str]) -> int:
    return sum(2 + cells(piece) for piece in figures)


def clock_text(seconds: float) -> str:
    """0:07, 12:40, 1:02:03."""
    whole = round(min(seconds, 359_999))
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Way:
    """How far all batches are, whoever draws them, in whatever order they come. The plan says what a batch is; of one
    that no plan lists, what is seen."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[int, int]] = {}  # batch → its first image's place, and how many it has
        self._steps: dict[tuple[int, str], tuple[int, int]] = {}  # of batch and stage: done and in all
        self._done = 0  # steps of stages that are over
        self._total = 0  # steps of all batches known
        self._images = 0

    def plan(self, plan: Plan) -> None:
        for number, batch in enumerate(plan.batches):
            self._add(number, len(batch))
            self._total += plan.jobs[batch[0]].unet_calls

    def meet(self, event: events.Encoded) -> None:
        if event.batch not in self._places:
            self._add(event.batch, len(event.tokens) or 1)

    def _add(self, number: int, images: int) -> None:
        self._places[number] = (self._images + 1, images)
        self._images += images

    def step(self, event: events.Step, seconds: float) -> State:
        if event.batch not in self._places:
            self._add(event.batch, 1)
        first, images = self._places[event.batch]
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
    """A sink. Between events nothing is drawn, so that a line never outlives what it says."""

    def __init__(
        self,
        stream: IO[str],
        *,
        verbose: bool = False,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        columns: int | None = None,
    ) -> None:
        self._stream = cast(IO[str], Tolerant(stream))
        self._unicode = speaks_unicode(stream)
        self._moves = terminal.is_terminal(stream) and os.environ.get("TERM") != "dumb"
        self._verbose, self._quiet = verbose, quiet
        self._clock = clock
        self._columns = columns
        self._live: Live | None = None
        self._drawn_at = self._said_at = -EVERY_SECONDS
        self._said_share = -1.0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._way = Way()

    def __call__(self, event: Event) -> None:
        if self._quiet:
            return
        match event:
            case events.Planned():
                self._way.plan(event.plan)
                self._say(*asked(event.plan.jobs, self._width()) if event.plan.jobs else ())
            case events.Loaded():
                self._show_loading(event)
            case events.Encoded():
                self._way.meet(event)
            case events.Step():
                self._show_step(event)
            case events.Denoised():
                self._hide()
            case events.Warned():
                self._tell(f"note: {show(event.message)}")
            case events.Degraded():
                self._tell(_fall(event))
            case events.Failed():
                self._tell(f"picture {event.index + 1} failed: {show(event.error.get('message', ''))}")
            case _:
                pass

    # --- steps

    def _show_step(self, event: events.Step) -> None:
        if event.step == 1:
            self._recent.clear()
        self._recent.append(event.seconds)
        state = self._way.step(event, sum(self._recent) / len(self._recent))
        if self._moves:
            self._draw(state)
        elif self._due(state):
            left = [f"{clock_text(state.left)} left"] if state.done < state.total else []
            line = "  " + " · ".join([_place(state), *pieces_of(state)[1:2], *left])
            self._say(fit(line, self._width()))

    def _due(self, state: State) -> bool:
        """The first step, the last one, and between them one line for each tenth of the way, 5 s apart at least."""
        share, now = state.done / max(1, state.total), self._clock()
        apart = share - self._said_share > EVERY_SHARE - 1e-9 and now - self._said_at >= EVERY_SECONDS
        if not (state.done == 1 or state.done == state.total or apart):
            return False
        self._said_share, self._said_at = share, now
        return True

    # --- the two kinds of screen

    def _width(self) -> int:
        return self._columns or terminal.width(self._stream)

    def _show_loading(self, event: events.Loaded) -> None:
        if self._moves:
            text = f"  load  {show(event.component, 40)} {terminal.disk_text(event.bytes)}"
            self._update(fit(text, self._width() - 1), now=True)

    def _draw(self, state: State) -> None:
        now = self._clock()
        if now - self._drawn_at < FRAME and state.step < state.of:
            return
        self._drawn_at = now
        label, done, ahead, figures = bar_line(state, self._width() - 1)  # the last column would wrap on some terminals
        self._update((label, "", done, "cyan", ahead, "dim", figures, ""), now=True)

    def _update(self, parts: str | tuple[str, ...], now: bool) -> None:
        from rich.text import Text

        text = Text(no_wrap=True, end="")
        pairs = [(parts, "")] if isinstance(parts, str) else list(zip(parts[::2], parts[1::2], strict=True))
        for part, style in pairs:
            text.append(part if self._unicode else plain(part), style or None)
        if self._live is None:
            self._live = self._begin_live(text)
        self._live.update(text, refresh=now)

    def _begin_live(self, text: Any) -> Live:
        from rich.live import Live

        console = terminal.console(
            self._stream, force_terminal=True, width=self._width(), no_color=not colour(self._stream)
        )
        live = Live(
            text, console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        live.start()
        console.show_cursor(True)  # so that nothing has to bring it back after a crash
        return live

    def _hide(self) -> None:
        """The line is taken away, so that a picture or a path can stand there."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _say(self, *lines: str) -> None:
        if not lines:
            return
        self._hide()
        for line in lines:
            terminal.say(line, self._stream)

    def _tell(self, message: str) -> None:
        """A sentence: wrapped where there are columns to wrap to, whole in a log."""
        columns = self._width() if self._moves or self._columns else 10_000
        self._say(*textwrap.wrap(message, columns, subsequent_indent="      ", break_on_hyphens=False))

    # --- the end

    def finish(self, report: Report | None = None, where: Path | None = None) -> None:
        """Take the line away; say what the run took, if it drew anything."""
        self._hide()
        if report is not None and not self._quiet:
            self._say(*summary(report, self._width(), verbose=self._verbose, where=where))


def _place(state: State) -> str:
    steps = f"step {state.step}/{state.of}"
    return steps if state.images == 1 else f"picture {label_of(state)} {steps}"


def _fall(event: events.Degraded) -> str:
    return f"note: out of memory {fall_text(event)} ({show(event.because)})"
