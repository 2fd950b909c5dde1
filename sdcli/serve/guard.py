"""What every request passes before it reaches an API: the name it was sent to, the page it comes from, its key, its
method, what it carries and how large that is. Each is refused by the first rule that it breaks, in this order."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from starlette.routing import BaseRoute, Match

from sdcli.serve import refusals
from sdcli.serve.refusals import Headers, is_a1111
from sdcli.serve.rules import UNMATCHED, Body, Rules, body_of, is_open

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MIB = 1 << 20
MOST_DISCARDED = 64 * MIB  # of a body that is refused: who still sends reads no answer
AWAY = 499  # the client left before it was answered
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SAFE: Headers = [pair for pair in refusals.HEADERS if pair[0] not in (b"content-type",)]
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}(\s*,\s*[A-Za-z0-9-]{1,64}){0,31}", re.ASCII)


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or []


class Left(Exception):
    """The client is gone."""


class Asked:
    """A request, and what became of it: what the log and the figures are told."""

    def __init__(self, scope: Scope) -> None:
        self.started = time.perf_counter()
        self.method = scope["method"] if scope["method"] in METHODS else "-"
        self.path: str = scope["path"]
        self.template = UNMATCHED
        self.allowed: frozenset[str] = frozenset()
        self.client = scope["client"][0] if scope.get("client") else ""
        self.key = ""
        self.reason = ""  # why it was refused
        self.status = 0  # until it is answered
        self.headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            self.headers.setdefault(name.lower(), []).append(value)

    def one(self, name: bytes) -> str | None:
        """A header that may be there once; None where it is absent."""
        values = self.headers.get(name, [])
        if len(values) > 1:
            raise Refusal(400, f"the header {name.decode()} is there twice")
        return values[0].decode("latin-1").strip() if values else None

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


class Guard:
    """`told` hears of each request once it is over, `failed` of what no API foresaw. While `closing`, requests are
    refused, but for those that ask how the server is."""

    def __init__(
        self, app: App, routes: Sequence[BaseRoute], rules: Rules, told: Callable[[Asked], None] = lambda asked: None,
        failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:  # fmt: skip
        self.app = app
        self.routes = routes
        self.rules = rules
        self.closing = False
        self._told = told
        self._failed = failed
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # nothing else is served
            return
        asked = Asked(scope)
        answer = Answer(asked, send, self.rules)
        try:
            await self._answered(scope, asked, receive, answer)
        except Left:
            asked.status = asked.status or AWAY
        except asyncio.CancelledError:
            if not asked.status:
                await answer.refuse(_closing())
            raise
        finally:
            self._told(asked)

    async def _answered(self, scope: Scope, asked: Asked, receive: Receive, answer: Answer) -> None:
        incoming = Incoming(receive)
        try:
            self._find(scope, asked)
            if self._preflight(asked):
                return await answer.preflight(asked)
            self._admit(asked)
            scope.setdefault("state", {}).update(client=asked.key or asked.client, key=asked.key)
            body = await self._body(asked, incoming, body_of(asked.template))
            await self.app(scope, replayed(body, receive), answer.send)
        except Refusal as refusal:
            asked.reason = refusal.code or refusals.code_of(refusal.status)
            if refusal.code != "timeout":
                await self._discard(asked, incoming)
            await answer.refuse(refusal)
        except (Left, asyncio.CancelledError):
            raise
        except Exception as error:
            self._failed(error)
            if asked.status:
                raise Left from error  # the rest of the answer is not to be had
            await answer.refuse(Refusal(500, refusals.BUG, "bug"))

    # --- the rules, in their order

    def _admit(self, asked: Asked) -> None:
        self._check_host(asked)
        self._check_page(asked)
        if self.closing and asked.template not in ("/healthz", "/readyz"):
            raise _closing()
        if self.rules.keys and not is_open(asked.template, asked.method):
            self._check_key(asked)
        if asked.template == UNMATCHED:
            raise Refusal(404, "there is nothing at this path", "not_found")
        if asked.method not in asked.allowed:
            allow = ", ".join(sorted(asked.allowed)).encode()
            raise Refusal(405, f"this path takes {allow.decode()}", headers=[(b"allow", allow)])

    def _check_host(self, asked: Asked) -> None:
        hosts = asked.headers.get(b"host", [])
        if len(hosts) != 1 or not self.rules.answers_to(hosts[0].decode("latin-1")):
            raise Refusal(421, "this server is not known by that name; --allow-host NAME makes it known")

    def _check_page(self, asked: Asked) -> None:
        """A browser says which page a request comes from; no other program says anything."""
        origins = asked.headers.get(b"origin", [])
        sites = asked.headers.get(b"sec-fetch-site", [])
        host = asked.headers[b"host"][0].decode("latin-1")
        named = len(origins) == 1 and origins[0].decode("latin-1") in self.rules.origins
        own = len(origins) == 1 and self.rules.own_page(origins[0].decode("latin-1"), host)
        if origins and not (named or own):
            raise Refusal(403, "a page of another origin may not ask; --allow-origin ORIGIN lets it")
        if sites and not named and (len(sites) > 1 or sites[0] not in (b"same-origin", b"none")):
            raise Refusal(403, "a page of another site may not ask")

    def _check_key(self, asked: Asked) -> None:
        kind, _, given = (asked.one(b"authorization") or "").partition(" ")
        key = given.strip() if kind.lower() == "bearer" else None
        if kind.lower() == "basic" and is_a1111(asked.path):
            key = _password(given.strip())
        name = self.rules.known(key) if key else None
        if name is None:
            realm = b'Basic realm="sdcli"' if is_a1111(asked.path) else b"Bearer"
            message = "a key is needed" if not key else "the key is not right"
            raise Refusal(401, message, headers=[(b"www-authenticate", realm)])
        asked.key = name

    def _check_kind(self, asked: Asked, takes: Body) -> None:
        kind = (asked.one(b"content-type") or "").partition(";")[0].strip().lower()
        if kind not in takes.kinds:
            raise Refusal(415, f"the body has to be {' or '.join(takes.kinds)}")
        if (asked.one(b"content-encoding") or "identity").lower() != "identity":
            raise Refusal(415, "the body may not be compressed")

    # --- the body

    async def _body(self, asked: Asked, incoming: Incoming, takes: Body) -> bytes:
        """All of it, counted as it comes. A request without one needs no type."""
        declared = asked.one(b"content-length")
        length = int(declared) if declared is not None and declared.isascii() and declared.isdigit() else None
        if b"transfer-encoding" not in asked.headers and not length:
            return await self._whole(incoming, 0)
        self._check_kind(asked, takes)
        if length is not None and length > takes.largest:
            raise _too_large(takes.largest)
        try:
            async with asyncio.timeout(self.rules.seconds) as timeout:
                return await self._whole(incoming, takes.largest, timeout)
        except TimeoutError:
            raise Refusal(408, "the body did not come in time", "timeout") from None

    async def _whole(self, incoming: Incoming, largest: int, timeout: asyncio.Timeout | None = None) -> bytes:
        body, counted = bytearray(), 0
        until = asyncio.get_running_loop().time() + self.rules.seconds
        try:
            async for part in incoming.parts():
                body += part
                self._held += len(part)
                counted += len(part)
                if timeout is not None:
                    timeout.reschedule(until + counted / MIB)
                if len(body) > largest:
                    raise _too_large(largest)
                if self._held > self.rules.most_held:
                    raise Refusal(503, "too much is being received at once", headers=[(b"retry-after", b"2")])
            return bytes(body)
        finally:
            self._held -= counted

    async def _discard(self, asked: Asked, incoming: Incoming) -> None:
        """What comes of a refused body, for a while: whoever is cut off while sending never reads the answer. A client
        that asks first (Expect: 100-continue) is told before it sends anything."""
        if b"expect" in asked.headers or not (asked.headers.keys() & {b"content-length", b"transfer-encoding"}):
            return
        left = MOST_DISCARDED
        try:
            async with asyncio.timeout(self.rules.seconds):
                async for part in incoming.parts():
                    left -= len(part)
                    if left < 0:
                        return
        except (TimeoutError, Left):
            return

    # --- which route, and pages of other origins

    def _find(self, scope: Scope, asked: Asked) -> None:
        for route in self.routes:
            match, _ = route.matches(scope)
            if match is not Match.NONE:
                asked.template = getattr(route, "path", UNMATCHED)
                asked.allowed |= frozenset(getattr(route, "methods", None) or METHODS)
                if match is Match.FULL:
                    return

    def _preflight(self, asked: Asked) -> bool:
        """Whether a browser asks on behalf of a page that may ask."""
        if asked.method != "OPTIONS" or b"access-control-request-method" not in asked.headers:
            return False
        self._check_host(asked)
        return (asked.one(b"origin") or "") in self.rules.origins


class Incoming:
    """A body as it comes. What was taken of it once does not come again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    async def parts(self) -> AsyncIterator[bytes]:
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Left
            self._more = message.get("more_body", False)
            yield message.get("body", b"")


