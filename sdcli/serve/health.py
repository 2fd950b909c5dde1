"""How the server is: alive, and ready to draw."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sdcli.serve.openapi import described
from sdcli.serve.service import Service


def routes(service: Service) -> list[Route]:
    @described(kinds=("text/plain",))
    async def healthz(request: Request) -> Response:
        """Whether the process answers at all, also while it draws."""
        return PlainTextResponse("ok\n")

    @described(
        answer={"type": "object", "required": ["ready"], "properties": {"ready": {"type": "boolean"}}},
        others={503: "It is not, for this reason."},
    )
    async def readyz(request: Request) -> Response:
        """Whether a request would be drawn now: the default model is loaded, and the queue has room."""
        reason = service.ready
        if reason is None:
            return JSONResponse({"ready": True})
        return JSONResponse({"ready": False, "reason": reason}, 503, {"Retry-After": "2"})

    return [Route("/healthz", healthz, methods=["GET"]), Route("/readyz", readyz, methods=["GET"])]
