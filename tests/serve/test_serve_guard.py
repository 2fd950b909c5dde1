"""The rules that a request meets before any API does, in their order, without a connection."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi import HOST, Answered, ask, asked
from starlette.routing import Route

from sdcli.serve.app import app
from sdcli.serve.guard import Guard
from sdcli.serve.rules import FORM, IMAGES, JSON, TEXT, Rules, body_of, digest, hosts_of
from sdcli.serve.service import Service, Settings

KEY = "correct-horse-battery"
RULES = Rules(hosts=hosts_of("127.0.0.1", 7860), port=7860)
WITH_KEY = Rules(hosts=RULES.hosts, port=7860, keys=(digest(KEY), digest("another-key-of-ours")))
GENERATIONS, OPTIONS = "/v1/images/generations", "/sdapi/v1/options"


class Reached:
    """Stands where the APIs are: says what came through."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.states: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.bodies.append(message["body"])
        self.states.append(scope["state"]["client"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"reached"})


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Route]]:
    service = Service(Settings(typed={"output": str(tmp_path_factory.mktemp("images"))}, engine="fake"))
    yield [route for route in app(service, RULES, quiet=True).routes if isinstance(route, Route)]
    service.stop(grace=0)


@pytest.fixture
def reached() -> Reached:
    return Reached()


@pytest.fixture
def guard(reached: Reached, routes: list[Route]) -> Guard:
    return Guard(reached, routes, RULES)


@pytest.fixture
def keyed(reached: Reached, routes: list[Route]) -> Guard:
    return Guard(reached, routes, WITH_KEY)


# --- the matrix

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
HOSTS: dict[str, tuple[list[bytes], bool]] = {
    "ok": ([HOST], True), "absent": ([], False), "twice": ([HOST, HOST], False), "evil": ([b"evil.test:7860"], False),
    "another port": ([b"127.0.0.1:80"], False), "decimal": ([b"2130706433:7860"], False),
    "trailing dot": ([b"localhost.:7860"], False), "upper case": ([b"LOCALHOST:7860"], True),
    "userinfo": ([b"a@127.0.0.1:7860"], False),
}  # fmt: skip
ORIGINS: dict[str, bytes | None] = {
    "absent": None, "own": b"http://%s", "evil": b"http://evil.test", "null": b"null", "empty": b"",
}  # fmt: skip
SITES: dict[bytes | None, bool] = {
    None: True, b"same-origin": True, b"same-site": False, b"cross-site": False, b"none": True,
}  # fmt: skip
TYPES = (b"application/json", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data", None)
COMBINATIONS = list(itertools.product(METHODS, HOSTS, ORIGINS, SITES, TYPES))


def methods_of(routes: list[Route], path: str) -> set[str]:
    return {method for route in routes if route.path == path for method in route.methods or ()}


def expected(
    path: str, methods: set[str], method: str, host: str, origin: str, site: bytes | None, kind: bytes | None
) -> int:
    """What the rules say, in their order."""
    if not HOSTS[host][1]:
        return 421
    if origin not in ("absent", "own") or not SITES[site]:
        return 403
    if method not in methods:
        return 405
    return 200 if (kind or b"").decode() in body_of(path).kinds else 415


def put(guard: Guard, path: str, method: str, host: str, origin: str, site: bytes | None, kind: bytes | None) -> Any:
    hosts = HOSTS[host][0]
    headers = [(b"host", name) for name in hosts] + [(b"content-length", b"2")]
    if (page := ORIGINS[origin]) is not None:
        headers.append((b"origin", page % hosts[0] if b"%s" in page and hosts else page.replace(b"%s", HOST)))
    headers += [(b"sec-fetch-site", site)] if site is not None else []
    headers += [(b"content-type", kind)] if kind is not None else []
    return ask(guard, method, path, headers, b"{}")


async def wrong_in(guard: Guard, path: str, methods: set[str], combinations: list[Any]) -> list[Any]:
    put_to = re.sub(r"\{\w+(:\w+)?\}", "a", path)
    seen = [(each, (await put(guard, put_to, *each)).status) for each in combinations]
    return [(each, status) for each, status in seen if status != expected(path, methods, *each)]


@pytest.mark.parametrize("path", [GENERATIONS, "/healthz"])
def test_every_combination_of_method_host_origin_site_and_type_is_answered_by_the_first_rule_it_breaks(
    path: str, guard: Guard, routes: list[Route], reached: Reached
) -> None:
    methods = methods_of(routes, path)
    assert len(COMBINATIONS) == 8 * 9 * 5 * 5 * 5
    assert asyncio.run(wrong_in(guard, path, methods, COMBINATIONS)) == []
    assert len(reached.bodies) == sum(expected(path, methods, *each) == 200 for each in COMBINATIONS) > 0


def test_no_route_has_rules_of_its_own(guard: Guard, routes: list[Route]) -> None:
    some = random.Random(7).sample(COMBINATIONS, 300)
    paths = {route.path for route in routes}
    assert {"/", "/v1/jobs/{id}", "/v1/images/edits", "/sdapi/v1/txt2img", "/metrics"} <= paths
    for path in paths:
        assert asyncio.run(wrong_in(guard, path, methods_of(routes, path), some)) == []


# --- names and pages


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("sd.example", True), ("sd.example:7860", True), ("sd.example:443", False), ("other.example:8443", True),
        ("other.example", False), ("[::1]:7860", True), ("::1:7860", False), ("localhost", False), ("", False),
        ("127.0.0.1:7860, evil.test", False), ("127.0.0.1:07860", False), ("127.1:7860", False),
    ],
)  # fmt: skip
def test_a_server_answers_to_its_names_and_to_those_it_was_given(host: str, known: bool) -> None:
    rules = Rules(hosts=hosts_of("127.0.0.1", 7860, ["sd.example", "Other.example:8443"]), port=7860)
    assert rules.answers_to(host) is known


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("192.168.1.5:7860", True), ("192.168.1.5:80", False), ("192.168.1.5", False), ("[fe80::1]:7860", True),
        ("fe80::1:7860", False), ("3232235781:7860", False), ("192.168.001.005:7860", False), ("evil.test:7860", False),
        ("192.168.1.5.:7860", False), ("192.168.1.5:7860 ", False), ("192.168.1.5:٧٨٦٠", False), ("[::1:7860", False),
    ],
)  # fmt: skip
def test_at_all_addresses_it_answers_to_addresses_and_to_no_name_it_was_not_given(host: str, known: bool) -> None:
    rules = Rules(hosts=hosts_of("0.0.0.0", 7860), port=7860, any_address=True)
    assert rules.answers_to(host) is known


