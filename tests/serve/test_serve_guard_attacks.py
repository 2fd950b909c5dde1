"""Attacks on a running server, byte by byte as an attacker sends them: none draws, none is told what it should not be,
and each is answered with a typed refusal while others are served."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from openai_clients import file
from running import Serving

from sdcli.serve.bounds import Bounds
from sdcli.serve.connections import HeadLimits
from sdcli.serve.rules import digest
from sdcli.serve.service import Service, Settings

KEY = "k3y-that-nobody-can-guess"
CAT = b'{"prompt": "a cat", "size": "64x64", "steps": 1}'
SECRET = b"root:x:0:0"
IMAGE = base64.b64encode(file()).decode()
CUT = file()[: len(file()) // 2]
DAMAGED = base64.b64encode(CUT).decode()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Serving]]:
    """One that asks for a key, and one that does not."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SDCLI_HOME", str(tmp_path_factory.mktemp("home")))
    running = {}
    for keyed in (False, True):
        typed = {"output": str(tmp_path_factory.mktemp("images")), "engine": "fake"}
        settings = Settings(typed=typed, engine="fake", preload=False, bounds=Bounds())
        running[keyed] = Serving(Service(settings))
    running[True].guard.rules = replace(running[True].rules, keys=(digest(KEY),))
    yield running
    for server in running.values():
        server.stop()
    patch.undo()


def said(server: Serving, sent: bytes, seconds: float = 10) -> tuple[int, bytes]:
    """Status and whole answer; 0 where the connection ends without one."""
    port = int(server.url.rpartition(":")[2])
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(sent.replace(b"{port}", str(port).encode()))
        while part := connection.recv(1 << 16):
            answer += part
    return (int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0), answer


def post(
    body: bytes = CAT, path: str = "/v1/images/generations", host: str | None = "127.0.0.1:{port}",
    kind: str = "application/json", version: str = "1.1", length: str | None = None, **more: str,
) -> bytes:  # fmt: skip
    return head("POST", path, host, version, **{
        "Content-Type": kind, "Content-Length": length or str(len(body)),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }) + body  # fmt: skip


