"""Failures as OpenAI's client raises them, and how often it asks for the same again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from openai_clients import client, drawing, until

from sdcli.errors import DeviceUnusable, DoesNotFit, OutOfMemory, SdcliError
from sdcli.serve.line import Full, Room
from sdcli.serve.openai_errors import refused

Serve = Callable[..., Any]


@pytest.mark.parametrize(
    ("body", "param", "code", "says"),
    [
        ({"sead": 5}, "sead", "unknown_parameter", "near: seed"),
        ({"n": "two"}, "n", "invalid_type", "whole number"),
        ({"steps": 0}, "steps", "invalid_value", "between 1 and 10000"),
        ({"sampler": "Eulre"}, "sampler", "usage", "Eulre"),
        ({"sampler_name": "Eulre"}, "sampler_name", "usage", "Eulre"),
        ({"size": "65x64"}, "size", "usage", "multiple of"),
        ({"width": 65}, "width", "usage", "multiple of"),
        ({"seed": 2**32 - 1, "n": 2}, "seed", "usage", "seed 4294967295"),
        ({"preset": "nothing"}, "preset", "usage", "nothing"),
        ({"hires": 2, "hires_strength": 0}, "hires_strength", "usage", "nothing to draw"),
        ({"prompt": "a \0 cat"}, None, "usage", "NUL"),
        ({"control": {"model": "../canny", "image": "AAAA"}}, "control", "bad_file", "PNG, JPEG or WebP"),
        ({"control": {"model": "canny", "image": "http://x/y.png"}}, "control", "url_images_disabled", "URL"),
        ({"control": {"model": "canny", "image": "!"}}, "control", "invalid_value", "base64"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_named(
    serving: Any, body: dict[str, Any], param: str | None, code: str, says: str
) -> None:
    asked = {"prompt": "a cat", **body}
    with pytest.raises(openai.BadRequestError) as error:
        client(serving, retries=2).images.generate(prompt=asked.pop("prompt"), extra_body=asked)
    assert (error.value.param, error.value.code, error.value.type) == (param, code, "invalid_request_error")
    assert says in error.value.message and "--" not in str(error.value.body)
    assert error.value.response.headers["x-should-retry"] == "false"
    assert not serving.service.tickets


@pytest.mark.parametrize("model", ["buildin", "/etc/passwd"])
@pytest.mark.parametrize("lora", ["ink", "../ink", "/etc/passwd"])
def test_what_is_not_on_the_server_is_not_found(serving: Any, model: str, lora: str) -> None:
    api = client(serving)
    with pytest.raises(openai.NotFoundError) as missing:
        api.images.generate(prompt="a cat", model=model)
    assert (missing.value.param, missing.value.code) == ("model", "model_missing")
    with pytest.raises(openai.NotFoundError) as missing:
        api.images.generate(prompt="a cat", extra_body={"lora": lora})
    assert (missing.value.param, missing.value.code) == ("lora", "model_missing")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "bad_body"), (b"[]", "bad_body"), (b'{"prompt":"a","prompt":"b"}', "bad_body"), (b"\xff", "bad_body"),
        (b'{"prompt":"a cat","guidance":NaN}', "bad_body"), (b'{"prompt":"\\ud800"}', "bad_body"),
        (b"[" * 10_000, "bad_body"), (b"", "bad_body"), (b"{}", "missing_required_parameter"),
    ],
)  # fmt: skip
def test_a_broken_body_is_a_bad_request(serving: Any, body: bytes, code: str) -> None:
    kind = {"Content-Type": "application/json"}
    answer = httpx2.post(f"{serving.url}/v1/images/generations", content=body, headers=kind)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize(
    ("error", "status", "again"),
    [
        (OutOfMemory("no memory is left"), 500, "false"), (DoesNotFit("too late", late=True), 504, "false"),
        (DeviceUnusable("the GPU is lost"), 503, "false"),
        (Full("the queue is full"), 429, "true"),
    ],
)  # fmt: skip
def test_only_what_may_pass_is_tried_again(error: Exception, status: int, again: str) -> None:
    answer = refused(error)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (status, again)


@pytest.mark.parametrize(("seconds", "told"), [(None, "5"), (0.2, "1"), (17.1, "18"), (4000.0, "120")])
def test_a_full_queue_says_when_to_come_again(seconds: float | None, told: str) -> None:
    assert refused(Full("full", seconds)).headers["Retry-After"] == told


def test_a_failed_drawing_is_not_drawn_again_by_the_clients_retries(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.setattr(server.service.desks[0].worker, "engine", "engine_that_does_not_exist")
    with pytest.raises(openai.InternalServerError) as failed:
        client(server, retries=2).images.generate(prompt="a cat", size="64x64", extra_body={"steps": 1})
    assert failed.value.code == "bug" and len(server.service.tickets) == 1


def test_a_full_queue_is_waited_for_by_the_client(serve: Serve) -> None:
    server = serve(room=Room(requests=2, images=64, share=0.5))  # one of each client
    with drawing(server):
        waits = threading.Thread(
            target=lambda: client(server).images.generate(prompt="a cat", size="64x64", extra_body={"steps": 1})
        )
        waits.start()
        until(lambda: server.service.line.waiting())
        with pytest.raises(openai.RateLimitError) as full:
            client(server).images.generate(prompt="a cat", size="64x64", extra_body={"steps": 1})
        assert full.value.code == "queue_full" and 1 <= int(full.value.response.headers["retry-after"]) <= 120
        later = threading.Timer(0.5, lambda: [server.service.cancel(t) for t in server.service.of_client("another")])
        later.start()
        answer = client(server, retries=3).images.generate(prompt="a bird", size="64x64", extra_body={"steps": 1})
        assert answer.data
        waits.join(30)
        later.join()


def test_a_client_that_leaves_is_not_drawn_for(serve: Serve) -> None:
    server = serve()
    leaving = client(server, timeout=2.0)
    with pytest.raises(openai.APITimeoutError):
        leaving.images.generate(prompt="being drawn", n=10, size="1536x1536", extra_body={"steps": 100})
    with drawing(server), pytest.raises(openai.APITimeoutError):
        leaving.images.generate(prompt="in the queue", n=10, size="1536x1536", extra_body={"steps": 100})
    first, _, last = server.service.tickets.values()
    until(lambda: first.over and last.over, 5)
    assert first.state == "cancelled" and len(first.images) < 10 and not last.images


def test_the_clients_own_retry_gets_the_drawing_that_runs(serve: Serve) -> None:
    server = serve()
    with drawing(server) as before:
        threading.Timer(3, lambda: server.service.cancel(before)).start()
        api = client(server, retries=2, timeout=2.0)
        answer = api.images.generate(prompt="a cat", size="64x64", extra_body={"steps": 1, "seed": 7})
        assert answer.data and answer.data[0].seed == 7  # type: ignore[attr-defined]
    mine = [ticket for ticket in server.service.tickets.values() if ticket.client != "another"]
    assert [ticket.state for ticket in mine] == ["done"]
    # what is asked for anew, without being asked again, is drawn anew
    api.images.generate(prompt="a cat", size="64x64", extra_body={"steps": 1, "seed": 7})
    assert len(server.service.tickets) == 3


def test_an_idempotency_key_draws_once_also_at_the_same_time(serve: Serve) -> None:
    server = serve()
    api = client(server)
    seeds: list[int] = []

    def ask() -> None:
        answer = api.images.generate(
            prompt="a cat", size="64x64", extra_body={"steps": 1}, extra_headers={"Idempotency-Key": "one"}
        )
        assert answer.data
        seeds.append(answer.data[0].seed)  # type: ignore[attr-defined]

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    ask()
    assert len(seeds) == 5 and len(set(seeds)) == 1 and len(server.service.tickets) == 1
    with pytest.raises(openai.UnprocessableEntityError) as other:
        api.images.generate(prompt="a dog", extra_headers={"Idempotency-Key": "one"})
    assert other.value.code == "idempotency_key_reused"
    with pytest.raises(openai.BadRequestError, match="Idempotency-Key"):
        api.images.generate(prompt="a dog", extra_headers={"Idempotency-Key": "x" * 65})


def test_a_drawing_that_somebody_else_ends_is_a_conflict(serve: Serve) -> None:
    server = serve()
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            client(server, retries=2).images.generate(prompt="a cat", size="64x64", n=10, extra_body={"steps": 100})
        except openai.APIStatusError as error:
            ended.append(error)

    with drawing(server):
        asking = threading.Thread(target=ask)
        asking.start()
        (ticket,) = until(lambda: server.service.line.waiting())
        server.service.cancel(ticket)
        asking.join(30)
    assert isinstance(ended[0], openai.ConflictError) and len(server.service.tickets) == 2


def test_a_server_that_shuts_down_asks_to_come_again(serve: Serve) -> None:
    server = serve()
    server.service.closing = True
    with pytest.raises(openai.InternalServerError) as closing:
        client(server).images.generate(prompt="a cat")
    assert (closing.value.status_code, closing.value.code) == (503, "shutting_down")
    assert closing.value.response.headers["x-should-retry"] == "true"


def test_no_error_is_without_a_status() -> None:
    from sdcli.errors import REGISTRY

    for kind in REGISTRY.values():
        error: SdcliError = kind("it failed")
        assert 400 <= refused(error).status_code < 600
