"""A request that several desks may draw: the one that took it records it, others that are free draw some of its images,
and those over which a worker died."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import replace
from typing import NamedTuple

from sdcli.errors import Bug, DeviceUnusable, DoesNotFit, OutOfMemory, SdcliError
from sdcli.events import Degraded, Event
from sdcli.plan.batches import Batch
from sdcli.plan.plan import Plan
from sdcli.plan.several import drawn_by, fallen_back
from sdcli.serve.ticket import Ticket

TRIES = 3  # of a batch that ended its workers: the third death is the last, unless one device alone died of it
MOST_DEATHS = 8  # those counted too that came before a worker had said anything, and are no fault of the batch
OWN_TRIES = 2  # of one device, where there is another
PATIENCE = 5.0  # seconds in which another takes what a worker died over; then the same one tries again
OF_THE_DEVICE = (Bug, DeviceUnusable, DoesNotFit, OutOfMemory)  # on another one it may be drawn all the same


class Lost(NamedTuple):
    """A batch, the desk that could not draw it, and when on time.monotonic."""

    batch: Batch
    by: str
    since: float


class Shared:
    """Each of its batches is at one desk at a time, so that each image comes once."""

    def __init__(self, ticket: Ticket, owner: str) -> None:
        """Its plan is that of all workers."""
        self.ticket = ticket
        self.error: SdcliError | None = None  # why it cannot be whole
        self.stopped = False  # nobody waits for it any more
        names = [worker.name for worker in ticket.plan.workers] or [owner]
        self._owner = owner
        self._plans = {name: own for name in names if (own := drawn_by(ticket.plan, name)) is not None}
        self._waiting = deque(ticket.plan.numbered())
        self._lost: list[Lost] = []
        self._deaths: dict[int, Counter[str]] = {}  # of each batch, by who died of it
        self._blamed: Counter[int] = Counter()  # of each, how many came while it was drawn
        self._drawing: set[int] = set()
        self._happening: queue.SimpleQueue[Event | None] = queue.SimpleQueue()  # what others say; None: they are done
        self._lock = threading.Lock()

    # --- for every desk

    def plan(self, name: str) -> Plan:
        """As this desk draws it, with the fallback that it is on."""
        return self._plans[name]

    def wants(self, name: str, *, lost: bool) -> bool:
        """Whether there is something for this desk to draw: what another lost, or what nobody has begun."""
        with self._lock:
            return self._goes_on(name) and (self._again(name) is not None if lost else bool(self._waiting))

    def take(self, name: str) -> Batch | None:
        with self._lock:
            if not self._goes_on(name):
                return None
            again = self._again(name)
            if again is not None:
                self._lost.remove(again)
            batch = again.batch if again is not None else self._waiting.popleft() if self._waiting else None
            if batch is not None:
                self._drawing.add(batch[0])
            return batch

    def heard(self, event: Event, name: str) -> Event:
        """What a worker says of its batch, as the request's."""
        if isinstance(event, Degraded):
            self._plans[name] = fallen_back(self._plans[name], event.after)
        return replace(event, worker=name)

    def finished(self, batch: Batch, name: str) -> None:
        with self._lock:
            self._drawing.discard(batch[0])
        self._tell(name)

    def died(self, batch: Batch, name: str, error: SdcliError, *, at_work: bool) -> None:
        """Another tries it, or the same one again."""
        with self._lock:
            deaths = self._deaths.setdefault(batch[0], Counter())
            deaths[name] += 1
            self._blamed[batch[0]] += at_work
            enough = self._blamed[batch[0]] >= TRIES or deaths.total() >= MOST_DEATHS
            self._gave_back(batch, name, error, last=enough and (len(deaths) > 1 or len(self._plans) == 1))
        self._tell(name)

    def failed(self, batch: Batch, name: str, error: SdcliError) -> None:
        """This desk draws no more of it; others do, where it was the device's fault."""
        with self._lock:
            self._plans.pop(name, None)
            self._gave_back(batch, name, error, last=not isinstance(error, OF_THE_DEVICE))
        self._tell(name)

    # --- for those who help, and for the one that waits for them

    def say(self, event: Event) -> None:
        self._happening.put(event)

    def said(self, seconds: float = 0.0) -> Generator[Event, None, None]:
        """What others have drawn by now; where there is nothing, it waits so long."""
        while True:
            try:
                event = self._happening.get(seconds > 0, seconds or None)
            except queue.Empty:
                return
            seconds = 0.0
            if event is not None:
                yield event

    @property
    def over(self) -> bool:
        with self._lock:
            left = self._waiting or self._lost or self._drawing
            return self.error is not None or (not left and self._happening.empty())

    # --- inside

    def _goes_on(self, name: str) -> bool:
        return not self.stopped and self.error is None and name in self._plans

    def _again(self, name: str) -> Lost | None:
        """What this desk may try that was lost: of its own only after a while, and only once more."""
        return next((one for one in self._lost if one.by != name or self._own_turn(one)), None)

    def _own_turn(self, one: Lost) -> bool:
        if len(self._plans) == 1:
            return True
        deaths = self._deaths.get(one.batch[0], Counter())
        return deaths[one.by] < OWN_TRIES and time.monotonic() - one.since > PATIENCE

    def _gave_back(self, batch: Batch, name: str, error: SdcliError, *, last: bool) -> None:
        self._drawing.discard(batch[0])
        if last or not self._plans:
            self.error = self.error or error
        else:
            self._lost.append(Lost(batch, name, time.monotonic()))

    def _tell(self, name: str) -> None:
        if name != self._owner:
            self._happening.put(None)
