"""Watching a stream of events: every sink sees every event, none can change or stop one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sdcli.events import Event

Sink = Callable[[Event], None]


def watch(events: Iterator[Event], *sinks: Sink) -> Iterator[Event]:
    """The same events, each shown to the sinks in their order before it goes on."""
    for event in events:
        for sink in sinks:
            sink(event)
        yield event
