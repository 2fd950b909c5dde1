"""A line for each request: when, what kind, how it ended, how long it took and who asked. Never what was asked: no
prompt, body, query, header or path, only the route that the path belongs to."""

from __future__ import annotations

import time

from sdcli.serve.guard import Asked
from sdcli.serve.ticket import Ticket
from sdcli.terminal import say, show


def line(asked: Asked) -> None:
    why = f" ({asked.reason})" if asked.reason else ""
    key = f"key {asked.key[:6]}" if asked.key else ""
    who = " ".join(filter(None, (show(asked.client, 60), key))) or "-"
    say(f"{_now()} {asked.method} {show(asked.template, 80)} {asked.status}{why} {asked.seconds * 1000:.0f} ms {who}")


def refused(status: int, client: str) -> None:
    """What never became a request."""
    say(f"{_now()} - - {status} - {show(client, 60) or '-'}")


def failed(error: Exception) -> None:
    say(f"error: {type(error).__name__}: {show(error, 300)}")


def prompts(ticket: Ticket) -> None:
    """Only where that was asked for."""
    for prompt in dict.fromkeys(job.prompt for job in ticket.plan.jobs):
        say(f"{_now()} {ticket.destination.run} {ticket.state}: {show(prompt, 300)}")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
