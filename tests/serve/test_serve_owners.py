"""With keys, what was asked for with one is nobody else's."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sdcli.serve.rules import digest

OWN, OTHER = "the-key-of-who-asked", "the-key-of-somebody-else"
IMAGES = {"prompt": "a cat", "size": "64x64", "steps": 1, "num_images": 2}
LONG = {"prompt": "a cat", "size": "64x64", "steps": 999, "num_images": 30}


@pytest.fixture
def keyed(serve: Callable[..., Any]) -> Any:
    server = serve()
    server.guard.rules = replace(server.rules, keys=(digest(OWN), digest(OTHER)))
    return server


def ask(server: Any, key: str | None, path: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(server.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            content = answer.read()
            return answer.status, json.loads(content) if "json" in answer.headers.get("Content-Type", "") else content
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_another_key_neither_finds_nor_ends_a_job(keyed: Any) -> None:
    job = ask(keyed, OWN, "/v1/jobs", LONG)[1]["id"]
    until(lambda: keyed.service.tickets[job].step[0] > 0)
    own = f"/v1/jobs/{job}"
    for path, body in ((own, None), (f"{own}/events", None), (f"{own}/cancel", {})):
        assert ask(keyed, OTHER, path, body, "GET" if body is None else "POST")[0] == 404
    assert ask(keyed, OTHER, "/v1/jobs") == (200, {"jobs": []})
    assert ask(keyed, OTHER, "/v1/status")[1]["queue"]["drawing"] == []
    assert ask(keyed, OTHER, "/sdapi/v1/progress")[1]["state"]["job_count"] == 0
    for path in ("interrupt", "skip"):
        assert ask(keyed, OTHER, f"/sdapi/v1/{path}", method="POST")[0] == 200
    assert ask(keyed, OWN, own)[1]["status"] == "drawing"
    assert ask(keyed, OWN, "/v1/status")[1]["queue"]["drawing"] == [job]
    assert ask(keyed, OWN, "/sdapi/v1/progress")[1]["state"]["job_count"] == 30
    assert [one["id"] for one in ask(keyed, OWN, "/v1/jobs")[1]["jobs"]] == [job]
    assert ask(keyed, OWN, "/sdapi/v1/interrupt", method="POST")[0] == 200
    until(lambda: keyed.service.tickets[job].state == "cancelled")


def test_an_image_is_read_by_its_address_and_forgotten_by_its_own_key_alone(keyed: Any) -> None:
    job = ask(keyed, OWN, "/v1/jobs", IMAGES)[1]["id"]
    until(lambda: keyed.service.tickets[job].over)
    url = ask(keyed, OWN, f"/v1/jobs/{job}")[1]["images"][0]["url"]
    assert ask(keyed, OTHER, url, method="DELETE")[0] == 404
    status, content = ask(keyed, None, url)
    assert status == 200 and content.startswith(b"\x89PNG")
    assert ask(keyed, OWN, url, method="DELETE")[0] == 204 and ask(keyed, None, url)[0] == 404


def test_without_keys_a_job_is_everybodys(serve: Callable[..., Any]) -> None:
    server = serve()
    job = ask(server, None, "/v1/jobs", LONG)[1]["id"]
    until(lambda: server.service.tickets[job].state == "drawing")  # who waits is found by its client
    server.service.tickets[job].client = "192.0.2.1"  # as if another machine had asked
    assert [one["id"] for one in ask(server, None, "/v1/jobs")[1]["jobs"]] == [job]
    assert ask(server, None, f"/v1/jobs/{job}/cancel", {})[1]["id"] == job
    until(lambda: server.service.tickets[job].state == "cancelled")
