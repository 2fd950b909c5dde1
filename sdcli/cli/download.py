"""A download as people see it: the facts first, then one line that moves on a terminal, or a line now and then."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from sdcli import terminal
from sdcli.models.hub import Offer, Progress, pair_text
from sdcli.models.kinds import TITLES
from sdcli.record.sinks.progress import clock_text
from sdcli.record.sinks.streams import Tolerant
from sdcli.terminal import cells, colour, disk_text, fit, plain, say, show, speaks_unicode

if TYPE_CHECKING:
    from rich.live import Live

FRAME = 0.1  # seconds between two pictures of the line
RECENT = 5.0  # seconds the rate is taken over
EVERY_SECONDS, EVERY_SHARE = 5.0, 0.1
BAR = 39


def facts(name: str, offer: Offer, licence: str | None, free: int | None) -> list[str]:
    """What is about to be fetched, from where, under which licence, and whether there is room."""
    open_to = "given to who accepted its terms" if offer.gated else "open to all"
    told = [f"licence {show(licence, 60)}, {open_to}" if licence else f"no licence named, {open_to}"]
    if offer.missing == 0:
        told.append(f"{disk_text(offer.size)}, all of it here")
    else:
        told.append(f"{disk_text(offer.size)} once")
        if offer.kept:
            told.append(f"{disk_text(offer.kept)} of it here already")
        if free is not None:
            told.append(f"{disk_text(free)} free")
    called = "" if name == offer.repository else f"{show(name, 80)}: "
    file = f"/{show(offer.file, 120)}" if offer.file else ""
    return [
        f"{called}{show(offer.repository, 120)}{file} @{offer.commit[:7]}{_what(offer)}",
        "  " + " · ".join(told),
    ]


def _what(offer: Offer) -> str:
    """`, a LoRA for SDXL`; nothing of a whole model, which its name tells."""
    if offer.kind not in TITLES:
        return ""
    base = f" for {TITLES[offer.family]}" if offer.family in TITLES and offer.family != offer.kind else ""
    return f", {TITLES[offer.kind]}{base}"


class Download:
    """Takes the values that hub.fetch gives. Nothing is drawn between two of them."""

    def __init__(
        self, stream: IO[str], *, quiet: bool = False, clock: Callable[[], float] = time.monotonic,
        columns: int | None = None,
    ) -> None:  # fmt: skip
        self._stream, self._quiet, self._clock, self._columns = stream, quiet, clock, columns
        self._moves = terminal.is_terminal(stream) and os.environ.get("TERM") != "dumb"
        self._live: Live | None = None
        self._recent: deque[tuple[float, int]] = deque()
        self._drawn_at = self._said_at = float("-inf")
        self._said_share = 0.0

    def __call__(self, at: Progress) -> None:
        if self._quiet:
            return
        if at.note:
            self.finish()
            say(f"  {show(at.note, 300)}", self._stream)
        now = self._clock()
        self._recent.append((now, at.done))
        while now - self._recent[0][0] > RECENT:
            self._recent.popleft()
        if self._moves:
            if now - self._drawn_at >= FRAME or at.done == at.total:
                self._drawn_at = now
                self._draw(at)
        elif self._due(at, now):
            say("  " + "  ".join(piece for piece in pieces_of(at, self._rate())), self._stream)

    def finish(self) -> None:
        """Take the line away."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _rate(self) -> float:
        (begun, had), (now, has) = self._recent[0], self._recent[-1]
        return max(0, has - had) / (now - begun) if now > begun else 0.0

    def _due(self, at: Progress, now: float) -> bool:
        share = at.done / max(1, at.total)
        if share - self._said_share < EVERY_SHARE or now - self._said_at < EVERY_SECONDS:
            return False
        self._said_share, self._said_at = share, now
        return True

    def _draw(self, at: Progress) -> None:
        from rich.live import Live
        from rich.text import Text

        width = (self._columns or terminal.width(self._stream)) - 1  # the last column would wrap on some terminals
        text = Text(no_wrap=True, end="")
        for part, style in zip(line(at, self._rate(), width), ("", "cyan", "dim", ""), strict=True):
            text.append(part if speaks_unicode(self._stream) else plain(part), style or None)
        if self._live is None:
            console = terminal.console(
                Tolerant(self._stream), force_terminal=True, width=width + 1, no_color=not colour(self._stream)  # type: ignore[arg-type]
            )  # fmt: skip
            self._live = Live(
                text, console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
            console.show_cursor(True)
        self._live.update(text, refresh=True)


def pieces_of(at: Progress, rate: float) -> list[str]:
    """What, how much of all, how fast, how long still: in the order in which they may be left out, last first."""
    found = [show(at.part, 40), pair_text(at.done, at.total).replace(" of ", "/")]
    if rate > 0:
        found += [f"{disk_text(rate)}/s", clock_text((at.total - at.done) / rate)]
    return found


def line(at: Progress, rate: float, width: int) -> tuple[str, str, str, str]:
    """Label, done part, part to do, figures: together at most `width` cells."""
    label, *figures = pieces_of(at, rate)
    label = f"  {label} "
    while len(figures) > 1 and cells(label) + 5 + sum(2 + cells(f) for f in figures) > width:
        figures.pop()
    told = "".join(f"  {figure}" for figure in figures)
    room = min(BAR, width - cells(label) - cells(told))
    if room < 5:
        return fit(label + told.strip(), width), "", "", ""
    filled = room * at.done / max(1, at.total)
    whole = min(room, int(filled))
    half = "╸" if whole < room and filled - whole >= 0.5 else ""
    return label, "━" * whole + half, "─" * (room - whole - len(half)), told
