"""A ticket seen from the event loop: its events as they come, its end, and a client that may leave before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from sdcli.events import Event, Preview
from sdcli.serve.service import Service
from sdcli.serve.ticket import LEFT, MOST_PREVIEWS, Ticket

Numbered = tuple[int, Event]
STREAM = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # headers of events as they come


async def happening(ticket: Ticket, after: int = 0, pause: float | None = None) -> AsyncIterator[Numbered | None]:
    """Events with their numbers until it is over; None where nothing happened for `pause` seconds. A slow reader
    misses previews."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()
    previews = 0  # that it has not taken

    def arrive(number: int, event: Event | None) -> None:
        loop.call_soon_threadsafe(put, number, event)

    def put(number: int, event: Event | None) -> None:
        nonlocal previews
        if isinstance(event, Preview):
            if previews == MOST_PREVIEWS:
                return
            previews += 1
        arrived.put_nowait((number, event))

    stop = ticket.listen(arrive, after)
    try:
        while True:
            try:
                number, event = await asyncio.wait_for(arrived.get(), pause)
            except TimeoutError:
                yield None
                continue
            if event is None:
                return
            previews -= isinstance(event, Preview)
            yield number, event
    finally:
        stop()


async def over(ticket: Ticket, request: Request, service: Service) -> bool:
    """Waits for its end. A client that leaves takes its request along: False."""
    if await until_over(ticket, request):
        return True
    service.cancel(ticket, LEFT)
    return False


async def until_over(ticket: Ticket, request: Request) -> bool:
    """Whether it is over before the client leaves."""
    ended = asyncio.create_task(_end(ticket))
    try:
        return await done(ended, request)
    finally:
        ended.cancel()


async def done(work: asyncio.Task[Any], request: Request) -> bool:
    """Whether it is done before the client leaves."""
    left = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        left.cancel()


async def _end(ticket: Ticket) -> None:
    async for _ in happening(ticket):
        pass


async def _left(request: Request) -> None:
    """The body has been read: what is received now is that nobody is there any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
