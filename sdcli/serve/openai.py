"""OpenAI's Images API."""

from __future__ import annotations

import asyncio
import base64
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdcli.errors import SdcliError
from sdcli.serve import waiting
from sdcli.serve.bodies import BadBody, parsed
from sdcli.serve.line import Full
from sdcli.serve.service import Service
from sdcli.serve.ticket import Drawn, Ticket

# Its own names and those that other servers have for the same; what is left of generate's settings has their names.
ALIASES = {
    "num_inference_steps": "steps", "step": "steps", "guidance_scale": "guidance", "cfg_scale": "guidance",
    "seed": "seeds", "n": "num_images",
}  # fmt: skip
TAKEN = frozenset({
    "model", "steps", "guidance", "negative_prompt", "seeds", "num_images", "sampler", "clip_skip", "size", "lora",
    "strength", "hires", "hires_steps", "hires_strength", "upscaler", "emphasis", "rng", "batch_invariant",
})  # fmt: skip
# Of no use here, and no image differs without them.
IGNORED = frozenset({"user", "safety_identifier", "moderation", "style", "quality", "complexity", "background"})


def routes(service: Service) -> list[Route]:
    async def generations(request: Request) -> Response:
        try:
            body = parsed(await request.body())
            ticket = await asyncio.to_thread(submitted, service, body, request)
        except (BadBody, SdcliError, Full) as error:
            return refused(error)
        if not await waiting.over(ticket, request, service):
            return Response(status_code=499)
        if ticket.error is not None and not ticket.images:
            return refused(ticket.error)
        return JSONResponse(await asyncio.to_thread(answer, ticket))

    async def models(request: Request) -> Response:
        names = await asyncio.to_thread(service.models)
        return JSONResponse({"object": "list", "data": [model(name) for name in names]})

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": int(service.started), "owned_by": "sdcli"}

    return [
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
    ]


def submitted(service: Service, body: Mapping[str, Any], request: Request) -> Ticket:
    return service.submit(service.plan(values(body)), client(request), _seconds(request))


def values(body: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a body asks for, as they would be typed."""
    typed: dict[str, Any] = {}
    for name, value in body.items():
        setting = ALIASES.get(name, name)
        if name == "prompt":
            typed["words"] = (str(value),)
        elif setting in TAKEN and value is not None and value != "auto":
            typed[setting] = value if isinstance(value, bool) else str(value)
        elif name not in IGNORED and setting not in TAKEN and name not in ("response_format",):
            raise BadBody(f"unknown field {name!r}", name)
    return typed


def client(request: Request) -> str:
    return request.client.host if request.client else ""


def _seconds(request: Request) -> float | None:
    """As long as the client says that it waits."""
    try:
        seconds = float(request.headers.get("x-stainless-read-timeout", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def answer(ticket: Ticket) -> dict[str, Any]:
    return {"created": int(time.time()), "data": [_image(drawn) for drawn in ticket.images]}


def _image(drawn: Drawn) -> dict[str, Any]:
    content = base64.b64encode(Path(drawn.path).read_bytes()).decode()
    return {"b64_json": content, "seed": drawn.job.seed, "file": drawn.file}


def refused(error: Exception) -> Response:
    status, kind = 500, "server_error"
    if isinstance(error, BadBody) or (isinstance(error, SdcliError) and error.code == 2):
        status, kind = 400, "invalid_request_error"
    elif isinstance(error, Full):
        status, kind = 429, "rate_limit_error"
    elif isinstance(error, SdcliError) and error.code == 3:
        status, kind = 404, "invalid_request_error"
    elif isinstance(error, SdcliError) and error.type == "terminated":
        status = 503
    code = error.type if isinstance(error, SdcliError) else "queue_full" if isinstance(error, Full) else "bad_body"
    content = {"message": str(error), "type": kind, "param": getattr(error, "field", None), "code": code}
    return JSONResponse({"error": content}, status, {"x-should-retry": "true" if status == 429 else "false"})