def test_port_80_need_not_be_said() -> None:
    rules = Rules(hosts=hosts_of("127.0.0.1", 80), port=80, any_address=True)
    assert rules.answers_to("localhost") and rules.answers_to("10.0.0.1") and not rules.answers_to("localhost:7860")


def test_a_page_may_ask_once_its_origin_is_named(reached: Reached, routes: list[Route]) -> None:
    rules = Rules(hosts=RULES.hosts, port=7860, origins=frozenset({"https://app.example"}), keys=WITH_KEY.keys)
    guard = Guard(reached, routes, rules)
    page = [(b"host", HOST), (b"origin", b"https://app.example"), (b"sec-fetch-site", b"cross-site")]
    wants = [(b"access-control-request-method", b"POST"), (b"access-control-request-headers", b"authorization, x-a")]
    before = asked(guard, "OPTIONS", GENERATIONS, [*page, *wants])
    assert before.status == 204 and not reached.bodies
    assert before.header("access-control-allow-origin") == "https://app.example"
    assert before.header("access-control-allow-headers") == "authorization, x-a"
    keyed = [*page, (b"authorization", f"Bearer {KEY}".encode()), (b"content-type", b"application/json")]
    after = asked(guard, "POST", GENERATIONS, [*keyed, (b"content-length", b"2")], b"{}")
    assert after.status == 200 and after.header("access-control-allow-origin") == "https://app.example"
    assert asked(guard, "POST", GENERATIONS, [*page, (b"content-length", b"0")]).status == 401
    others = [(b"host", HOST), (b"origin", b"https://app.example.evil.test"), *wants]
    refused = asked(guard, "OPTIONS", GENERATIONS, others)
    assert refused.status == 403 and refused.header("access-control-allow-origin") is None
    split = [*page, wants[0], (b"access-control-request-headers", b"a\r\nx: y")]
    assert asked(guard, "OPTIONS", GENERATIONS, split).header("access-control-allow-headers") == (
        "authorization, content-type"
    )


