"""Progress of `sdcli upscale` on stderr: tiles on one live line, or a plain line now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO

from sdcli import events
from sdcli.events import Event
from sdcli.live import LiveLine, bar, clock_text
from sdcli.record.sinks.summary import fallback_text
from sdcli.request.upscaling import Enlargement
from sdcli.terminal import disk_text, fit, folded, show

FRAME = 0.05  # seconds between two frames of the live line
RECENT = 10  # tiles the rate is taken over


class Tiles:
    """A sink. `counts`: how many tiles each image is planned to have."""

    def __init__(
        self, stream: IO[str], jobs: Sequence[Enlargement], counts: Sequence[int], *, quiet: bool = False,
        clock: Callable[[], float] = time.monotonic, columns: int | None = None,
    ) -> None:  # fmt: skip
        self._line = LiveLine(stream, frame=FRAME, clock=clock, columns=columns)
        self._jobs, self._counts, self._quiet = jobs, list(counts), quiet
        self._columns = columns
        self._recent: deque[float] = deque(maxlen=RECENT)

    def __call__(self, event: Event) -> None:
        if self._quiet:
            return
        match event:
            case events.Loaded():
                if self._line.moves:
                    text = f"  load  {show(event.component, 40)} {disk_text(event.bytes)}"
                    self._line.show(fit(text, self._line.room), now=True)
            case events.Tile():
                self._show(event)
            case events.Enlarged():
                self._line.hide()
            case events.Degraded():
                self._tell(f"note: {fallback_text(event)} ({show(event.because)})")
            case events.Failed():
                name = show(self._jobs[event.index].image.name, 80)
                self._tell(f"{name} failed: {show(event.error.get('message', ''))}")
            case _:
                pass

    def _show(self, event: events.Tile) -> None:
        self._counts[event.batch] = event.of
        self._recent.append(event.seconds)
        total, done = sum(self._counts), sum(self._counts[: event.batch]) + event.tile
        left = (total - done) * sum(self._recent) / len(self._recent)
        name = show(self._jobs[event.batch].image.name, 30)
        pieces = [f"tile {event.tile}/{event.of}", clock_text(left)]
        if len(self._jobs) > 1:
            pieces.insert(0, f"{event.batch + 1}/{len(self._jobs)}")
        if self._line.moves:
            self._line.show(*bar(name, pieces, done / max(1, total), self._line.room), now=done >= total)
        elif total > 1 and self._line.due(done / max(1, total), anyway=done == total):
            more = [f"{clock_text(left)} left"] if done < total else []
            self._line.say(fit("  " + " · ".join([name, *pieces[:-1], *more]), self._line.width))

    def _tell(self, message: str) -> None:
        """A sentence: wrapped where there are columns to wrap to, whole in a log."""
        columns = self._line.width if self._line.moves or self._columns else 10_000
        self._line.say(*folded(message, columns, rest="      "))

    def finish(self) -> None:
        self._line.hide()
