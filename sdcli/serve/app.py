"""The ASGI application: every API over one service, behind one guard."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from sdcli.serve import health, jobs, log, metrics, openai, openapi, page_files, refusals, results, sdapi
from sdcli.serve.guard import Asked, Guard
from sdcli.serve.metrics import Metrics
from sdcli.serve.rules import Rules
from sdcli.serve.service import Service


def app(service: Service, rules: Rules, *, counted: Metrics | None = None, quiet: bool = False) -> Guard:
    """`quiet`: no line for each request."""
    counted = counted or Metrics(service)
    routes: list[BaseRoute] = [
        *health.routes(service),
        *openai.routes(service),
        *jobs.routes(service),
        *results.routes(service),
        *sdapi.routes(service),
        *metrics.routes(counted),
        *page_files.routes(),
    ]  # fmt: skip
    routes += openapi.routes(routes, rules)
    return Guard(
        Starlette(routes=routes, exception_handlers={Exception: broken}),
        routes,
        rules,
        told(counted, quiet),
        log.failed,
    )


def broken(request: Request, error: Exception) -> Response:
    """Starlette hands the error on once this is sent: the guard says it in the log."""
    content = refusals.body(request.url.path, 500, refusals.BUG, "bug")
    return Response(content, 500, {"x-should-retry": "false"}, media_type="application/json")


def told(counted: Metrics, quiet: bool) -> Callable[[Asked], None]:
    def tell(asked: Asked) -> None:
        counted.told(asked)
        if not quiet:
            log.line(asked)

    return tell