def head(method: str, path: str, host: str | None = "127.0.0.1:{port}", version: str = "1.1", **fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/{version}"] + ([f"Host: {host}"] if host is not None else [])
    lines += [f"{name}: {value}" for name, value in {"Connection": "close", **fields}.items()]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"


def asking(**fields: Any) -> bytes:
    return post(json.dumps({"prompt": "a cat", "size": "64x64", "steps": 1, **fields}).encode())


def to(path: str, **fields: Any) -> bytes:
    """One of the other APIs."""
    return post(json.dumps({"prompt": "a cat", "steps": 1, **fields}).encode(), path)


def edited(content: bytes, filename: str, name: str = "image") -> bytes:
    """An image changed, by a form."""
    parts = [b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat\r\n']
    parts.append(f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'.encode())
    return post(
        b"".join([*parts, content, b"\r\n--x--\r\n"]), "/v1/images/edits", kind="multipart/form-data; boundary=x"
    )


@dataclass(frozen=True)
class Attack:
    sent: bytes
    status: int | tuple[int, ...]  # 0: no answer
    keyed: bool = False


GET_MODELS = "/v1/models"
OK_HOST = b"Host: 127.0.0.1:{port}\r\nConnection: close\r\n"
FORM = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat\r\n--x--\r\n'
REFUSED = (400, 404, 422)

REBINDING = {
    "a name that points here": Attack(post(host="evil.test:{port}"), 421),
    "the same with a page of that name": Attack(post(host="evil.test:{port}", Origin="http://evil.test:{port}"), 421),
    "a proxy's name for the host": Attack(post(host="evil.test", X_Forwarded_Host="127.0.0.1:{port}"), 421),
    "a name that begins right": Attack(post(host="127.0.0.1.evil.test:{port}"), 421),
    "a name that ends right": Attack(post(host="evil-localhost:{port}"), 421),
    "a user before the name": Attack(post(host="127.0.0.1:{port}@evil.test"), (400, 421)),
    "an address in hexadecimal": Attack(post(host="0x7f000001:{port}"), 421),
    "an address in another": Attack(post(host="[::ffff:127.0.0.1]:{port}"), 421),
    "no name at all": Attack(post(host=None, version="1.0"), 421),
    "two names": Attack(head("GET", GET_MODELS, "127.0.0.1:{port}\r\nHost: evil.test"), 400),
    "another name in the target": Attack(head("GET", "http://evil.test/v1/models"), 400),
    "an unknown name for the health": Attack(head("GET", "/healthz", "evil.test"), 421),
}
CROSS_SITE = {
    "a form of another page": Attack(post(kind="text/plain", Origin="https://evil.test"), 403),
    "a form without an origin": Attack(post(kind="text/plain"), 415),
    "a form as forms are sent": Attack(post(b"prompt=a+cat", kind="application/x-www-form-urlencoded"), 415),
    "a form with files": Attack(
        post(FORM, "/v1/images/edits", kind="multipart/form-data; boundary=x", Origin="https://evil.test"), 403),
    "a frame without an origin of its own": Attack(post(Origin="null"), 403),
    "an empty origin": Attack(post(Origin=""), 403),
    "an image on another page": Attack(head("GET", GET_MODELS, **{"Sec-Fetch-Site": "cross-site"}), 403),
    "a page of the same site": Attack(post(**{"Sec-Fetch-Site": "same-site"}), 403),
    "a page on another port": Attack(post(Origin="http://127.0.0.1:1"), 403),
    "a page by another of our names": Attack(post(Origin="http://localhost:{port}"), 403),
    "a question before asking": Attack(
        head("OPTIONS", "/v1/images/generations", Origin="https://evil.test",
             **{"Access-Control-Request-Method": "POST"}), 403),
    "two origins": Attack(post(Origin="http://127.0.0.1:{port}\r\nOrigin: https://evil.test"), 403),
}  # fmt: skip
TRAVERSAL = {
    **{f"a model called {name!r}": Attack(asking(model=name), REFUSED) for name in (
        "../../../../etc/passwd", "/etc/passwd", "..\\..\\windows\\win.ini", "~/.ssh/id_rsa", "builtin/../../etc",
        "file:///etc/passwd", "http://127.0.0.1:9/model", "a\0b", "someone/model",
    )},
    "a LoRA that is a path": Attack(asking(prompt="a cat <lora:../../../../etc/passwd:1>"), REFUSED),
    "a LoRA that is a whole path": Attack(asking(prompt="a cat <lora:/etc/passwd:1>"), REFUSED),
    "a sampler that is a path": Attack(asking(sampler="../../etc/passwd"), REFUSED),
    "an image by its address": Attack(asking(image_url="http://127.0.0.1:9/a.png"), REFUSED),
    **{f"a job's {field}, {value!r}": Attack(to("/v1/jobs", **{field: value}), REFUSED) for field, value in (
        ("model", "/etc/passwd"), ("lora", "../../etc/passwd:1"), ("lora", "/etc/passwd"), ("upscaler", "/etc/passwd"),
        ("preset", "../../../../etc/passwd"), ("preset", "/etc/passwd"), ("image", "/etc/passwd"),
        ("image", "http://127.0.0.1:9/a.png"), ("mask", "file:///etc/passwd"), ("output", "/tmp/owned"),
        ("vae_file", "/etc/passwd"), ("control", "/etc/passwd=/etc/passwd"), ("settings_from", "/etc/passwd"),
    )},
    **{f"A1111's {field}, {value!r}": Attack(to("/sdapi/v1/txt2img", **{field: value}), REFUSED) for field, value in (
        ("override_settings", {"sd_model_checkpoint": "/etc/passwd"}), ("sampler_name", "../../etc/passwd"),
        ("override_settings", {"sd_vae": "../../../etc/passwd"}), ("script_name", "../../etc/passwd"),
        ("prompt", "a cat <lora:../../../etc/passwd:1>"),
    )},
    "A1111's upscaler": Attack(
        to("/sdapi/v1/txt2img", enable_hr=True, hr_upscaler="/etc/passwd", denoising_strength=0.5), REFUSED),
    "A1111's first image": Attack(to("/sdapi/v1/img2img", init_images=["file:///etc/passwd"]), REFUSED),
    "A1111's first image by its address": Attack(
        to("/sdapi/v1/img2img", init_images=["http://127.0.0.1:9/a.png"]), REFUSED),
    "A1111's refiner": Attack(
        to("/sdapi/v1/txt2img", refiner_checkpoint="../../etc/passwd", refiner_switch_at=0.8), REFUSED),
    **{f"a unit's {field}": Attack(
        to("/sdapi/v1/txt2img", alwayson_scripts={"controlnet": {"args": [{"model": "x", "image": IMAGE} | unit]}}),
        REFUSED)
        for field, unit in (
            ("model", {"model": "../../etc/passwd"}), ("image", {"image": "file:///etc/passwd"}),
            ("module", {"module": "/etc/passwd"}),
        )
    },
    "an upscaler of the extras": Attack(
        to("/sdapi/v1/extra-single-image", image=IMAGE, upscaler_1="../../etc/passwd"), REFUSED),
    "a ControlNet that is a path": Attack(asking(control={"model": "../../etc/passwd", "image": IMAGE}), REFUSED),
    "what steers by its address": Attack(asking(control={"model": "x", "image": "file:///etc/passwd"}), REFUSED),
    "a preset that is a path": Attack(asking(preset="../../../../etc/passwd"), REFUSED),
    "a file's name": Attack(edited(b"\x89PNG\r\n\x1a\n", "../../../../tmp/owned.png"), 400),
    "a part's name": Attack(edited(b"", "a.png", name="../../etc/passwd"), 400),
    "A1111's default model": Attack(to("/sdapi/v1/options", sd_model_checkpoint="../../etc/passwd"), REFUSED),
    "settings of a file": Attack(to("/v1/settings", image="/etc/passwd"), REFUSED),
    "a job that is a path": Attack(head("GET", "/v1/jobs/..%2f..%2fetc%2fpasswd"), 404),
    "a file of the page upwards": Attack(head("GET", "/..%2fservice.py"), 404),
    "a path upwards": Attack(head("GET", "/../../../../etc/passwd"), 404),
    "the same, escaped": Attack(head("GET", "/%2e%2e/%2e%2e/etc/passwd"), 404),
    "upwards from a model": Attack(head("GET", "/v1/models/..%2f..%2f..%2fetc%2fpasswd"), 404),
    "upwards from a result": Attack(head("GET", "/v1/results/..%2f..%2fetc%2fpasswd"), 404),
    "a null byte in a path": Attack(head("GET", "/v1/models/a%00b"), 404),
}  # fmt: skip
SMUGGLING = {
    "two ways to say the length": Attack(post(Transfer_Encoding="chunked"), 400),
    "two lengths": Attack(post(length="2\r\nContent-Length: 48"), 400),
    "a length with a sign": Attack(post(length="+48"), 400),
    "a length below zero": Attack(post(length="-1"), 400),
    "an encoding nobody has": Attack(
        b"POST /v1/images/generations HTTP/1.1\r\n" + OK_HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "chunks in HTTP/1.0": Attack(
        b"POST /v1/images/generations HTTP/1.0\r\n" + OK_HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a chunk of no size": Attack(
        b"POST /v1/images/generations HTTP/1.1\r\n" + OK_HOST
        + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
    "a space before the colon": Attack(b"GET /v1/models HTTP/1.1\r\nHost : 127.0.0.1:{port}\r\n\r\n", 400),
    "a null byte in a header": Attack(b"GET /v1/models HTTP/1.1\r\n" + OK_HOST + b"X: a\0b\r\n\r\n", 400),
    "a bare carriage return": Attack(b"GET /v1/models HTTP/1.1\r\n" + OK_HOST + b"X: a\rHost: evil\r\n\r\n", 400),
    "no HTTP": Attack(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "a protocol of long ago": Attack(b"GET /v1/models\r\n\r\n", 400),
    "a request within a body nobody takes": Attack(
        b"GET /v1/models HTTP/1.1\r\n" + OK_HOST.replace(b"Connection: close\r\n", b"")
        + b"Content-Length: %d\r\n\r\n" % len(post(host="localhost")) + post(host="localhost"), 415),
}  # fmt: skip
OVERSIZED = {
    "a head of one large field": Attack(head("GET", GET_MODELS, X="a" * 100_000), 431),
    "a head of many fields": Attack(head("GET", GET_MODELS, **{f"X{number}": "" for number in range(65)}), 431),
    "a URL": Attack(head("GET", "/" + "a" * 3000), 414),
    "a URL beyond a head": Attack(head("GET", "/" + "a" * 300_000), 414),
    "a body": Attack(post(b" " * (1 << 20) + CAT, "/v1/jobs/0/cancel"), 413),
    "a body that only says so": Attack(post(b"", length="99999999999", Expect="100-continue"), 413),
    "a body nested deep": Attack(post(b'{"prompt":' * 20_00 + b"1" + b"}" * 20_00), 400),
    "a number of many digits": Attack(post(b'{"prompt": "a cat", "steps": ' + b"9" * 5000 + b"}"), 400),
    "a number beyond numbers": Attack(post(b'{"prompt": "a cat", "guidance": 1e999}'), 400),
    "a prompt": Attack(asking(prompt="cat " * 3000), 400),
    "images": Attack(asking(n=1_000_000_000), 400),
    "seeds": Attack(asking(seed="1..9999"), 400),
    "steps": Attack(asking(steps=9999), 400),
    "pixels": Attack(asking(size="8192x8192"), 400),
    "prompts": Attack(post(json.dumps({"prompts": ["a cat"] * 11}).encode(), "/v1/jobs"), 400),
    "prompts and images": Attack(
        post(json.dumps({"prompts": ["a cat"] * 4, "num_images": 4}).encode(), "/v1/jobs"), 400
    ),
    "a job's prompt": Attack(to("/v1/jobs", prompt="cat " * 3000), 400),
    "A1111's images": Attack(to("/sdapi/v1/txt2img", batch_size=100, n_iter=100), REFUSED),
    "all of it together": Attack(asking(n=10, size="2048x2048", steps=150), 400),
}
GUESSING = {
    "no key": Attack(post(), 401, keyed=True),
    "a wrong key": Attack(post(Authorization="Bearer 0000000000000000"), 401, keyed=True),
    "a key that begins right": Attack(post(Authorization=f"Bearer {KEY[:-1]}"), 401, keyed=True),
    "a key for another API": Attack(post(Authorization="Basic OjAwMDA="), 401, keyed=True),
    "a key in the URL": Attack(post(path=f"/v1/images/generations?key={KEY}&api_key={KEY}"), 401, keyed=True),
    "a key in a cookie": Attack(post(Cookie=f"key={KEY}", X_Api_Key=KEY), 401, keyed=True),
    "the figures without a key": Attack(head("GET", "/metrics"), 401, keyed=True),
}
ALL = {
    f"{kind}: {name}": attack
    for kind, attacks in (
        ("rebinding", REBINDING), ("cross-site", CROSS_SITE), ("traversal", TRAVERSAL), ("smuggling", SMUGGLING),
        ("oversized", OVERSIZED), ("key", GUESSING),
    )
    for name, attack in attacks.items()
}  # fmt: skip


@pytest.mark.parametrize("attack", [pytest.param(attack, id=name) for name, attack in ALL.items()])
def test_an_attack_is_refused_and_draws_nothing(attack: Attack, servers: dict[bool, Serving]) -> None:
    server = servers[attack.keyed]
    before = len(server.service.tickets)
    status, answer = said(server, attack.sent)
    assert status in (attack.status if isinstance(attack.status, tuple) else (attack.status,)), answer
    assert SECRET not in answer and KEY.encode() not in answer and b"Traceback" not in answer
    top, _, body = answer.partition(b"\r\n\r\n")
    said_to = json.loads(body)["error"]
    assert isinstance(said_to, str) if b" /sdapi/" in attack.sent else {"message", "type", "code"} <= set(said_to)
    assert b"access-control-allow-origin" not in top.lower()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert len(server.service.tickets) == before and server.service.desks[0].drawing is None


def test_there_are_sixty_attacks_at_least() -> None:
    assert len(ALL) >= 60


# --- what a prompt may hold


@pytest.mark.parametrize(
    "prompt",
    [
        "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "\x1b]52;c;b3duZWQ=\x07\x1b[2J owned",
        "../../../../tmp/owned", "$(touch /tmp/owned); `id`", "a\u202egnp.exe",
    ],
)  # fmt: skip
def test_a_prompt_is_drawn_as_words_and_is_nothing_else_to_anyone(
    prompt: str, servers: dict[bool, Serving], capfd: pytest.CaptureFixture[str]
) -> None:
    status, answer = said(servers[False], asking(prompt=prompt))
    top = answer.partition(b"\r\n\r\n")[0]
    assert status == 200 and b"content-type: application/json" in top and b"nosniff" in top
    (ticket,) = (one for one in servers[False].service.tickets.values() if one.plan.jobs[0].prompt == prompt)
    folder = Path(ticket.destination.folder)
    (drawn,) = ticket.images
    assert Path(drawn.path).parent == folder and drawn.file.isascii() and "/" not in drawn.file
    assert not set(drawn.file) & set("<>$`;()\x1b\\ ")
    assert "owned" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "filename", ["<script>owned</script>.png", "../../owned.png", "\x1b[2Jowned.png", 'owned"; x=y.png']
)
def test_the_name_of_a_file_that_comes_along_is_nothing_to_anyone(
    filename: str, servers: dict[bool, Serving], capfd: pytest.CaptureFixture[str]
) -> None:
    known = set(servers[False].service.tickets)
    status, answer = said(servers[False], edited(file(), filename))
    assert status == 200 and b"owned" not in answer.partition(b'"b64_json"')[0]
    (ticket,) = (one for key, one in servers[False].service.tickets.items() if key not in known)
    (image,) = ticket.plan.request.image
    assert "owned" not in f"{image.path} {ticket.images[0].path}" + capfd.readouterr().err


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (to("/v1/jobs", image=f"data:image/png;base64,{DAMAGED}"), "image"),
        (post(json.dumps({"image": DAMAGED}).encode(), "/sdapi/v1/png-info"), "image"),
        (to("/sdapi/v1/extra-single-image", image=DAMAGED), "image"),
        (to("/sdapi/v1/img2img", init_images=[DAMAGED]), "init_images"),
        (to("/controlnet/detect", controlnet_images=[DAMAGED]), "controlnet_images[0]"),
        (edited(CUT, "a.png"), "image"),
    ],
)  # fmt: skip
def test_a_damaged_image_is_told_of_by_its_field_and_never_by_where_it_is_kept(
    sent: bytes, field: str, servers: dict[bool, Serving]
) -> None:
    status, answer = said(servers[False], sent)
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    message = body["detail"] if "detail" in body else body["error"]["message"]
    assert status == 400 and message.startswith(field) and "damaged" in message
    assert b"uploads" not in answer and b".png" not in answer


def test_what_is_wrong_is_said_without_power_over_a_terminal(servers: dict[bool, Serving]) -> None:
    for field in ("\x1b[31mred", "a\u202eb", "<b>"):
        status, answer = said(servers[False], asking(**{field: 1}))
        message = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
        assert status == 400 and "\x1b" not in message and "\u202e" not in message
        status, answer = said(servers[False], asking(model=field))
        message = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
        assert status == 404 and "\x1b" not in message and "\u202e" not in message


# --- slow clients


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """Waits for a second, and has room for fifty."""
    monkeypatch.setenv("SDCLI_HOME", str(tmp_path / "home"))
    settings = Settings(typed={"output": str(tmp_path), "engine": "fake"}, engine="fake", preload=False)
    server = Serving(Service(settings), heads=HeadLimits(seconds=1, connections=50), seconds=1)
    yield server
    server.stop()


def connected(server: Serving, sent: bytes = b"") -> socket.socket:
    port = int(server.url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(sent.replace(b"{port}", str(port).encode()))
    return connection


SLOW = {
    "nothing": (b"", b""),
    "half a head": (head("GET", GET_MODELS)[:-2], b"408"),
    "half a body": (post()[:-1], b"408"),
    "half a chunk": (
        b"POST /v1/images/generations HTTP/1.1\r\n" + OK_HOST
        + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nabc", b"408"),
    "nothing after an answer": (head("GET", "/healthz").replace(b"Connection: close\r\n", b""), b"200"),
}  # fmt: skip


def test_slow_and_silent_clients_are_let_go_while_others_are_served(impatient: Serving) -> None:
    slow = [(connected(impatient, sent), status) for _ in range(8) for sent, status in SLOW.values()]
    assert said(impatient, head("GET", "/healthz"))[0] == 200
    for connection, status in slow:
        with connection:
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))  # noqa: B023
        assert (answer.split(b" ")[1] if answer else b"") == status
    assert said(impatient, asking())[0] == 200


def test_who_waits_longest_makes_room_where_there_are_too_many(impatient: Serving) -> None:
    idle = [connected(impatient) for _ in range(120)]
    assert [said(impatient, head("GET", "/healthz"))[0] for _ in range(5)] == [200] * 5
    assert idle[0].recv(1) == b""
    for connection in idle:
        connection.close()
