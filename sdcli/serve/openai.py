"""OpenAI's Images API: images from prompts and of images, and the models that draw them."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sdcli.errors import ModelMissing, SdcliError
from sdcli.plan.plan import Plan
from sdcli.serve import openai_answer, openai_fields, openai_files, waiting
from sdcli.serve.bodies import BadBody, parsed
from sdcli.serve.guard import client_of
from sdcli.serve.line import Full
from sdcli.serve.openai_answer import Answer, dumped
from sdcli.serve.openai_errors import Conflict, refused
from sdcli.serve.openai_fields import Asked
from sdcli.serve.openai_files import Form
from sdcli.serve.openapi import described
from sdcli.serve.repeats import PATIENCE, Repeats
from sdcli.serve.service import Service
from sdcli.serve.ticket import Ticket

LEFT = 499  # nobody is there to read it
KINDS = ("application/json", "text/event-stream")
IMAGES = {
    "type": "object", "required": ["created", "data"],
    "properties": {"created": {"type": "integer"}, "data": {"type": "array", "items": {"type": "object"}}},
}  # fmt: skip
MODEL = {
    "type": "object", "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}  # fmt: skip
MODELS = {
    "type": "object", "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": MODEL}},
}  # fmt: skip
_WRONG = (BadBody, SdcliError, Full, Conflict)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A body that was read. `hashed` is the same whenever the same is asked for; `given` grows by the paths of the
    files that came along, with what they were called."""

    asked: Asked
    hashed: str
    form: Form | None = None
    given: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "image_generation" if self.form is None else "image_edit"


def routes(service: Service) -> list[Route]:
    repeats, bounds = Repeats(service), service.settings.bounds

    @described(body=openai_fields.schema(bounds), answer=IMAGES, kinds=KINDS)
    async def generations(request: Request) -> Response:
        """Images from a prompt; with `stream`, events as they are drawn."""
        try:
            wish = await asyncio.to_thread(generation, await request.body())
        except BadBody as error:
            return refused(error)
        return await answered(service, repeats, request, wish)

    @described(
        body=openai_fields.schema(bounds, edits=True), answer=IMAGES, kinds=KINDS,
        parts=dict.fromkeys(("image", "image[]", "mask"), "image/png, image/jpeg, image/webp"),
    )  # fmt: skip
    async def edits(request: Request) -> Response:
        """An image drawn anew by a prompt, all of it or where a mask is transparent."""
        try:
            wish = await asyncio.to_thread(edit, await openai_files.form(request))
        except BadBody as error:
            return refused(error)
        return await answered(service, repeats, request, wish)

    @described(answer=MODELS)
    async def models(request: Request) -> Response:
        """The models that a request may name."""
        listed = [model(name) for name in await asyncio.to_thread(service.models)]
        return _json({"object": "list", "data": listed})

    @described(answer=MODEL)
    async def one_model(request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        try:
            await asyncio.to_thread(service.listed, name)
        except ModelMissing as error:
            return refused(error)
        return _json(model(name))

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": int(service.started), "owned_by": "sdcli"}

    return [
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/images/edits", edits, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", one_model, methods=["GET"]),
    ]


# --- what is asked for


def generation(content: bytes) -> Wish:
    body = parsed(content)
    asked = openai_fields.asked(body)
    return Wish(asked=asked, hashed=_hash("generations", body), given=dict(asked.given))


def edit(form: Form) -> Wish:
    body = openai_fields.from_parts(form.texts)
    asked = openai_fields.asked(body, edits=True)
    files = [sha256(content).hexdigest() for content in (*form.images, *([form.mask] if form.mask else []))]
    hashed = _hash("edits", [body, files, form.mask is not None])
    return Wish(asked=asked, hashed=hashed, form=form, given=dict(asked.given))


def _hash(*asked: Any) -> str:
    return sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def submitted(service: Service, wish: Wish, client: str, seconds: float | None) -> Ticket:
    typed = dict(wish.asked.typed)
    if wish.form is not None:
        typed, names = openai_files.with_images(wish.asked, wish.form, service.upload)
        wish.given.update(names)
    typed, names = openai_files.with_control(typed, wish.asked, service.upload)
    wish.given.update(names)
    plan = service.plan(typed)
    return service.submit(_previewed(plan, wish.asked.partial_images), client, seconds)


def _previewed(plan: Plan, count: int) -> Plan:
    """With as many previews of each image, evenly over its steps; none of its last step, which is the image."""
    if not count:
        return plan
    every = max(1, math.ceil(plan.jobs[0].unet_calls / (count + 1)))
    return replace(plan, request=replace(plan.request, preview_every=every))


def _seconds(request: Request) -> float | None:
    """As long as the client says that it waits."""
    try:
        seconds = float(request.headers.get("x-stainless-read-timeout", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


# --- what is answered


async def answered(service: Service, repeats: Repeats, request: Request, wish: Wish) -> Response:
    who, seeded = client_of(request.scope), wish.asked.seeded
    seconds = None if wish.asked.stream else _seconds(request)  # who reads a stream waits as long as it goes on

    async def submit() -> Ticket:
        return await asyncio.to_thread(submitted, service, wish, who, seconds)

    try:
        ticket = await repeats.ticket(request, who, wish.hashed, seeded, submit)
    except _WRONG as error:
        return refused(error, wish.given)
    answer = Answer(ticket=ticket, asked=wish.asked, base=str(request.base_url), given=wish.given)
    if ticket.deadline is not None:  # of who asked before, and came again
        ticket.deadline = None if seconds is None else max(ticket.deadline, time.monotonic() + seconds)
    patience = PATIENCE if repeats.will_come_again(request, seeded) else 0.0
    repeats.arrive(ticket)
    if wish.asked.stream:
        events = openai_answer.stream(answer, wish.kind, asyncio.to_thread)
        return Streamed(events, lambda: repeats.leave(ticket, patience))
    try:
        there = await waiting.until_over(ticket, request)
    finally:
        repeats.leave(ticket, patience)
    if not there:
        return Response(status_code=LEFT)
    if ticket.error is not None and not ticket.images:
        return refused(ticket.error, wish.given)
    try:
        content = await asyncio.to_thread(answer.whole)
    except SdcliError as error:
        return refused(error)
    return Response(content, media_type="application/json")


class Streamed(StreamingResponse):
    """`left` is called when it ends, also where it ends before its first event."""

    def __init__(self, events: AsyncIterator[bytes], left: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=waiting.STREAM)
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left()


def _json(content: dict[str, Any]) -> Response:
    return Response(dumped(content), media_type="application/json")
