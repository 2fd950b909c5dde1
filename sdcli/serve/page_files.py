"""The web page at /: a few files, read once, that nothing but this server is asked for."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sdcli import data
from sdcli.serve.openapi import described

KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def routes() -> list[Route]:
    return [_route(path) for path in sorted(data.page().iterdir()) if path.suffix in KINDS]


def _route(path: Path) -> Route:
    content, kind = path.read_bytes(), KINDS[path.suffix]
    tag = f'"{sha256(content).hexdigest()[:32]}"'

    @described(kinds=(kind,), others={304: "It is as the client has it."})
    async def file(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers={**HEADERS, "ETag": tag})
        return Response(content, media_type=kind, headers={**HEADERS, "ETag": tag})

    return Route("/" if path.name == "index.html" else f"/{path.name}", file, methods=["GET"])
