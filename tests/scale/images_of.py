"""What a run drew, and what it would with one worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sdcli.draw import fake
from sdcli.events import Decoded, Event
from sdcli.plan.plan import Plan


def pixels(events: Sequence[Event]) -> dict[int, bytes]:
    found = [event for event in events if isinstance(event, Decoded)]
    assert len({event.index for event in found}) == len(found)  # once
    return {event.index: event.pixels for event in found}


def alone(of: Plan) -> dict[int, bytes]:
    return pixels(list(fake.run(replace(of, workers=()))))
