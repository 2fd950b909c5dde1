"""A request that was accepted: what it asks for, how far it is, and what came of it."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from sdcli import events
from sdcli.errors import SdcliError
from sdcli.events import Event
from sdcli.plan.plan import Plan
from sdcli.record.names import Destination
from sdcli.request.request import Job

MOST_EVENTS = 1000  # that are kept for those who ask later
MOST_PREVIEWS = 32  # the same, until soon after it is over
OVER = ("done", "failed", "cancelled")
ASKED, LEFT, SHUTDOWN = "asked", "left", "shutdown"  # why a request was cancelled


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An image that is on disk."""

    index: int
    job: Job
    file: str
    path: str
    format: str
    bytes: int
    width: int
    height: int
    status: str  # saved | suspect
    pixel_sha256: str
    file_sha256: str


@dataclass
class Work:
    """What a device has done for a request."""

    steps: int = 0
    seconds: float = 0.0  # that they took
    loaded: bool = False  # it had to load something


Listener = Callable[[int, Event | None], None]


@dataclass(eq=False)
class Ticket:
    """Written by one thread at a time: first who asks, then who draws. Listeners are called in the writer's thread."""

    plan: Plan
    destination: Destination
    client: str = ""  # whose it is: places in the queue are shared out between clients
    deadline: float | None = None  # on time.monotonic: later nobody waits for it any more
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: float = field(default_factory=time.time)
    waiting_since: float = field(default_factory=time.monotonic)
    drawn_since: float | None = None  # on time.monotonic, as the others
    over_since: float | None = None
    device: str = ""  # that drew it
    state: str = "queued"  # queued | drawing | done | failed | cancelled
    cancelled: SdcliError | None = None  # why it is to end before it is whole
    error: SdcliError | None = None
    images: list[Drawn] = field(default_factory=list)
    passed: int = 0  # how often one that came later was drawn before it
    steps: Mapping[int, events.Step] = field(default_factory=dict)  # the last of each batch that is being drawn
    preview: events.Preview | None = None
    report: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.events: deque[tuple[int, Event]] = deque(maxlen=MOST_EVENTS)
        self.previews: deque[tuple[int, Event]] = deque(maxlen=MOST_PREVIEWS)
        self.work: dict[str, Work] = {}  # by the device that did it
        self._job: Job | None = None  # of the image decoded last, which is saved next
        self._listeners: list[Listener] = []
        self._count = 0
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        return self.state in OVER

    def listen(self, listener: Listener, after: int = 0) -> Callable[[], None]:
        """From now on, and first what was kept of the events after a number; None says that it is over. Call what is
        returned to stop."""
        with self._lock:
            for number, event in sorted((*self.events, *self.previews), key=itemgetter(0)):
                if number > after:
                    listener(number, event)
            if self.over:
                listener(self._count, None)
            else:
                self._listeners.append(listener)

        def stop() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop

    def publish(self, event: Event) -> None:
        self._see(event)
        if isinstance(event, (events.Decoded, events.Enlarged, events.Planned)):  # an image is told of once it is saved
            return
        with self._lock:
            self._count += 1
            kept = self.previews if isinstance(event, events.Preview) else self.events
            kept.append((self._count, event))
            for listener in self._listeners:
                listener(self._count, event)

    def end(self, state: str, error: SdcliError | None = None) -> None:
        with self._lock:
            self.state, self.error, self.preview = state, error, None
            self.over_since = time.monotonic()
            for listener in self._listeners:
                listener(self._count, None)
            self._listeners.clear()

    @property
    def step(self) -> tuple[int, int]:
        """Of the image that is drawn furthest, and of how many."""
        last = max(self.steps.values(), key=lambda one: one.step / one.of, default=None)
        return (0, 0) if last is None else (last.step, last.of)

    @property
    def waited(self) -> float | None:
        """Seconds in the queue, once it is drawn."""
        return None if self.drawn_since is None else self.drawn_since - self.waiting_since

    @property
    def seconds(self) -> float | None:
        """That it was drawn in, once it is over."""
        drawn = self.drawn_since, self.over_since
        return None if drawn[0] is None or drawn[1] is None else drawn[1] - drawn[0]

    def _see(self, event: Event) -> None:
        match event:
            case events.Loaded():
                self._work(event).loaded = True
            case events.Step():
                work = self._work(event)
                work.steps, work.seconds = work.steps + 1, work.seconds + event.seconds
                self.steps = {**self.steps, event.batch: event}
            case events.Failed():
                self.steps = self._without(event.batch)
            case events.Preview():
                self.preview = event
            case events.Decoded():
                self._job = event.job
            case events.Saved() if self._job is not None:
                self.steps = self._without(event.batch)
                self.images.append(
                    Drawn(
                        index=event.index, job=self._job, file=event.file, path=event.path, format=event.format,
                        bytes=event.bytes, width=event.width, height=event.height, status=event.status,
                        pixel_sha256=event.pixel_sha256, file_sha256=event.file_sha256,
                    )
                )  # fmt: skip

    def _work(self, event: Event) -> Work:
        return self.work.setdefault(event.worker or self.device, Work())

    def _without(self, batch: int) -> Mapping[int, events.Step]:
        return {number: step for number, step in self.steps.items() if number != batch}
