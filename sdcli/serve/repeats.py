"""Requests that come again: they find the ticket they had, instead of being drawn twice."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from sdcli.serve.openai_errors import Conflict
from sdcli.serve.openai_fields import BadField
from sdcli.serve.service import Service
from sdcli.serve.ticket import LEFT, Ticket

MOST = 1000
PATIENCE = 1.5  # seconds: OpenAI's client asks again after at most one
_KEY = re.compile(r"[\x21-\x7e]{1,64}", re.ASCII)


@dataclass(eq=False)
class Before:
    """`body`: its hash. The ticket is still to come while the request is being planned."""

    body: str
    ticket: asyncio.Future[Ticket]
    made: float = field(default_factory=time.monotonic)


class Repeats:
    """Belongs to one event loop. Whoever waits for a ticket is counted: it is cancelled when the last of them left."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._before: dict[tuple[str, str, str], Before] = {}  # oldest first
        self._waiting: dict[str, int] = {}

    async def ticket(
        self, request: Request, client: str, hashed: str, seeded: bool, submit: Callable[[], Awaitable[Ticket]]
    ) -> Ticket:
        """The one that this request has already, or a new one: by its Idempotency-Key, or where the client says that
        it asks again, by what it asks for (`hashed`) with a seed."""
        key = _key(request)
        names = [("key", client, key)] if key else [("body", client, hashed)] if seeded else []
        if key or attempts(request) > 0:
            for name in names:
                known = self._before.get(name)
                if known is None:
                    continue
                if known.body != hashed:
                    raise Conflict("this Idempotency-Key was used for another request")
                if self._holds(known):
                    return await asyncio.shield(known.ticket)
        return await self._new(names, hashed, submit)

    def will_come_again(self, request: Request, seeded: bool) -> bool:
        return bool(_key(request)) or (seeded and "x-stainless-retry-count" in request.headers)

    def arrive(self, ticket: Ticket) -> None:
        self._waiting[ticket.id] = self._waiting.get(ticket.id, 0) + 1

    def leave(self, ticket: Ticket, patience: float = 0.0) -> None:
        """Nobody waits for it any more? Then it ends, unless somebody comes for it within `patience`."""
        self._waiting[ticket.id] -= 1
        if self._waiting[ticket.id] == 0:
            if patience and not ticket.over:
                asyncio.get_running_loop().call_later(patience, self._end, ticket)
            else:
                self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        if self._waiting.get(ticket.id) == 0:
            del self._waiting[ticket.id]
            if not ticket.over:
                self._service.cancel(ticket, LEFT)

    def _holds(self, known: Before) -> bool:
        """Whether it is still what who asks again waits for."""
        if time.monotonic() - known.made > self._service.settings.keep:
            return False
        if not known.ticket.done():
            return True
        ticket = None if known.ticket.cancelled() or known.ticket.exception() else known.ticket.result()
        if ticket is None or ticket.id not in self._service.tickets:
            return False
        return ticket.cancelled is None and ticket.state not in ("failed", "cancelled")

    async def _new(
        self, names: list[tuple[str, str, str]], hashed: str, submit: Callable[[], Awaitable[Ticket]]
    ) -> Ticket:
        coming = Before(hashed, asyncio.get_running_loop().create_future())
        coming.ticket.add_done_callback(lambda done: done.cancelled() or done.exception())  # it was told already
        for name in names:
            self._before.pop(name, None)
            self._before[name] = coming
        while len(self._before) > MOST:
            del self._before[next(iter(self._before))]
        try:
            ticket = await submit()
        except BaseException as error:
            coming.ticket.set_exception(error if isinstance(error, Exception) else ConnectionAbortedError())
            for name in names:
                if self._before.get(name) is coming:
                    del self._before[name]
            raise
        coming.ticket.set_result(ticket)
        return ticket


def attempts(request: Request) -> int:
    """How often the client asked before, as it says."""
    text = request.headers.get("x-stainless-retry-count", "")
    return int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0


def _key(request: Request) -> str:
    key = request.headers.get("idempotency-key", "")
    if key and _KEY.fullmatch(key) is None:
        raise BadField("Idempotency-Key has to be 1 to 64 printable characters of ASCII", None, "bad_body")
    return key
