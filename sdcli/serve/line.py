"""Who waits to be drawn for: a bounded queue that serves its clients in turn."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from sdcli.serve.ticket import Ticket

UNKNOWN_WAIT, LONGEST_WAIT = 5, 120  # seconds
LOOKED_AT = 32  # tickets among which a worker looks for one whose model it holds
MOST_PASSED = 4  # tickets that are drawn before one that came earlier


class Suits(NamedTuple):
    """How well a worker suits a ticket; the greater, the better."""

    gpu: bool = True
    held: bool = True  # its model is loaded there


Suiting = Callable[[Ticket], Suits | None]  # None: it cannot draw it


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
        self._free: list[Suiting] = []  # workers that wait for a ticket
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

    def take(self, seconds: float | None = None, suiting: Suiting = lambda ticket: Suits()) -> Ticket | None:
        """The next one for this worker, as soon as there is one; None when the line is closed, or there was none for
        that long."""
        with self._changed:
            self._free.append(suiting)
            self._changed.wait_for(lambda: self.closed or self._next(suiting), seconds)
            found = self._next(suiting)
            self._free.remove(suiting)
            if not found:
                return None
            *passed, ticket = found
            for one in passed:
                one.passed += 1
            waiting = self._clients.pop(ticket.client)
            waiting.remove(ticket)
            if waiting:
                self._clients[ticket.client] = waiting  # behind the others
            self._changed.notify_all()  # what was left to this one, another takes now
            return ticket

    def _next(self, suiting: Suiting) -> list[Ticket]:
        """The ticket for a worker, behind those that it passes over: one whose model is loaded there comes before
        others, but only so often before the same one. What suits another better that is free too is left to that."""
        passed: list[Ticket] = []
        for ticket in islice((one for one in self._order() if self._suits_best(suiting, one)), LOOKED_AT):
            held = suiting(ticket)
            if held is not None and held.held:
                return [*passed, ticket]
            passed.append(ticket)
            if ticket.passed >= MOST_PASSED:
                break
        return passed[:1]

    def _suits_best(self, suiting: Suiting, ticket: Ticket) -> bool:
        own = suiting(ticket)
        if own is None:
            return False
        others = (other(ticket) for other in self._free if other is not suiting)
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
