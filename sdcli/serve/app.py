"""The ASGI application: every API over one service."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sdcli.serve import jobs, openai, page_files, results, sdapi
from sdcli.serve.service import Service


def app(service: Service) -> Starlette:
    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    apis = [*openai.routes(service), *jobs.routes(service), *results.routes(service), *sdapi.routes(service)]
    return Starlette(routes=[Route("/healthz", healthz), *apis, *page_files.routes()])
