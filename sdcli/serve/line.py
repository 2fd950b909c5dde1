"""Who waits to be drawn for: a bounded queue that serves its clients in turn."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from sdcli.serve.ticket import Ticket

UNKNOWN_WAIT, LONGEST_WAIT = 5, 120  # seconds


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
        self._changed = threading.Condition()
        self.closed = False

    def put(self, ticket: Ticket) -> None:
        with self._changed:
            own = self._clients.get(ticket.client, deque())
            images = len(ticket.plan.jobs)
            waiting = list(self._all())
            if len(waiting) >= self.room.requests or _images(waiting) + images > self.room.images:
                raise Full("the queue is full")
            share = self.room.share
            if len(own) >= self.room.requests * share or _images(own) + images > self.room.images * share:
                raise Full("this client's part of the queue is full")
            self._clients.setdefault(ticket.client, deque()).append(ticket)
            self._changed.notify()

    def take(self, seconds: float | None = None) -> Ticket | None:
        """The next one, as soon as there is one; None when the line is closed, or nobody came for that long."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._clients, seconds)
            if not self._clients:
                return None
            client, waiting = next(iter(self._clients.items()))
            ticket = waiting.popleft()
            del self._clients[client]
            if waiting:
                self._clients[client] = waiting  # behind the others
            return ticket

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
        with self._changed:
            queues = [list(queue) for queue in self._clients.values()]
        longest = max(map(len, queues), default=0)
        order = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
        return order.index(ticket) if ticket in order else None

    def waiting(self) -> list[Ticket]:
        with self._changed:
            return list(self._all())

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
            left = list(self._all())
            self._clients.clear()
            self.closed = True
            self._changed.notify_all()
        return left

    def _all(self) -> list[Ticket]:
        return [ticket for queue in self._clients.values() for ticket in queue]


def _images(tickets: Iterable[Ticket]) -> int:
    return sum(len(ticket.plan.jobs) for ticket in tickets)


def too_late(ticket: Ticket) -> bool:
    return ticket.deadline is not None and time.monotonic() > ticket.deadline
