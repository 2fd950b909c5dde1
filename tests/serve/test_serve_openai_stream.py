"""Images as they come: previews, steps and errors in one stream, read by OpenAI's client."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from openai_clients import asynchronous, client, content, drawing, file, opened, until

from sdcli.serve import openai_answer

Serve = Callable[..., Any]


def test_previews_and_then_each_image(serve: Serve) -> None:
    server = serve()
    stream = client(server).images.generate(
        prompt="a cat", n=2, size="64x96", stream=True, partial_images=3, output_format="jpeg",
        extra_body={"steps": 20, "seed": 5},
    )  # fmt: skip
    events = list(stream)
    assert Counter(event.type for event in events) == {
        "image_generation.partial_image": 6, "image_generation.completed": 2,
    }  # fmt: skip
    for event in events:
        assert opened(event).size == (64, 96) and opened(event).format == "JPEG"
        assert (event.size, event.output_format, event.background) == ("64x96", "jpeg", "opaque")
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    assert [(event.index, event.partial_image_index) for event in partial] == [  # type: ignore[attr-defined]
        (image, number) for image in range(2) for number in range(3)
    ]
    done = [event for event in events if event.type == "image_generation.completed"]
    assert [event.seed for event in done] == [5, 6] and done[0].usage.total_tokens == 0  # type: ignore[attr-defined]
    alone = client(server).images.generate(
        prompt="a cat", n=2, size="64x96", output_format="jpeg", extra_body={"steps": 20, "seed": 5}
    )
    assert alone.data and [opened(image).tobytes() for image in alone.data] == [opened(one).tobytes() for one in done]


def test_an_edit_streams_under_its_own_name_and_steps_come_when_asked_for(serve: Serve) -> None:
    server = serve()

    async def read() -> list[Any]:
        async with asynchronous(server) as api:
            stream = await api.images.edit(
                prompt="a cat", image=file(), stream=True, partial_images=1,
                extra_body={"steps": 4, "step_events": True, "strength": 1},
            )  # fmt: skip
            return [event async for event in stream]

    events = asyncio.run(read())
    assert [event.type for event in events] == [
        "sdcli.step", "sdcli.step", "image_edit.partial_image", "sdcli.step", "sdcli.step", "image_edit.completed",
    ]  # fmt: skip
    assert opened(events[-1]).size == (64, 64)


def test_a_url_may_stand_in_a_stream(serve: Serve) -> None:
    (event,) = client(serve()).images.generate(
        prompt="a cat", size="64x64", stream=True, response_format="url", extra_body={"steps": 1}
    )
    assert httpx2.get(event.url).headers["content-type"] == "image/png"  # type: ignore[attr-defined]


def test_what_is_wrong_is_said_before_a_stream_begins_and_what_fails_in_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    with pytest.raises(openai.BadRequestError) as wrong:
        client(server).images.generate(prompt="a cat", stream=True, extra_body={"sead": 1})
    assert wrong.value.param == "sead"
    monkeypatch.setattr(server.service.desks[0].worker, "engine", "engine_that_does_not_exist")
    with pytest.raises(openai.APIError) as failed:
        list(client(server, retries=2).images.generate(prompt="a cat", stream=True, size="64x64"))
    assert failed.value.code == "bug" and "engine_that_does_not_exist" in failed.value.message
    assert len(server.service.tickets) == 1


def test_a_reader_that_leaves_ends_the_drawing(serve: Serve) -> None:
    server = serve()
    stream = client(server).images.generate(
        prompt="a cat", n=10, size="1024x1024", stream=True, extra_body={"steps": 100, "step_events": True}
    )
    for _ in stream:
        break
    stream.close()
    (ticket,) = server.service.tickets.values()
    until(lambda: ticket.over, 5)
    assert ticket.state == "cancelled" and len(ticket.images) < 10


def test_a_silent_stream_says_that_it_is_there(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_answer, "QUIET", 0.05)
    server = serve()
    raw: list[bytes] = []
    body = {"prompt": "a cat", "size": "64x64", "steps": 1, "stream": True}
    with drawing(server) as before:
        threading.Timer(0.5, lambda: server.service.cancel(before)).start()
        with httpx2.stream("POST", f"{server.url}/v1/images/generations", json=body, timeout=30) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            raw.extend(answer.iter_bytes())
    blocks = b"".join(raw).split(b"\n\n")
    assert openai_answer.STILL_THERE.strip() in blocks and b"image_generation.completed" in blocks[-2]
    # the client fails on a block that holds something else than a comment, and no data
    assert all(block.startswith(b":") or b"\ndata: " in block for block in blocks[:-1])


def test_the_client_reads_on_over_such_a_sign(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_answer, "QUIET", 0.05)
    server = serve()
    with drawing(server) as before:
        threading.Timer(0.5, lambda: server.service.cancel(before)).start()
        events = list(client(server).images.generate(prompt="a cat", stream=True, extra_body={"steps": 1}))
    assert [event.type for event in events] == ["image_generation.completed"] and content(events[0])
