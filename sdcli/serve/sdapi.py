"""A1111's API, /sdapi/v1, and that of its ControlNet extension, as other programs call them."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdcli.errors import Cancelled, SdcliError
from sdcli.images import control, read
from sdcli.record.encode import saved
from sdcli.request.options import flag_of
from sdcli.serve import (
    sdapi_answers,
    sdapi_controls,
    sdapi_extras,
    sdapi_fields,
    sdapi_lists,
    sdapi_options,
    sdapi_schemas,
    waiting,
)  # fmt: skip
from sdcli.serve.bodies import BadBody, parsed
from sdcli.serve.guard import client_of, key_of
from sdcli.serve.line import Full
from sdcli.serve.openai_errors import STATUSES, without_paths
from sdcli.serve.openapi import described
from sdcli.serve.sdapi_body import Body, content_of
from sdcli.serve.sdapi_extras import Extras
from sdcli.serve.sdapi_names import Names
from sdcli.serve.sdapi_options import Options
from sdcli.serve.sdapi_schemas import ONE_IMAGE, Schema
from sdcli.serve.service import Service
from sdcli.serve.ticket import Ticket

Settings = Callable[[Body, Service, Names], dict[str, Any]]
Made = Callable[[Body, threading.Event], Any]
Given = dict[str, str]  # the paths of images that came along, and the fields they were in
Answer = Callable[[Request, Given], Any]

TEXT, IMAGE = sdapi_fields.text_to_image, sdapi_fields.image_to_image
_DRAWN: dict[str, Settings] = {
    "/sdapi/v1/txt2img": TEXT, "/controlnet/txt2img": TEXT, "/sdapi/v1/img2img": IMAGE, "/controlnet/img2img": IMAGE,
}  # fmt: skip
_MADE: dict[str, tuple[Schema, Schema]] = {
    "/sdapi/v1/extra-single-image": (sdapi_extras.SINGLE, sdapi_schemas.MADE),
    "/sdapi/v1/extra-batch-images": (sdapi_extras.BATCH, sdapi_schemas.ALL_MADE),
    "/sdapi/v1/png-info": (sdapi_schemas.of_object({"image": ONE_IMAGE}, "image"), sdapi_schemas.STORED),
    "/controlnet/detect": (sdapi_controls.DETECT, sdapi_schemas.SEEN),
}
_REFRESHED = ("checkpoints", "vae", "loras", "embeddings")


def routes(service: Service) -> list[Route]:
    names = Names(service)
    options = Options(names, service.settings.typed)
    extras = Extras(service, names)
    made: dict[str, Made] = {
        "/sdapi/v1/extra-single-image": extras.single, "/sdapi/v1/extra-batch-images": extras.batch,
        "/sdapi/v1/png-info": partial(_stored, service), "/controlnet/detect": partial(_detected, service),
    }  # fmt: skip
    posted: dict[str, Answer] = {
        **{path: _draws(service, names, options, settings) for path, settings in _DRAWN.items()},
        **{path: described(body=body, answer=answer)(_makes(made[path])) for path, (body, answer) in _MADE.items()},
        **{f"/sdapi/v1/refresh-{what}": _refreshes(service) for what in _REFRESHED},
        "/sdapi/v1/options": _changes(options), "/sdapi/v1/interrupt": _interrupts(service),
        "/sdapi/v1/skip": _skips(service),
    }  # fmt: skip
    got: dict[str, Answer] = {
        **{path: _lists(names, listed) for path, listed in sdapi_lists.LISTS.items()},
        "/sdapi/v1/options": _shows(options), "/sdapi/v1/progress": _progress(service),
    }  # fmt: skip
    return [
        *(Route(path, _refusing(answer), methods=["POST"]) for path, answer in posted.items()),
        *(Route(path, _refusing(answer), methods=["GET"]) for path, answer in got.items()),
    ]


def _refusing(answering: Answer) -> Callable[[Request], Any]:
    @wraps(answering)
    async def answer(request: Request) -> Response:
        given: Given = {}
        try:
            response: Response = await answering(request, given)
            return response
        except (BadBody, SdcliError, Full) as error:
            return refused(error, given)

    return answer


def _draws(service: Service, names: Names, options: Options, settings: Settings) -> Answer:
    schema = sdapi_fields.schema(service.settings.bounds, start=settings is IMAGE)

    @described(body=schema, answer=sdapi_schemas.DRAWN)
    async def draw(request: Request, given: Given) -> Response:
        """Images, as A1111 draws them."""
        content = await request.body()
        body, ticket = await asyncio.to_thread(
            _submitted, content, given, client_of(request.scope), service, names, options, settings
        )
        if not await waiting.over(ticket, request, service):
            return Response(status_code=499)
        if (failed := _failed(ticket)) is not None:
            raise failed
        return JSONResponse(await asyncio.to_thread(sdapi_answers.drawn, ticket, body))

    return draw


def _submitted(
    content: bytes, given: Given, asking: str, service: Service, names: Names, options: Options, settings: Settings
) -> tuple[dict[str, Any], Ticket]:
    fields = parsed(content)
    body = Body(fields, given=given)
    own = options.settings(asking, body.inner("override_settings"))
    plan = service.plan({**own, **settings(body, service, names)})
    return fields, service.submit(plan, asking)


def _failed(ticket: Ticket) -> SdcliError | None:
    """Why there is nothing to answer. Of what was interrupted, what is finished is the answer."""
    whole = len(ticket.images) == len(ticket.plan.jobs)
    kept = bool(ticket.images) and ticket.state == "cancelled"
    return None if whole or kept else ticket.error or Cancelled("cancelled")


def _makes(make: Made) -> Answer:
    async def answer(request: Request, given: Given) -> Response:
        content, left = await request.body(), threading.Event()
        making = asyncio.create_task(asyncio.to_thread(lambda: make(Body(parsed(content), given=given), left)))
        if not await waiting.done(making, request):
            left.set()
        return JSONResponse(await making)

    return answer


def _stored(service: Service, body: Body, left: threading.Event) -> dict[str, Any]:
    content = body.image("image")
    if not content:
        raise body.refused("image", "no image")
    path = body.kept(content, "image", service.upload)
    read.look(path)
    return sdapi_answers.stored(path)


def _detected(service: Service, body: Body, left: threading.Event) -> dict[str, Any]:
    """What a ControlNet would see."""
    module = sdapi_controls.module_of(Body({"module": body.fields.get("controlnet_module")}, "controlnet_"))
    listed = ((name, body.listed(name)) for name in sdapi_controls.DETECTED)
    fields = {f"{name}[{number}]": value for name, values in listed for number, value in enumerate(values)}
    if not fields:
        raise body.refused(sdapi_controls.DETECTED[-1], "no image")
    paths = [body.kept(content_of(value, field), field, service.upload) for field, value in fields.items()]
    seen = (control.prepared(read.decoded(path), module) for path in paths)
    return {"images": [sdapi_answers.encoded(saved(image, "PNG")) for image in seen], "info": "Success"}


def _lists(names: Names, listed: sdapi_lists.Listed) -> Answer:
    @described(answer={"type": ["array", "object"]})
    async def answer(request: Request, given: Given) -> Response:
        return JSONResponse(await asyncio.to_thread(listed, names))

    return answer


def _shows(options: Options) -> Answer:
    @described(answer={"type": "object"})
    async def show_options(request: Request, given: Given) -> Response:
        """The options of who asks."""
        return JSONResponse(await asyncio.to_thread(options.shown, client_of(request.scope)))

    return show_options


def _changes(options: Options) -> Answer:
    @described(body=sdapi_options.SCHEMA, answer={"type": "null"})
    async def change(request: Request, given: Given) -> Response:
        """Sets options for later requests of who asks."""
        content = await request.body()
        await asyncio.to_thread(lambda: options.change(client_of(request.scope), parsed(content)))
        return JSONResponse(None)

    return change


def _progress(service: Service) -> Answer:
    """Of what this client waits for; else how far another's is, without what it looks like."""

    @described(answer=sdapi_schemas.PROGRESS, query={"skip_current_image": {"type": "string"}})
    async def progress(request: Request, given: Given) -> Response:
        """How far the image is that who asks waits for."""
        own = service.of_client(client_of(request.scope))
        others = None if key_of(request.scope) else next(iter(service.drawing), None)
        ticket = next((one for one in own if one.state == "drawing"), own[0] if own else others)
        hidden = request.query_params.get("skip_current_image", "").casefold() in ("true", "1")
        answer = await asyncio.to_thread(sdapi_answers.progress, ticket, bool(own) and not hidden)
        return JSONResponse(answer)

    return progress


