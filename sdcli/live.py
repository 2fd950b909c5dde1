"""Progress on stderr: one line that moves on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any, cast

from sdcli import terminal
from sdcli.terminal import cells, fit, is_terminal, plain

if TYPE_CHECKING:
    from rich.live import Live

EVERY_SECONDS, EVERY_SHARE = 5.0, 0.1  # between two plain lines at least
SHORTEST_BAR, LONGEST_BAR = 5, 40
_STYLES = ("", "cyan", "dim", "")  # of the parts of a line, as `bar` gives them


class LiveLine:
    """Between two calls nothing is drawn, so that the line never outlives what it says."""

    def __init__(
        self, stream: IO[str], *, frame: float, clock: Callable[[], float] = time.monotonic, columns: int | None = None
    ) -> None:
        """`frame`: seconds between two redraws of the line."""
        self.moves = is_terminal(stream) and os.environ.get("TERM") != "dumb"
        self._stream = cast(IO[str], Tolerant(stream))
        self._unicode = terminal.speaks_unicode(stream)
        self._frame, self._clock, self._columns = frame, clock, columns
        self._live: Live | None = None
        self._drawn_at = self._said_at = float("-inf")
        self._said_share = 0.0

    @property
    def width(self) -> int:
        return self._columns or terminal.width(self._stream)

    @property
    def room(self) -> int:
        """Columns of the moving line: in the last one it would wrap on some terminals."""
        return self.width - 1

    def show(self, *parts: str, now: bool = False) -> None:
        """Redraw the line, unless it was redrawn a moment ago and need not be `now`."""
        moment = self._clock()
        if not now and moment - self._drawn_at < self._frame:
            return
        self._drawn_at = moment
        from rich.text import Text

        text = Text(no_wrap=True, end="")
        for part, style in zip(parts, _STYLES, strict=False):
            text.append(part if self._unicode else plain(part), style or None)
        if self._live is None:
            self._live = self._begin(text)
        self._live.update(text, refresh=True)

    def _begin(self, text: Any) -> Live:
        from rich.live import Live

        colours = terminal.colour(self._stream)
        console = terminal.console(self._stream, force_terminal=True, width=self.width, no_color=not colours)
        live = Live(
            text, console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        live.start()
        console.show_cursor(True)  # so that nothing has to bring it back after a crash
        return live

    def hide(self) -> None:
        """Remove the line, so that an image or a path can take its place."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def due(self, share: float, *, anyway: bool = False) -> bool:
        """Whether a plain line is: one for each tenth of the work, at least 5 s apart, or `anyway`."""
        now = self._clock()
        apart = share - self._said_share > EVERY_SHARE - 1e-9 and now - self._said_at >= EVERY_SECONDS
        if not (anyway or apart):
            return False
        self._said_share, self._said_at = share, now
        return True

    def say(self, *lines: str) -> None:
        """Lines that stay, in the place of the one that moves."""
        if lines:
            self.hide()
        for line in lines:
            terminal.say(line, self._stream)


def bar(label: str, figures: Sequence[str], share: float, width: int) -> tuple[str, str, str, str]:
    """Label, done part, part to do, figures: together at most `width` cells. Figures may be left out, last first, and
    are given up before the bar."""
    label, kept = f"  {label} ", list(figures)
    while len(kept) > 1 and cells(label) + SHORTEST_BAR + _spaced(kept) > width:
        kept.pop()
    room = min(LONGEST_BAR, width - cells(label) - _spaced(kept))
    if room < SHORTEST_BAR:
        return fit(label + " ".join(kept), width), "", "", ""
    filled = room * share
    whole = min(room, int(filled))
    half = "╸" if whole < room and filled - whole >= 0.5 else ""
    return label, "━" * whole + half, "─" * (room - whole - len(half)), "".join(f"  {figure}" for figure in kept)


def _spaced(figures: Sequence[str]) -> int:
    return sum(2 + cells(figure) for figure in figures)


def clock_text(seconds: float) -> str:
    """0:07, 12:40, 1:02:03."""
    whole = round(min(seconds, 359_999))
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Tolerant:
    """The stream, but writing to a closed pipe is silent, not an error."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "ascii"
        self.errors = "strict"

    def write(self, text: str) -> int:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(plain(text))
        except (OSError, ValueError):
            pass  # ValueError: the file is closed
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return is_terminal(self._stream)

    def fileno(self) -> int:
        return self._stream.fileno()
