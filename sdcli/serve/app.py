"""The ASGI application: every API over one service."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sdcli.serve import jobs, openai, page_files, results
from sdcli.serve.service import Service


def app(service: Service) -> Starlette:
    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    own = [*jobs.routes(service), *results.routes(service), *page_files.routes()]
    return Starlette(routes=[Route("/healthz", healthz), *openai.routes(service), *own])
