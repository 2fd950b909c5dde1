"""Connections that bound what may come before a request is one: how long a head takes and how large it is, and how many
clients have not said yet what they want. uvicorn waits for ever, and takes heads of any size that arrive at once."""

from __future__ import annotations

import asyncio
import http
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from sdcli.serve import refusals


@dataclass(frozen=True, kw_only=True)
class HeadLimits:
    seconds: float = 10.0  # for a whole head, from the first byte or from the connection on
    bytes: int = 16 << 10
    fields: int = 64
    url: int = 2 << 10
    connections: int = 512  # beyond them, who has not sent a whole request for longest is let go


LINGER = 1.0  # seconds

Refused = Callable[[int, str], None]  # status and client of what never became a request


class Heads(h11.Connection):
    """Reads heads within limits. `status` says what to answer where one is refused."""

    def __init__(self, limits: HeadLimits) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=limits.bytes)
        self.limits = limits
        self.status = 400

    def next_event(self) -> Any:
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.status = self._status_of(error)
            raise
        if isinstance(event, h11.Request):
            self._check(event)
        return event

    def _check(self, request: h11.Request) -> None:
        fields = request.headers.raw_items()
        size = len(request.method) + len(request.target) + sum(len(name) + len(value) + 4 for name, value in fields)
        if len(request.target) > self.limits.url:
            self._refuse(414, "the URL is too long")
        if size > self.limits.bytes or len(fields) > self.limits.fields:
            self._refuse(431, "the head is too large")
        if not request.target.startswith(b"/") and request.target != b"*":
            self._refuse(400, "this is no proxy")
        # What two servers would read in two ways, one may pass on and the other obey.
        names = [name.lower() for name, _ in fields]
        old = request.http_version < b"1.1"
        if b"transfer-encoding" in names and (b"content-length" in names or old):
            self._refuse(400, "the length of the body is said in two ways")

    def _refuse(self, status: int, why: str) -> None:
        self.status = status
        raise h11.RemoteProtocolError(why, error_status_hint=status)

    def _status_of(self, error: h11.RemoteProtocolError) -> int:
        """Of a head that is not whole: a URL that fills it is too long itself."""
        if error.error_status_hint == 431 and b"\n" not in self.trailing_data[0][: self.limits.bytes]:
            return 414
        return error.error_status_hint


class Connection(H11Protocol):
    def __init__(self, *, limits: HeadLimits, refused: Refused, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.limits = limits
        self.refused = refused
        self.heads = Heads(limits)
        self.conn = self.heads
        self.waiting_since = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._over = False  # it was refused: whatever comes now is not looked at

    @property
    def waited_for(self) -> bool:
        """Whether its client still owes a part of a request."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.limits.connections:
            self._make_room()
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._over:
            super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        answered = self.cycle
        super().on_response_complete()
        if self.cycle is answered and not self.transport.is_closing():
            self._wait_for_head()

    def send_400_response(self, msg: str) -> None:
        self.refuse(self.heads.status)

    def refuse(self, status: int) -> None:
        """Answers what is no request, where an answer can still be given, and ends the connection."""
        self._stop_waiting()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [*refusals.HEADERS, (b"connection", b"close")]
            content = refusals.body("", status, refusals.OF_HEADS.get(status, refusals.OF_HEADS[400]))
            headers.append((b"content-length", str(len(content)).encode()))
            head = h11.Response(status_code=status, headers=headers, reason=http.HTTPStatus(status).phrase.encode())
            for event in (head, h11.Data(data=content)):
                self.transport.write(self.conn.send(event) or b"")
        self.refused(status, self.client[0] if self.client else "")
        self._linger()

    def _linger(self) -> None:
        """Whoever is cut off while sending never reads the answer: what still comes is taken for a moment."""
        self._over = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER, self.transport.close)

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self.waiting_since = time.monotonic()
        self._timer = self.loop.call_later(self.limits.seconds, self._too_late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self.conn.trailing_data[0]:
            self.refuse(408)
        else:  # nothing was asked: nothing is answered
            self.transport.close()

    def _make_room(self) -> None:
        idle = [one for one in self.connections if isinstance(one, Connection) and one.waited_for]
        if idle:
            longest = min(idle, key=lambda one: one.waiting_since)
            self.connections.discard(longest)
            longest.transport.abort()