class Answer:
    """Sends what an API answers, with the headers that every answer has."""

    def __init__(self, asked: Asked, send: Send, rules: Rules) -> None:
        self.asked = asked
        self._send = send
        origin = asked.headers.get(b"origin", [b""])[0]
        self._shared = origin if origin.decode("latin-1") in rules.origins else b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.asked.status = message["status"]
            message = {**message, "headers": self._headers(message.get("headers", ()))}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        content = refusals.body(self.asked.path, refusal.status, refusal.message, refusal.code)
        headers = [*refusal.headers, (b"content-type", b"application/json"), (b"connection", b"close")]
        if refusal.status != 503:
            headers.append((b"x-should-retry", b"false"))
        await self._whole(refusal.status, headers, content)

    async def preflight(self, asked: Asked) -> None:
        wanted = (asked.one(b"access-control-request-headers") or "").encode("latin-1")
        allowed = wanted if _HEADER_NAMES.fullmatch(wanted.decode("latin-1")) else b"authorization, content-type"
        headers: Headers = [
            (b"access-control-allow-methods", ", ".join(sorted(asked.allowed or METHODS)).encode()),
            (b"access-control-allow-headers", allowed), (b"access-control-max-age", b"600"),
        ]  # fmt: skip
        await self._whole(204, headers, b"")

    async def _whole(self, status: int, headers: Headers, content: bytes) -> None:
        if status != 204:
            headers = [*headers, (b"content-length", str(len(content)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content, "more_body": False})

    def _headers(self, own: Iterable[tuple[bytes, bytes]]) -> Headers:
        headers = list(own)
        there = {name.lower() for name, _ in headers}
        headers += [pair for pair in SAFE if pair[0] not in there]
        if self._shared:
            headers = [pair for pair in headers if pair[0] != b"cross-origin-resource-policy"]
            headers += [(b"access-control-allow-origin", self._shared), (b"vary", b"origin")]
            headers += [(b"access-control-expose-headers", b"location, retry-after, x-should-retry")]
        return headers


def replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body once more, then whatever comes after it: that the client has left."""
    left = [body]

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again


def client_of(scope: Mapping[str, Any]) -> str:
    """Who asks, as far as the queue is concerned: a key, else an address."""
    client = scope.get("state", {}).get("client")
    return str(client) if client else (scope["client"][0] if scope.get("client") else "")


def key_of(scope: Mapping[str, Any]) -> str:
    """Whose jobs a request may look at and end: its key's. Empty where there are no keys: everybody's."""
    return str(scope.get("state", {}).get("key") or "")


def _password(basic: str) -> str | None:
    try:
        return base64.b64decode(basic, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return None


def _too_large(largest: int) -> Refusal:
    size = f"{largest // MIB} MiB" if largest >= MIB else f"{largest >> 10} KiB" if largest else "empty"
    return Refusal(413, f"the body is larger than {size}" if largest else "the body has to be empty")


def _closing() -> Refusal:
    message = "the server is shutting down"
    return Refusal(503, message, "shutting_down", headers=[(b"retry-after", b"5")])
