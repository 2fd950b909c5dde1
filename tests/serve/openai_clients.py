"""OpenAI's own clients, unmodified, for a server of the tests; and what is in an answer."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
from PIL import Image

from sdcli.serve.ticket import Ticket


def client(server: Any, retries: int = 0, **more: Any) -> openai.OpenAI:
    made = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=retries, **more)
    server.clients.append(made)
    return made


def asynchronous(server: Any, retries: int = 0, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=retries, **more)


def content(image: Any) -> bytes:
    return base64.b64decode(image.b64_json)


def opened(image: Any) -> Image.Image:
    return Image.open(io.BytesIO(content(image)))


def file(size: tuple[int, int] = (64, 64), format: str = "PNG", **options: Any) -> bytes:
    """An image file of one colour after another."""
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def mask(size: tuple[int, int] = (64, 64), clear: tuple[int, int, int, int] = (0, 0, 32, 64)) -> bytes:
    """As OpenAI's users make one: opaque, and transparent where to repaint."""
    picture = Image.new("RGBA", size, (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), clear)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def until(true: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@contextmanager
def drawing(server: Any) -> Iterator[Ticket]:
    """While a long request of another client holds the queue up."""
    plan = server.service.plan(
        {"prompts": ("a dog",), "size": "1024x1024", "steps": "100", "num_images": "32"}
    )  # longer than any test
    ticket: Ticket = server.service.submit(plan, "another")
    until(lambda: ticket.state == "drawing")
    yield ticket
    server.service.cancel(ticket)
    until(lambda: ticket.over)
