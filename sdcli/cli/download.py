"""A download as people see it: the facts first, then one line that moves on a terminal, or a line now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import IO

from sdcli.live import LiveLine, bar, clock_text
from sdcli.models.hub import Offer, Progress, pair_text
from sdcli.models.kinds import TITLES
from sdcli.terminal import disk_text, show

FRAME = 0.1  # seconds between two frames of the line
RECENT = 5.0  # seconds the rate is taken over


def facts(name: str, offer: Offer, licence: str | None, free: int | None) -> list[str]:
    """What is about to be fetched, from where, under which licence, and whether there is room."""
    access = "gated: accept its terms first" if offer.gated else "open to all"
    terms = [f"licence {show(licence, 60)}, {access}" if licence else f"no licence named, {access}"]
    if offer.missing == 0:
        terms.append(f"{disk_text(offer.size)}, already here")
    else:
        terms.append(f"{disk_text(offer.size)} to download")
        if offer.kept:
            terms.append(f"{disk_text(offer.kept)} of it already here")
        if free is not None:
            terms.append(f"{disk_text(free)} free")
    called = "" if name == offer.repository else f"{show(name, 80)}: "
    file = f"/{show(offer.file, 120)}" if offer.file else ""
    return [
        f"{called}{show(offer.repository, 120)}{file} @{offer.commit[:7]}{_what(offer)}",
        "  " + " · ".join(terms),
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
        self._line = LiveLine(stream, frame=FRAME, clock=clock, columns=columns)
        self._quiet, self._clock = quiet, clock
        self._recent: deque[tuple[float, int]] = deque()

    def __call__(self, at: Progress) -> None:
        if self._quiet:
            return
        if at.note:
            self._line.say(f"  {show(at.note, 300)}")
        now = self._clock()
        self._recent.append((now, at.done))
        while now - self._recent[0][0] > RECENT:
            self._recent.popleft()
        if self._line.moves:
            self._line.show(*line(at, self._rate(), self._line.room), now=at.done == at.total)
        elif self._line.due(at.done / max(1, at.total)):
            self._line.say("  " + "  ".join(pieces_of(at, self._rate())))

    def finish(self) -> None:
        """Take the line away."""
        self._line.hide()

    def _rate(self) -> float:
        (begun, had), (now, has) = self._recent[0], self._recent[-1]
        return max(0, has - had) / (now - begun) if now > begun else 0.0


def pieces_of(at: Progress, rate: float) -> list[str]:
    """What, how much of all, how fast, how long still: in the order in which they may be left out, last first."""
    pieces = [show(at.part, 40), pair_text(at.done, at.total).replace(" of ", "/")]
    if rate > 0:
        pieces += [f"{disk_text(rate)}/s", clock_text((at.total - at.done) / rate)]
    return pieces


def line(at: Progress, rate: float, width: int) -> tuple[str, str, str, str]:
    label, *figures = pieces_of(at, rate)
    return bar(label, figures, at.done / max(1, at.total), width)
