"""Who waits to be drawn for: a bounded queue that serves its clients in turn."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from sdcli.serve.shared import Shared
from sdcli.serve.ticket import Ticket

UNKNOWN_WAIT, LONGEST_WAIT = 5, 120  # seconds
LOOKED_AT = 32  # tickets among which a worker looks for one whose model it holds
MOST_PASSED = 4  # tickets that are drawn before one that came earlier


class Suits(NamedTuple):
    """How well a worker suits a ticket; the greater, the better."""

    gpu: bool = True
    held: bool = True  # its model is loaded there
    room: int = 0  # the fewer models are, the more


class Taker(Protocol):
    """Who asks for tickets."""

    @property
    def name(self) -> str: ...

    def suits(self, ticket: Ticket) -> Suits | None:
        """None: it cannot draw it."""


class Anybody:
    name = ""

    def suits(self, ticket: Ticket) -> Suits | None:
        return Suits()


class Found(NamedTuple):
    """What there is to draw, and the tickets that it is drawn before although they came earlier."""

    what: Ticket | Shared
    passed: Sequence[Ticket] = ()


@dataclass(frozen=True, kw_only=True)
class Room:
    """How many images may wait, and how many of one client: the others shall find a place too."""

    images: int = 64
    requests: int = 16
    share: float = 0.5


class Full(Exception):
    """No place is left: for anybody, or for this client. `seconds`: until those who wait now will be served, if that
    was ever measured."""

    def __init__(self, message: str, seconds: float | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds

    @property
    def retry_after(self) -> int:
        """Seconds to stay away. Who is told of more than two minutes does not come again."""
        return UNKNOWN_WAIT if self.seconds is None else max(1, min(math.ceil(self.seconds), LONGEST_WAIT))


class Line:
    """Tickets wait in the order they came, client by client: who asks for a hundred images holds nobody up for more
    than one request."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._clients: OrderedDict[str, deque[Ticket]] = OrderedDict()  # the next one first
        self._shared: list[Shared] = []  # being drawn, by as many as are free
        self._free: list[Taker] = []  # who waits for a ticket
        self._changed = threading.Condition()
        self.closed = False

    def put(self, ticket: Ticket) -> None:
        with self._changed:
            own = self._clients.get(ticket.client, deque())
            images = len(ticket.plan.jobs)
            waiting = list(self._order())
            if len(waiting) >= self.room.requests or _images(waiting) + images > self.room.images:
                raise Full("the queue is full")
            share = self.room.share
            if len(own) >= self.room.requests * share or _images(own) + images > self.room.images * share:
                raise Full("this client's part of the queue is full")
            self._clients.setdefault(ticket.client, deque()).append(ticket)
            self._changed.notify_all()

    def take(self, seconds: float | None = None, taker: Taker | None = None) -> Ticket | Shared | None:
        """The next one, as soon as there is one, or some of what another draws; None when the line is closed, or there
        was nothing for that long."""
        taker = taker or Anybody()
        with self._changed:
            self._free.append(taker)
            self._changed.wait_for(lambda: self.closed or self._next(taker), seconds)
            found = None if self.closed else self._next(taker)
            self._free.remove(taker)
            if found is None:
                return None
            for one in found.passed:
                one.passed += 1
            if isinstance(found.what, Ticket):
                waiting = self._clients.pop(found.what.client)
                waiting.remove(found.what)
                if waiting:
                    self._clients[found.what.client] = waiting  # behind the others
            self._changed.notify_all()  # what was left to this one, another takes now
            return found.what

    def share(self, shared: Shared) -> None:
        """Until it is `drawn`, whoever has nothing else to do draws some of it."""
        with self._changed:
            self._shared.append(shared)
            self._changed.notify_all()

    def lost(self, taker: Taker) -> Shared | None:
        """What another could not draw and this one may try."""
        with self._changed:
            return self._of_shared(taker, lost=True)

    def look(self) -> None:
        """Something of what is shared was given back."""
        with self._changed:
            self._changed.notify_all()

    def drawn(self, shared: Shared) -> None:
        with self._changed:
            self._shared.remove(shared)

    def _next(self, taker: Taker) -> Found | None:
        """What another could not draw has waited long enough already; what somebody draws already can wait."""
        lost = self._of_shared(taker, lost=True)
        found = self._ticket(taker) if lost is None else Found(lost)
        begun = self._of_shared(taker, lost=False) if found is None else None
        return found if begun is None else Found(begun)

    def _of_shared(self, taker: Taker, *, lost: bool) -> Shared | None:
        return next((one for one in self._shared if one.wants(taker.name, lost=lost)), None)

    def _ticket(self, taker: Taker) -> Found | None:
        """One whose model is loaded there comes before others, but only so often before the same one. What suits
        another better that is free too is left to that."""
        passed: list[Ticket] = []
        for ticket in islice((one for one in self._order() if self._suits_best(taker, one)), LOOKED_AT):
            suits = taker.suits(ticket)
            if suits is not None and suits.held:
                return Found(ticket, passed)
            passed.append(ticket)
            if ticket.passed >= MOST_PASSED:
                break
        return Found(passed[0]) if passed else None

    def _suits_best(self, taker: Taker, ticket: Ticket) -> bool:
        own = taker.suits(ticket)
        if own is None:
            return False
        others = (other.suits(ticket) for other in self._free if other is not taker)
        return not any(other is not None and other > own for other in others)

    def remove(self, ticket: Ticket) -> bool:
        """Whether it was still waiting."""
        with self._changed:
            waiting = self._clients.get(ticket.client)
            if waiting is None or ticket not in waiting:
                return False
            waiting.remove(ticket)
            if not waiting:
                del self._clients[ticket.client]
            return True

    def ahead_of(self, ticket: Ticket) -> int | None:
        """Tickets that are drawn before it; None if it does not wait."""
        order = self.waiting()
        return order.index(ticket) if ticket in order else None

    def _order(self) -> Iterator[Ticket]:
        queues = list(self._clients.values())
        for turn in range(max(map(len, queues), default=0)):
            yield from (queue[turn] for queue in queues if turn < len(queue))

    def waiting(self) -> list[Ticket]:
        """In the order in which they are drawn."""
        with self._changed:
            return list(self._order())

    @property
    def images(self) -> int:
        """That wait."""
        return _images(self.waiting())

    @property
    def full(self) -> bool:
        """Whether not even one image finds a place."""
        waiting = self.waiting()
        return len(waiting) >= self.room.requests or _images(waiting) >= self.room.images

    def close(self) -> list[Ticket]:
        """No more tickets; those that still waited."""
        with self._changed:
            left = list(self._order())
            self._clients.clear()
            self.closed = True
            self._changed.notify_all()
        return left


def _images(tickets: Iterable[Ticket]) -> int:
    return sum(len(ticket.plan.jobs) for ticket in tickets)


def too_late(ticket: Ticket) -> bool:
    return ticket.deadline is not None and time.monotonic() > ticket.deadline
