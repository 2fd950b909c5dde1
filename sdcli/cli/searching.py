"""What explains an image that its record does not: it is drawn again with one thing otherwise at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from sdcli.cli.recorded import as_recorded
from sdcli.errors import DeviceUnusable, DoesNotFit
from sdcli.live import clock_text
from sdcli.plan.otherwise import Otherwise, otherwise
from sdcli.plan.plan import Plan
from sdcli.record.verdict import Explanation
from sdcli.request.options import OUTPUT, Option
from sdcli.terminal import counted, say

AT_ONCE = 60.0  # seconds that are spent without being asked to
FIRST = "setup.dtype"  # the likeliest: tried unasked, however long it takes
OPTION = Option(
    field="search", flags=("--search/--no-search",), switch=True, panel=OUTPUT,
    help="Where nothing recorded explains a difference, draw again with one thing otherwise at a time (number type, "
    "noise, clip skip, threads …) until the pixels agree; if not said, number types, and the rest for a minute.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Found:
    """`drawn`: how often; `left`: what was not tried, in words, where it would have taken too long unasked."""

    explained: tuple[Explanation, ...] = ()
    drawn: int = 0
    left: str = ""


def search(plan: Plan, agrees: Callable[[Plan], bool], *, seconds: float, asked: bool | None, quiet: bool) -> Found:
    """`agrees` draws a plan and says whether the image comes of it; `seconds` is how long that took once."""
    if asked is False:
        return Found()
    every = tuple(_here(plan))
    unasked = max(sum(one.field == FIRST for one in every), int(AT_ONCE / max(seconds, 0.001)))
    now, later = (every, ()) if asked else (every[:unasked], every[unasked:])
    found = _tried(now, agrees, quiet)
    if found.explained or not later:
        return found
    return replace(found, left=f"{counted(len(later), 'more drawing')}, about {clock_text(seconds * len(later))}")


def _here(plan: Plan) -> Iterator[Otherwise]:
    """Those that this machine can draw."""
    for one in otherwise(plan):
        try:
            if as_recorded(one.plan)[0].fits:
                yield one
        except (DoesNotFit, DeviceUnusable):
            continue


def _tried(every: Sequence[Otherwise], agrees: Callable[[Plan], bool], quiet: bool) -> Found:
    for number, one in enumerate(every, 1):
        if not quiet:
            say(f"looking for what explains it, {number} of {len(every)}: {one.field} {one.choice}")
        if agrees(one.plan):
            found = Explanation(field=one.field, then=one.before, now=one.choice, confirmed=True)
            return Found(explained=(found,), drawn=number)
    return Found(drawn=len(every))