# --- keys


def basic(password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"anyone:{password}".encode())


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        (GENERATIONS, f"Bearer {KEY}".encode(), 200), (GENERATIONS, f"bearer {KEY}".encode(), 200),
        (GENERATIONS, b"Bearer another-key-of-ours", 200), (GENERATIONS, None, 401), (GENERATIONS, b"", 401),
        (GENERATIONS, b"Bearer", 401), (GENERATIONS, b"Bearer ", 401), (GENERATIONS, f"Bearer {KEY}x".encode(), 401),
        (GENERATIONS, f"Bearer {KEY[:-1]}".encode(), 401), (GENERATIONS, KEY.encode(), 401),
        (GENERATIONS, f"Bearer {KEY} {KEY}".encode(), 401), (GENERATIONS, basic(KEY), 401),
        (GENERATIONS, b"Bearer \xff\xfe\x00", 401), (GENERATIONS, digest(KEY), 401),
        (GENERATIONS, b"Bearer " + digest(KEY).hex().encode(), 401), ("/metrics", None, 401),
        ("/openapi.json", None, 401), ("/nothing", None, 401), ("/healthz", None, 200), ("/readyz", None, 200),
        ("/sdapi/v1/nothing", basic(KEY), 404), ("/sdapi/v1/nothing", basic("wrong-wrong-wrong-wrong"), 401),
        ("/sdapi/v1/nothing", b"Basic ####", 401), ("/sdapi/v1/nothing", b"Basic /zr/", 401),
        ("/sdapi/v1/nothing", b"Basic " + base64.b64encode(KEY.encode()), 401),
        ("/sdapi/v1/nothing", f"Bearer {KEY}".encode(), 404), ("/sdapi/v1/nothing", b"", 401),
    ],
)  # fmt: skip
def test_a_key_is_asked_for_where_there_is_one(keyed: Guard, path: str, given: bytes | None, status: int) -> None:
    method = "POST" if path == GENERATIONS else "GET"
    headers = [(b"host", HOST)] + ([(b"authorization", given)] if given is not None else [])
    answered = asked(keyed, method, path, headers)
    assert answered.status == status
    challenge = answered.header("www-authenticate")
    assert challenge == (
        {False: "Bearer", True: 'Basic realm="sdcli"'}[path.startswith("/sdapi")] if status == 401 else None
    )
    assert KEY.encode() not in answered.body


def test_two_keys_in_one_request_are_none(keyed: Guard) -> None:
    twice = [(b"host", HOST), *[(b"authorization", f"Bearer {KEY}".encode())] * 2]
    assert asked(keyed, "POST", GENERATIONS, twice).status == 400


def test_places_in_the_queue_belong_to_a_key_and_without_keys_to_an_address(
    keyed: Guard, guard: Guard, reached: Reached
) -> None:
    for key in (KEY, "another-key-of-ours"):
        asked(keyed, "POST", GENERATIONS, [(b"host", HOST), (b"authorization", f"Bearer {key}".encode())])
    asked(guard, "POST", GENERATIONS)
    first, second, third = reached.states
    assert first != second and third == "127.0.0.1" and KEY not in first


# --- bodies


