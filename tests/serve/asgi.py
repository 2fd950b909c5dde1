"""Requests put to an ASGI application without a connection: every byte of them is the test's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

HOST = b"127.0.0.1:7860"


@dataclass
class Answered:
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str) -> str | None:
        return next((value.decode() for key, value in self.headers if key.decode().lower() == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Headers = Iterable[tuple[bytes, bytes]]


async def ask(
    app: Callable[..., Any], method: str, path: str, headers: Headers = ((b"host", HOST),), body: bytes = b"",
    parts: list[bytes] | None = None, receive: Callable[[], Any] | None = None,
) -> Answered:  # fmt: skip
    """A body of several `parts` is declared by none of them; `receive` says itself what comes."""
    answered, left = Answered(), list(parts if parts is not None else [body])

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answered.status, answered.headers = message["status"], list(message["headers"])
        else:
            answered.body += message.get("body", b"")

    async def come() -> dict[str, Any]:
        if not left:
            return {"type": "http.disconnect"}
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "headers": list(headers),
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 7860),
    }  # fmt: skip
    await app(scope, receive or come, send)
    return answered


def asked(*about: Any, **more: Any) -> Answered:
    return asyncio.run(ask(*about, **more))
