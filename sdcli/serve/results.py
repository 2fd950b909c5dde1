"""Images that were drawn, by names of their own: 32 hex digits, never part of a path."""

from __future__ import annotations

import asyncio
import re
import time
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sdcli.serve.guard import key_of
from sdcli.serve.openai_errors import refused
from sdcli.serve.openai_fields import BadField
from sdcli.serve.openapi import described
from sdcli.serve.service import Service, belongs
from sdcli.serve.ticket import Drawn, Ticket

KINDS = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
_NAME = re.compile(r"([0-9a-f]{24})([0-9a-f]{8})", re.ASCII)


def url_of(ticket: Ticket, drawn: Drawn) -> str:
    return f"/v1/results/{ticket.id}{drawn.index:08x}"


def found(service: Service, name: str) -> tuple[Ticket, Drawn] | None:
    match = _NAME.fullmatch(name)
    ticket = service.tickets.get(match[1]) if match else None
    if match is None or ticket is None or time.time() - ticket.created > service.settings.keep:
        return None
    return next(((ticket, drawn) for drawn in ticket.images if drawn.index == int(match[2], 16)), None)


def routes(service: Service) -> list[Route]:
    @described(kinds=tuple(KINDS.values()), others={304: "It is as the client has it."})
    async def result(request: Request) -> Response:
        """An image that was drawn."""
        one = found(service, request.path_params["name"])
        if one is None:
            return _missing()
        ticket, drawn = one
        tag = f'"{drawn.file_sha256}"'
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers={"ETag": tag})
        data = await asyncio.to_thread(content, drawn)
        if data is None:
            return _missing()
        return Response(data, media_type=KINDS[drawn.format], headers={"ETag": tag, **_headers(ticket, drawn)})

    @described(status=204)
    async def forget(request: Request) -> Response:
        """Forget it. A file in the output folder stays, one that is kept only for the server is deleted."""
        one = found(service, request.path_params["name"])
        if one is None or not belongs(one[0], key_of(request.scope)):  # who was given its address may read it, no more
            return _missing()
        await asyncio.to_thread(service.discard, *one)
        return Response(status_code=204)

    return [
        Route("/v1/results/{name}", result, methods=["GET"]),
        Route("/v1/results/{name}", forget, methods=["DELETE"]),
    ]


def _missing() -> Response:
    return refused(BadField("there is no such image", None, "unknown_result", 404))


def _headers(ticket: Ticket, drawn: Drawn) -> dict[str, str]:
    name = f"{ticket.id}{drawn.index:08x}.{drawn.format}"
    return {
        "Cache-Control": "private, max-age=86400, immutable",
        "Content-Disposition": f'inline; filename="{name}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }


def content(drawn: Drawn) -> bytes | None:
    """The file as it was saved; nothing where it is gone or another one by now."""
    try:
        data = Path(drawn.path).read_bytes()
    except OSError:
        return None
    return data if sha256(data).hexdigest() == drawn.file_sha256 else None