def post(guard: Guard, path: str, body: bytes, kind: str = JSON, **more: Any) -> Answered:
    headers = [(b"host", HOST), (b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    return asked(guard, "POST", path, headers, body, **more)


@pytest.mark.parametrize("size", [0, 2, TEXT - 1, TEXT, TEXT + 1, 4 * TEXT])
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_is_counted_whether_its_length_was_said_or_not(
    guard: Guard, reached: Reached, size: int, declared: bool
) -> None:
    body = b"a" * size
    length = (b"content-length", str(size).encode()) if declared else (b"transfer-encoding", b"chunked")
    parts = [body[at : at + 4096] for at in range(0, size, 4096)] or [b""]
    headers = [(b"host", HOST), (b"content-type", b"application/json"), length]
    answered = asked(guard, "POST", OPTIONS, headers, parts=parts)
    assert answered.status == (413 if size > TEXT else 200)
    assert reached.bodies == ([] if size > TEXT else [body])


def test_a_body_that_is_longer_than_it_said_is_not_read_on(guard: Guard, reached: Reached) -> None:
    headers = [(b"host", HOST), (b"content-type", b"application/json"), (b"content-length", b"10")]
    assert asked(guard, "POST", OPTIONS, headers, parts=[b"a" * 1024] * 100).status == 413
    assert reached.bodies == []


def test_a_request_that_takes_no_body_may_not_have_one(guard: Guard) -> None:
    assert asked(guard, "GET", "/v1/models", [(b"host", HOST)], b"x").status == 413
    assert asked(guard, "POST", GENERATIONS, [(b"host", HOST), (b"content-length", b"0")]).status == 200


def test_images_have_more_room_than_words() -> None:
    assert body_of("/v1/images/edits").kinds == (FORM,)
    assert {body_of(path).largest for path in ("/v1/images/edits", "/sdapi/v1/img2img", "/v1/jobs")} == {IMAGES}
    assert body_of(OPTIONS).largest == body_of("/v1/models").largest == TEXT


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", " application/json "])
def test_a_type_may_be_written_as_http_allows(guard: Guard, kind: str) -> None:
    assert post(guard, GENERATIONS, b"{}", kind).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_refused(guard: Guard, reached: Reached, encoding: str) -> None:
    headers = [(b"host", HOST), (b"content-type", b"application/json"), (b"content-encoding", encoding.encode())]
    assert asked(guard, "POST", GENERATIONS, [*headers, (b"content-length", b"2")], b"{}").status == 415
    assert reached.bodies == []


def test_a_body_that_does_not_come_is_waited_for_only_so_long(reached: Reached, routes: list[Route]) -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    guard = Guard(reached, routes, Rules(hosts=RULES.hosts, port=7860, seconds=0.01))
    headers = [(b"host", HOST), (b"content-type", b"application/json"), (b"content-length", b"2")]
    answered = asked(guard, "POST", GENERATIONS, headers, receive=never)
    assert (answered.status, answered.json["error"]["code"]) == (408, "timeout")
    assert reached.bodies == []


def test_bodies_that_come_at_once_share_their_room(reached: Reached, routes: list[Route]) -> None:
    """And give it back, however they end."""
    rules = Rules(hosts=RULES.hosts, port=7860, most_held=TEXT, seconds=5)
    guard = Guard(reached, routes, rules)
    headers = [(b"host", HOST), (b"content-type", b"application/json"), (b"content-length", b"40000")]

    async def several() -> list[int]:
        begun, goes_on = [asyncio.Event(), asyncio.Event()], asyncio.Event()

        def slow(number: int) -> Any:
            parts: Iterator[bytes] = iter([b"a" * 30_000, b"a" * 10_000])

            async def come() -> Any:
                part = next(parts)
                if len(part) < 30_000:
                    begun[number].set()
                    await goes_on.wait()
                return {"type": "http.request", "body": part, "more_body": len(part) == 30_000}

            return come

        first = asyncio.create_task(ask(guard, "POST", GENERATIONS, headers, receive=slow(0)))
        await begun[0].wait()
        refused = await ask(guard, "POST", GENERATIONS, headers, parts=[b"a" * 40_000])
        goes_on.set()
        done = await first
        later = await ask(guard, "POST", GENERATIONS, headers, parts=[b"a" * 40_000])
        return [refused.status, done.status, later.status]

    assert asyncio.run(several()) == [503, 200, 200]


def test_a_client_that_leaves_while_it_sends_leaves_nothing_behind(guard: Guard, reached: Reached) -> None:
    told: list[Any] = []
    guard._told = told.append
    headers = [(b"host", HOST), (b"content-type", b"application/json"), (b"content-length", b"20")]

    async def leave() -> Any:
        return {"type": "http.disconnect"}

    answered = asked(guard, "POST", GENERATIONS, headers, receive=leave)
    assert answered.status == 0 and reached.bodies == [] and [one.status for one in told] == [499]


# --- answers


@pytest.mark.parametrize(
    ("path", "status"), [("/sdapi/v1/nothing", 404), ("/controlnet/nothing", 404), ("/v1/nothing", 404), ("/x", 404)]
)
def test_an_error_has_the_shape_of_the_api_that_was_called(guard: Guard, path: str, status: int) -> None:
    answered = asked(guard, "GET", path)
    assert answered.status == status and answered.header("content-type") == "application/json"
    if path.startswith(("/sdapi", "/controlnet")):
        assert set(answered.json) == {"error", "detail", "body", "errors"} and isinstance(answered.json["detail"], str)
    else:
        assert set(answered.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("method", "path"), [("GET", "/healthz"), ("GET", "/nothing"), ("PUT", "/healthz")])
def test_every_answer_has_the_headers_that_keep_a_browser_from_guessing(guard: Guard, method: str, path: str) -> None:
    answered = asked(guard, method, path)
    assert answered.header("x-content-type-options") == "nosniff"
    assert answered.header("referrer-policy") == "no-referrer" and answered.header("x-frame-options") == "DENY"
    assert "default-src 'none'" in (answered.header("content-security-policy") or "")
    assert answered.header("server") is None and answered.header("access-control-allow-origin") is None


def test_headers_of_an_api_are_its_own(routes: list[Route]) -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-security-policy", b"default-src 'self'"), (b"cache-control", b"private")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    answered = asked(Guard(page, routes, RULES), "GET", "/healthz")
    assert answered.header("content-security-policy") == "default-src 'self'"
    assert answered.header("cache-control") == "private"


def test_what_no_api_foresaw_is_a_typed_500_that_says_nothing_of_it(routes: list[Route]) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("secret")

    failures: list[Exception] = []
    answered = asked(Guard(broken, routes, RULES, failed=failures.append), "GET", "/healthz")
    assert answered.status == 500 and b"secret" not in answered.body and answered.json["error"]["code"] == "bug"
    assert answered.header("x-should-retry") == "false" and [str(error) for error in failures] == ["secret"]


def test_while_the_server_ends_only_its_health_is_told(guard: Guard, reached: Reached) -> None:
    guard.closing = True
    refused = post(guard, GENERATIONS, b"{}")
    assert (refused.status, refused.json["error"]["code"]) == (503, "shutting_down")
    assert refused.header("retry-after") == "5" and reached.bodies == []
    assert asked(guard, "GET", "/healthz").status == 200


# --- what is kept of a request


def test_the_log_holds_routes_and_never_what_was_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    service = Service(Settings(typed={"output": str(tmp_path)}, engine="fake"))
    guarded = app(service, WITH_KEY)
    secrets = [(b"host", HOST), (b"authorization", f"Bearer {KEY}".encode()), (b"user-agent", b"\x1b]0;owned\x07")]
    asked(guarded, "GET", "/v1/models", secrets)
    asked(guarded, "GET", "/\x1b[2J\x1b]52;c;owned\x07/..%2fetc", secrets)
    asked(guarded, "\x1b[31mGET", "/healthz", secrets)
    asked(guarded, "GET", "/v1/models/a-secret-\x1b[2J-model", secrets)
    body = json.dumps({"prompt": "a secret cat", "owned": 1}).encode()
    kind = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    asked(guarded, "POST", GENERATIONS, [*secrets, *kind], body)
    service.stop(grace=0)
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert len(lines) == 5 and all(line.isprintable() for line in lines)
    assert all(word not in said for word in ("owned", "secret", "etc", KEY, "2J"))
    assert lines[0].split(" ", 1)[1].startswith("GET /v1/models 200 ")
    assert " GET - 404 (not_found) " in lines[1] and " - /healthz 405 " in lines[2]
    assert " GET /v1/models/{name:path} 404 " in lines[3]
    assert lines[4].split(" ", 1)[1].startswith("POST /v1/images/generations 400 ")
    assert lines[0].endswith(f"127.0.0.1 key {digest(KEY).hex()[:6]}")
