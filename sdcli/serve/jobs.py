"""sdcli's own API: jobs that are asked for, watched, cancelled and fetched, one request each."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sdcli import events
from sdcli.errors import SdcliError
from sdcli.serve import asked, job_json, waiting
from sdcli.serve.bodies import BadBody, parsed
from sdcli.serve.line import Full
from sdcli.serve.results import url_of
from sdcli.serve.service import Service
from sdcli.serve.ticket import Ticket

LISTED, MOST_LISTED = 100, 1000  # jobs in an answer, unless a number is asked for
LOOK = 1.0  # seconds between two looks at the queue, for those who watch a job that waits
KEEP_ALIVE = 15.0  # seconds until an event stream says that it is still there
BETWEEN_PREVIEWS = 0.5  # seconds
UNKNOWN_WAIT = 5  # seconds until a client may try again, where nothing is known
STATUS = {
    "usage": 400, "does_not_fit": 400, "bad_file": 400, "unsafe": 400, "model_missing": 404, "offline": 404,
    "gated": 404, "interrupted": 409, "device": 503, "terminated": 503,
}  # fmt: skip
_NO_STORE = {"Cache-Control": "no-store"}

Answering = Callable[[Request], Awaitable[Response]]


def routes(service: Service) -> list[Route]:
    async def submit(request: Request) -> Response:
        body = parsed(await request.body())
        ticket = await asyncio.to_thread(submitted, service, body, _client(request))
        content = job_json.short(service, ticket)
        return JSONResponse(content, 202, {"Location": f"/v1/jobs/{ticket.id}", **_NO_STORE})

    async def listed(request: Request) -> Response:
        return _json({"jobs": [job_json.whole(service, ticket) for ticket in _page(service, request)]})

    async def job(request: Request, ticket: Ticket) -> Response:
        return _json(job_json.whole(service, ticket))

    async def cancel(request: Request, ticket: Ticket) -> Response:
        await asyncio.to_thread(service.cancel, ticket)
        return _json(job_json.whole(service, ticket))

    async def watch(request: Request, ticket: Ticket) -> Response:
        seen = request.headers.get("last-event-id", "")
        after = int(seen) if seen.isascii() and seen.isdecimal() and len(seen) < 16 else 0
        headers = {**_NO_STORE, "X-Accel-Buffering": "no"}
        return StreamingResponse(stream(service, ticket, after), media_type="text/event-stream", headers=headers)

    async def plan(request: Request) -> Response:
        body = parsed(await request.body())
        return _json(await asyncio.to_thread(planned, service, body))

    async def settings(request: Request) -> Response:
        body = parsed(await request.body())
        if set(body) != {"image"}:
            raise BadBody("the body has to hold an image, and nothing else", "image")
        return _json(await asyncio.to_thread(settings_in, service, body["image"]))

    async def status(request: Request) -> Response:
        return _json(await asyncio.to_thread(job_json.status, service))

    def of_job(answering: Callable[[Request, Ticket], Awaitable[Response]]) -> Answering:
        async def answer(request: Request) -> Response:
            ticket = service.tickets.get(request.path_params["id"])
            return (
                _error("unknown_job", "there is no such job", 404)
                if ticket is None
                else (await answering(request, ticket))
            )

        return answer

    return [
        Route("/v1/jobs", refusing(service, submit), methods=["POST"]),
        Route("/v1/jobs", refusing(service, listed), methods=["GET"]),
        Route("/v1/jobs/{id}", of_job(job), methods=["GET"]),
        Route("/v1/jobs/{id}/cancel", of_job(cancel), methods=["POST"]),
        Route("/v1/jobs/{id}/events", of_job(watch), methods=["GET"]),
        Route("/v1/plan", refusing(service, plan), methods=["POST"]),
        Route("/v1/settings", refusing(service, settings), methods=["POST"]),
        Route("/v1/status", status, methods=["GET"]),
    ]


# --- what is asked


def submitted(service: Service, body: dict[str, Any], client: str) -> Ticket:
    values = {**asked.values(body, service.upload), "preview_every": "1"}
    return service.submit(service.plan(values), client)


def planned(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """What its images would need; nothing is drawn."""
    plan = service.plan(asked.values(body, service.upload))
    return {"settings": job_json.asked_for(plan), "images": len(plan.jobs), "plan": job_json.plan_json(plan)}


def settings_in(service: Service, image: Any) -> dict[str, Any]:
    """The settings that an image was drawn with, by whatever program."""
    from sdcli.record.metadata import read

    found = read.read(service.upload(asked.image_in("image", image)))
    return {"from": found.dialect, "settings": found.plain, "not_taken": sorted(found.unknown)}


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


def _page(service: Service, request: Request) -> list[Ticket]:
    """The newest first; those before one of them, where the query names it."""
    query = request.query_params
    newest = list(reversed(service.tickets.values()))
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


# --- what is answered


def _json(content: Any) -> Response:
    return JSONResponse(content, headers=_NO_STORE)


def refusing(service: Service, answering: Answering) -> Answering:
    async def answer(request: Request) -> Response:
        try:
            return await answering(request)
        except BadBody as error:
            return _error("bad_body", str(error), 400, field=error.field)
        except Full as error:
            return _error("queue_full", str(error), 429, headers={"Retry-After": str(_wait(service))})
        except SdcliError as error:
            status = STATUS.get(error.type, 500)
            message = service.told(error.message)
            return _error(error.type, message, status, hint=error.hint, field=error.details.get("field"))

    return answer


def _error(
    kind: str, message: str, status: int, *, hint: str = "", field: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:  # fmt: skip
    error = {"type": kind, "message": message, "hint": hint, "field": field}
    return JSONResponse({"error": error}, status, {**_NO_STORE, **(headers or {})})


def _wait(service: Service) -> int:
    """Seconds until there may be a place in the queue."""
    left = job_json.seconds_until_free(service)
    return UNKNOWN_WAIT if left is None else min(max(math.ceil(left), 1), 120)