def _interrupts(service: Service) -> Answer:
    @described(answer={"type": "object"})
    async def interrupt(request: Request, given: Given) -> Response:
        """Ends what who asks waits for, after the step it is at."""
        for ticket in service.of_client(client_of(request.scope)):
            service.cancel(ticket)
        return JSONResponse({})

    return interrupt


def _skips(service: Service) -> Answer:
    """The image that is being drawn, where no other follows it."""

    @described(answer={"type": "null"})
    async def skip(request: Request, given: Given) -> Response:
        """Ends the image that is being drawn."""
        for ticket in service.of_client(client_of(request.scope)):
            if ticket.state == "drawing" and len(ticket.plan.jobs) - len(ticket.images) > 1:
                raise BadBody("an image with others after it is not skipped; POST /sdapi/v1/interrupt")
            if ticket.state == "drawing":
                service.cancel(ticket)
        return JSONResponse(None)

    return skip


def _refreshes(service: Service) -> Answer:
    @described(answer={"type": "null"})
    async def refresh(request: Request, given: Given) -> Response:
        """Looks for files anew."""
        await asyncio.to_thread(service.entries)
        return JSONResponse(None)

    return refresh


# --- errors

_STATUS = {**STATUSES, "usage": 422}  # as A1111 has it


def refused(error: Exception, given: Given) -> Response:
    """As A1111 answers errors, with the names of its own fields."""
    if isinstance(error, Full):
        return JSONResponse(_error("queue_full", str(error)), 429, {"Retry-After": str(error.retry_after)})
    if isinstance(error, BadBody):
        return JSONResponse(_error("usage", str(error)), 422)
    assert isinstance(error, SdcliError)
    followed = error.hint.startswith("--") or error.type == "does_not_fit"  # others are command lines
    text = _renamed(without_paths(error.message, given) + (f"; try: {error.hint}" if followed and error.hint else ""))
    field = sdapi_fields.FIELD_OF.get(str(error.details.get("field")), "")
    text = text if field in text else f"{field}: {text}"
    headers = {"x-should-retry": "false"} if error.type == "out_of_memory" else {}
    return JSONResponse(_error(error.type, text), _STATUS.get(error.type, 500), headers)


def _error(kind: str, detail: str) -> Mapping[str, Any]:
    return {"error": kind, "detail": detail, "body": "", "errors": detail}


def _renamed(text: str) -> str:
    """Flags as the fields that were sent."""
    for setting, field in sdapi_fields.FIELD_OF.items():
        text = re.sub(rf"{re.escape(flag_of(setting))}(?![\w-])", field, text)
    return text
