"""Watching a stream of events: every sink sees every event, none can change or stop one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from sdcli.errors import SdcliError
from sdcli.events import Event, Warned
from sdcli.terminal import StdoutLost, show

Sink = Callable[[Event], None]


class Watch:
    """The same events, each shown to the sinks in order before it is passed on.

    A sink that fails is reported once and removed. `record` sees each event first, and its failure ends the run, which
    could not say what it drew. `lost` is why results could not be written, if so.
    """

    def __init__(self, *sinks: Sink, record: Sink = lambda event: None) -> None:
        self._record = record
        self._sinks = list(sinks)
        self.lost: SdcliError | None = None

    def __call__(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            waiting = deque([event])
            while waiting:
                shown = waiting.popleft()
                self._record(shown)
                waiting += self._show(shown)
                yield shown

    def _show(self, event: Event) -> list[Event]:
        """The warnings about sinks that failed at it."""
        warnings: list[Event] = []
        for sink in tuple(self._sinks):
            try:
                sink(event)
            except StdoutLost as error:
                self.lost = self.lost or error
                self._sinks.remove(sink)
            except Exception as error:
                self._sinks.remove(sink)
                warnings.append(Warned(code="sink-failed", message=f"{_name(sink)} stopped: {_because(error)}"))
        return warnings


def _name(sink: Sink) -> str:
    return show(getattr(sink, "__name__", type(sink).__name__).lower(), 40)


def _because(error: Exception) -> str:
    return error.message if isinstance(error, SdcliError) else f"{type(error).__name__}: {show(error, 200)}"
