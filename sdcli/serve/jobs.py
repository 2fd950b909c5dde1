"""sdcli's own API: jobs that are asked for, watched, cancelled and fetched, one request each."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial, wraps
from hashlib import sha256
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sdcli import events
from sdcli.errors import SdcliError
from sdcli.serve import asked, job_json, job_schemas, waiting
from sdcli.serve.bodies import BadBody, parsed
from sdcli.serve.guard import client_of, key_of
from sdcli.serve.line import Full
from sdcli.serve.openai_errors import Conflict, refused
from sdcli.serve.openai_fields import BadField
from sdcli.serve.openapi import described
from sdcli.serve.repeats import Repeats
from sdcli.serve.results import url_of
from sdcli.serve.service import Service, belongs
from sdcli.serve.ticket import Ticket
from sdcli.serve.uploads import kept

LISTED, MOST_LISTED = 100, 1000  # jobs in an answer, unless a number is asked for
LOOK = 1.0  # seconds between two looks at the queue, for those who watch a job that waits
KEEP_ALIVE = 15.0  # seconds until an event stream says that it is still there
BETWEEN_PREVIEWS = 0.5  # seconds
_QUERY: dict[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": MOST_LISTED},
    "before": {"type": "string", "description": "The id of a job: those that are older."},
}
_NO_STORE = {"Cache-Control": "no-store"}

Given = dict[str, str]  # what a body calls a setting or an image that came along
Answering = Callable[[Request, Given], Awaitable[Response]]


def routes(service: Service) -> list[Route]:
    repeats = Repeats(service)
    asks = job_schemas.asked_for(service.settings.bounds)

    @described(body=asks, answer=job_schemas.SHORT, status=202)
    async def submit(request: Request, given: Given) -> Response:
        """Ask for images. The answer says where in the queue they are."""
        content = await request.body()
        body, client = parsed(content), client_of(request.scope)
        submitting = partial(asyncio.to_thread, submitted, service, body, given, client)
        ticket = await repeats.ticket(request, client, sha256(content).hexdigest(), False, submitting)
        location = {"Location": f"/v1/jobs/{ticket.id}"}
        return JSONResponse(job_json.short(service, ticket), 202, {**location, **_NO_STORE})

    @described(answer=job_schemas.JOBS, query=_QUERY)
    async def listed(request: Request, given: Given) -> Response:
        """The jobs that are known, the newest first; with a key those that were asked for with it."""
        return _json({"jobs": [job_json.whole(service, ticket) for ticket in _page(service, request)]})

    @described(answer=job_schemas.JOB)
    async def job(request: Request, given: Given) -> Response:
        """A job: how far it is, what it needs, what came of it."""
        return _json(job_json.whole(service, _ticket(service, request)))

    @described(answer=job_schemas.JOB)
    async def cancel(request: Request, given: Given) -> Response:
        """Cancel a job after the step it is at. One that is over stays as it is."""
        ticket = _ticket(service, request)
        await asyncio.to_thread(service.cancel, ticket)
        return _json(job_json.whole(service, ticket))

    @described(kinds=("text/event-stream",))
    async def watch(request: Request, given: Given) -> Response:
        """The events of a job as they happen, from the one after Last-Event-ID."""
        ticket, seen = _ticket(service, request), request.headers.get("last-event-id", "")
        after = int(seen) if seen.isascii() and seen.isdecimal() and len(seen) < 16 else 0
        return StreamingResponse(stream(service, ticket, after), media_type="text/event-stream", headers=waiting.STREAM)

    @described(body=asks, answer=job_schemas.PLAN)
    async def plan(request: Request, given: Given) -> Response:
        """What images would need, without drawing them."""
        return _json(await asyncio.to_thread(planned, service, parsed(await request.body()), given))

    @described(body=job_schemas.WITH_IMAGE, answer=job_schemas.FOUND)
    async def settings(request: Request, given: Given) -> Response:
        """The settings that an image was drawn with."""
        return _json(await asyncio.to_thread(settings_in, service, parsed(await request.body()), given))

    @described(answer=job_schemas.STATUS)
    async def status(request: Request, given: Given) -> Response:
        """Device, model, queue and versions."""
        return _json(await asyncio.to_thread(job_json.status, service, key_of(request.scope)))

    return [
        Route("/v1/jobs", _refusing(submit), methods=["POST"]),
        Route("/v1/jobs", _refusing(listed), methods=["GET"]),
        Route("/v1/jobs/{id}", _refusing(job), methods=["GET"]),
        Route("/v1/jobs/{id}/cancel", _refusing(cancel), methods=["POST"]),
        Route("/v1/jobs/{id}/events", _refusing(watch), methods=["GET"]),
        Route("/v1/plan", _refusing(plan), methods=["POST"]),
        Route("/v1/settings", _refusing(settings), methods=["POST"]),
        Route("/v1/status", _refusing(status), methods=["GET"]),
    ]


def _refusing(answering: Answering) -> Callable[[Request], Awaitable[Response]]:
    @wraps(answering)
    async def answer(request: Request) -> Response:
        given: Given = {}
        try:
            return await answering(request, given)
        except (BadBody, Full, Conflict, SdcliError) as error:
            return refused(error, given)

    return answer


def _json(content: Any) -> Response:
    return JSONResponse(content, headers=_NO_STORE)


# --- what is asked


def submitted(service: Service, body: dict[str, Any], given: Given, client: str) -> Ticket:
    values = {**asked.values(body, service.upload, given), "preview_every": "1"}
    return service.submit(service.plan(values), client)


def planned(service: Service, body: dict[str, Any], given: Given) -> dict[str, Any]:
    """What its images would need; nothing is drawn."""
    plan = service.plan(asked.values(body, service.upload, given))
    return {"settings": job_json.asked_for(plan), "images": len(plan.jobs), "plan": job_json.plan_json(plan)}


def settings_in(service: Service, body: dict[str, Any], given: Given) -> dict[str, Any]:
    """The settings that an image was drawn with, by whatever program."""
    from sdcli.record.metadata import read

    if set(body) != {"image"}:
        raise BadBody("the body has to hold an image, and nothing else", "image")
    path = kept(service.upload, asked.image_in("image", body["image"]), "image", given)
    found = read.read(path)
    return {"from": found.dialect, "settings": found.plain, "not_taken": sorted(found.unknown)}


def _ticket(service: Service, request: Request) -> Ticket:
    ticket = service.tickets.get(request.path_params["id"])
    if ticket is None or not belongs(ticket, key_of(request.scope)):
        raise BadField("there is no such job", None, "unknown_job", 404)
    return ticket


def _page(service: Service, request: Request) -> list[Ticket]:
    """The newest first; those before one of them, where the query names it."""
    query = request.query_params
    newest = service.seen_with(key_of(request.scope))[::-1]
    number = query.get("limit", str(LISTED))
    if not (number.isascii() and number.isdecimal() and 1 <= int(number[:6]) <= MOST_LISTED):
        raise BadBody(f"limit has to be a number from 1 to {MOST_LISTED}", "limit")
    if before := query.get("before"):
        places = [place for place, ticket in enumerate(newest) if ticket.id == before]
        newest = newest[places[0] + 1 :] if places else []
    return newest[: int(number)]


# --- what is happening


async def stream(service: Service, ticket: Ticket, after: int) -> AsyncIterator[str]:
    """The events of a job with their numbers. The job itself comes first, last, and whenever its place in the queue
    has changed: `job` has no number."""
    shown, spoke, previewed = _standing(service, ticket), time.monotonic(), -math.inf
    yield _block("job", job_json.whole(service, ticket))
    async for item in waiting.happening(ticket, after, LOOK):
        now = time.monotonic()
        said = []
        if (standing := _standing(service, ticket)) != shown:
            shown = standing
            said.append(_block("job", job_json.whole(service, ticket)))
        if item is not None:
            number, event = item
            if not isinstance(event, events.Preview):
                said.append(_block(_kind(event), _happened(ticket, event), number))
            elif now - previewed >= BETWEEN_PREVIEWS:
                previewed = now
                said.append(_block("preview", await asyncio.to_thread(job_json.preview, event), number))
        if not said and now - spoke >= KEEP_ALIVE:
            said.append(": still here\n\n")
        for text in said:
            spoke = now
            yield text
    yield _block("job", job_json.whole(service, ticket))


def _standing(service: Service, ticket: Ticket) -> tuple[str, int | None]:
    return ticket.state, job_json.position(service, ticket)


def _kind(event: events.Event) -> str:
    return type(event).__name__.lower()


def _happened(ticket: Ticket, event: events.Event) -> dict[str, Any]:
    data = events.to_json(event)
    if isinstance(event, events.Saved):
        del data["path"]
        drawn = next((one for one in ticket.images if one.index == event.index), None)
        data["url"] = None if drawn is None else url_of(ticket, drawn)
    return data


def _block(kind: str, data: dict[str, Any], number: int | None = None) -> str:
    name = "" if number is None else f"id: {number}\n"
    return f"{name}event: {kind}\ndata: {json.dumps(data)}\n\n"
