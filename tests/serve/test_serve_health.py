"""What a server says of itself: ready or not, its figures, and the document of all that can be asked."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from asgi import asked
from openai_clients import file as drawn_file
from sdapi_client import post

from sdcli.asking import planning
from sdcli.request.options import OPTIONS
from sdcli.serve import asked as asking
from sdcli.serve import metrics, openai_fields, openapi, sdapi_fields
from sdcli.serve.bounds import Bounds
from sdcli.serve.line import Room
from sdcli.serve.metrics import Counter, Histogram
from sdcli.serve.sdapi_body import Body
from sdcli.serve.sdapi_names import Names

EXPOSITION = re.compile(
    r'# (HELP|TYPE) [a-z_]+ .+|[a-z_]+(\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})? -?\d+(\.\d+)?(e-?\d+)?'
)


def ask(server: Any, path: str, method: str = "GET") -> Any:
    host = server.url.removeprefix("http://").encode()
    return asked(server.guard, method, path, [(b"host", host)])


def figures(server: Any, line: str) -> Any:
    """Once they hold this line: a request is counted a moment after its end."""
    until = time.monotonic() + 60
    while line not in (answered := ask(server, "/metrics")).body.decode().splitlines():
        assert time.monotonic() < until
        time.sleep(0.01)
    return answered


def until_ready(server: Any) -> None:
    until = time.monotonic() + 60
    while server.service.ready is not None:
        assert time.monotonic() < until, server.service.ready
        time.sleep(0.01)


def test_a_server_is_ready_once_its_model_is_loaded_and_while_its_queue_has_room(serve: Callable[..., Any]) -> None:
    server = serve(preload=True, room=Room(images=4, requests=2, share=1))
    first = ask(server, "/readyz")
    if first.status == 503:
        assert first.json["reason"] == "the model is being loaded" and first.header("retry-after")
    until_ready(server)
    assert server.service.desks[0].worker.starts == 1 and ask(server, "/readyz").json == {"ready": True}
    service = server.service
    long = service.submit(service.plan({"words": ("a cat",), "size": "512x512", "num_images": "4", "steps": "900"}))
    while service.desks[0].drawing is not long:
        time.sleep(0.005)
    waiting = service.submit(service.plan({"words": ("a cat",), "size": "64x64", "num_images": "4"}))
    full = ask(server, "/readyz")
    assert (full.status, full.json["reason"]) == (503, "the queue is full")
    service.cancel(waiting)
    service.cancel(long)
    assert ask(server, "/healthz").status == 200


def test_a_model_that_cannot_be_loaded_is_said_and_the_next_image_makes_it_ready(serve: Callable[..., Any]) -> None:
    server = serve(preload=True, typed={"model": "no-such-model"})
    until = time.monotonic() + 30
    while "no-such-model" not in ask(server, "/readyz").json["reason"]:
        assert time.monotonic() < until
        time.sleep(0.01)
    ticket = server.service.submit(server.service.plan({"words": ("a cat",), "model": "builtin", "size": "64x64"}))
    while not ticket.over:
        time.sleep(0.01)
    assert ticket.state == "done"
    until_ready(server)


def test_figures_are_what_happened_in_prometheus_own_format(serve: Callable[..., Any]) -> None:
    server = serve()
    service = server.service
    ticket = service.submit(service.plan({"words": ("a cat",), "size": "64x64", "steps": "3", "num_images": "2"}))
    while not ticket.over:
        time.sleep(0.005)
    cancelled = service.submit(service.plan({"words": ("a cat",), "size": "64x64", "steps": "999"}))
    service.cancel(cancelled)
    while not cancelled.over:
        time.sleep(0.005)
    ask(server, '/"\n{}', "POST")
    ask(server, "/healthz")
    answered = figures(server, 'sdcli_drawn_requests_total{state="cancelled"} 1')
    text = answered.body.decode()
    assert answered.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    assert [line for line in text.splitlines() if EXPOSITION.fullmatch(line) is None] == []
    lines = text.splitlines()
    both = (ticket, cancelled)
    steps = sum(work.steps for one in both for work in one.work.values())
    took = sum(step for one in both for batch in one.report.get("batches", ()) for step in batch["step_seconds"])
    peak = ticket.report["memory"]["measured"]["host_peak"]  # of one image as of the other
    assert f'sdcli_device_peak_bytes{{model="builtin",device="cpu"}} {peak}' in lines
    (seconds,) = (
        line for line in lines if line.startswith('sdcli_denoise_seconds_total{model="builtin",device="cpu"} ')
    )
    assert float(seconds.split()[1]) == pytest.approx(took) and took > 0
    for expected in (
        'sdcli_images_total{status="saved"} 2', 'sdcli_drawn_requests_total{state="done"} 1',
        'sdcli_drawn_requests_total{state="cancelled"} 1', 'sdcli_cancelled_requests_total{because="asked"} 1',
        f'sdcli_steps_total{{model="builtin",device="cpu"}} {steps}',
        f"sdcli_queue_wait_seconds_count {sum(one.waited is not None for one in both)}",
        'sdcli_worker_starts_total{device="cpu"} 1', "sdcli_queue_requests 0",
        'sdcli_model_loads_total{model="builtin",device="cpu"} 1', 'sdcli_rejected_total{reason="not_found"} 1',
        'sdcli_http_requests_total{route="/healthz",method="GET",code="200"} 1',
        'sdcli_http_requests_total{route="-",method="POST",code="404"} 1',
    ):  # fmt: skip
        assert expected in lines
    assert "a cat" not in text
    assert documented() == printed(lines)


ROW = re.compile(r"\| `(\w+)` \| (counter|gauge|histogram) \| ([`\w, ]*)\| (.+) \|")


def documented() -> list[tuple[str, str, set[str], str]]:
    """The table of series: name, kind, labels, and what is said of each."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = (row.groups() for row in ROW.finditer(text))
    return [(name, kind, set(re.findall(r"\w+", labels)), said.replace("`", "")) for name, kind, labels, said in rows]


def printed(lines: list[str]) -> list[tuple[str, str, set[str], str]]:
    """The same of what was answered, where every series has a value."""
    found = []
    for head, following in pairwise(lines):
        if head.startswith("# HELP "):
            name, said = head.removeprefix("# HELP ").split(" ", 1)
            values = [line for line in lines if re.match(rf"{name}(_bucket|_sum|_count)?[{{ ]", line)]
            assert values, name
            labels = {label for line in values for label in re.findall(r'(\w+)="', line)} - {"le"}
            found.append((name, following.rpartition(" ")[2], labels, said))
    return found


def test_models_beyond_a_hundred_share_a_label(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_MODELS", 1)
    server = serve()
    plan = server.service.plan({"words": ("a cat",), "size": "64x64", "steps": "2"})
    for name in ("builtin", "another", "a third", "builtin"):
        server.service.submit(replace(plan, model=replace(plan.model, name=name)))
    text = figures(server, 'sdcli_drawn_requests_total{state="done"} 4').body.decode()
    lines = [line for line in text.splitlines() if line.startswith("sdcli_steps")]
    assert lines == [
        'sdcli_steps_total{model="builtin",device="cpu"} 4',
        'sdcli_steps_total{model="others",device="cpu"} 4',
    ]


def test_a_histogram_counts_each_value_in_all_bounds_above_it() -> None:
    one = Histogram("seconds", "Time.", (0.5, 2.0))
    for value in (0.25, 0.5, 1, 5):
        one.add(value, route='a"b\\c')
    label = 'route="a\\"b\\\\c"'
    assert list(one.lines())[2:] == [
        f'seconds_bucket{{{label},le="0.5"}} 2', f'seconds_bucket{{{label},le="2"}} 3',
        f'seconds_bucket{{{label},le="+Inf"}} 4', f"seconds_sum{{{label}}} 6.75", f"seconds_count{{{label}}} 4",
    ]  # fmt: skip
    count = Counter("things", "Things.")
    count.add(2)
    count.add(0.5)
    assert list(count.lines())[-1] == "things 2.5"


def test_the_document_names_every_route_with_its_methods_and_what_its_answers_are(serve: Callable[..., Any]) -> None:
    server = serve()
    document = ask(server, "/openapi.json").json
    assert document["openapi"].startswith("3.1") and "security" not in document
    for route in server.guard.routes:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        named = document["paths"][path]
        assert set(named) >= {method.lower() for method in route.methods - {"HEAD"}}
        for operation in named.values():
            assert "default" in operation["responses"] and len(operation["responses"]) > 1
    assert document["paths"]["/metrics"]["get"]["responses"]["200"]["content"].keys() == {"text/plain"}
    assert document["paths"]["/readyz"]["get"]["responses"].keys() == {"200", "503", "default"}
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/models"):
        answered = ask(server, path)
        documented = document["paths"][path]["get"]["responses"][str(answered.status)]["content"]
        assert (answered.header("content-type") or "").split(";")[0] in documented


def test_a_setting_is_described_by_its_own_declaration() -> None:
    assert openapi.setting("steps") == {
        "type": "integer", "minimum": 1, "maximum": 10_000, "description": "Denoising steps.",
    }  # fmt: skip
    assert openapi.setting("guidance")["type"] == "number" and openapi.setting("format")["enum"] == [
        "png",
        "jpg",
        "webp",
    ]
    assert openapi.setting("hires")["type"] == "number" and openapi.setting("hires_steps")["type"] == "integer"
    assert openapi.setting("lora")["type"] == "array" and openapi.setting("only_masked")["type"] == "boolean"
    here = openapi.settings(["steps", "width", "num_images"], Bounds(steps=20, images=3, width=512, height=512))
    assert here["steps"] == {**openapi.setting("steps"), "maximum": 20}
    assert (here["num_images"]["minimum"], here["num_images"]["maximum"]) == (1, 3)
    assert (here["width"]["minimum"], here["width"]["maximum"]) == (64, 4096)
    assert all(openapi.setting(option.field)["description"] for option in OPTIONS)


def test_the_worker_tries_what_generate_would_try_and_this_process_draws_by_it(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front process plans without torch; what nobody knew, its worker has found out before it drew."""
    server = serve(engine="local", preload=True)
    service = server.service
    before = service.plan({"words": ("a cat",), "steps": "1"})
    until_ready(server)
    after = service.plan({"words": ("a cat",), "steps": "1"})
    assert planning.untried(before) and not planning.untried(after)
    planned = planning.plan_for({"words": ("a cat",), "steps": "1", "output": str(tmp_path)}, "plan").plan
    assert after.setup == planned.setup and after.hardware.trial is not None
    other = service.plan({"words": ("a cat",), "steps": "1", "size": "128x128"})
    assert planning.untried(other)
    ticket = service.submit(other)
    while not ticket.over:
        time.sleep(0.01)
    assert ticket.state == "done" and not planning.untried(ticket.plan)
    assert service.desks[0].worker.starts == 1


def test_what_the_document_says_of_a_body_is_what_the_api_knows(serve: Callable[..., Any]) -> None:
    server = serve()
    document = ask(server, "/openapi.json").json
    generations, jobs = document["paths"]["/v1/images/generations"]["post"], document["paths"]["/v1/jobs"]["post"]
    content = generations["requestBody"]["content"]
    assert (
        content.keys() == {"application/json"}
        and "multipart/form-data" in (document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"])
    )
    bounds = server.service.settings.bounds
    assert content["application/json"]["schema"] == json.loads(json.dumps(openai_fields.schema(bounds)))
    assert "num_inference_steps" in content["application/json"]["schema"]["properties"]
    fields = jobs["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert fields.keys() == asking.NAMES and jobs["responses"].keys() == {"202", "default"}
    assert fields["steps"]["maximum"] == 10_000 and "integer" in fields["steps"]["type"]


class Looked(dict[str, Any]):
    """A body that knows which of its fields were looked at."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("start", [False, True])
def test_every_field_of_a1111s_that_is_looked_at_stands_in_the_document(start: bool, serve: Callable[..., Any]) -> None:
    service = serve().service
    image = base64.b64encode(drawn_file()).decode()
    body = {"prompt": "a cat", "enable_hr": True, "hr_upscaler": "Latent", "width": 64, "height": 64, "eta": 1}
    given = Looked({**body, "sampler_name": "Euler a", "init_images": [image], "mask": image, "inpaint_full_res": True})
    read = sdapi_fields.image_to_image if start else sdapi_fields.text_to_image
    read(Body(given), service, Names(service))
    path = "/sdapi/v1/img2img" if start else "/sdapi/v1/txt2img"
    operation = ask(serve(), "/openapi.json").json["paths"][path]["post"]
    fields = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert given.names <= fields.keys() and {"steps", "sampler_name", "alwayson_scripts"} <= given.names


def test_a_field_of_a1111s_has_its_type_also_where_it_is_of_no_use(serve: Callable[..., Any]) -> None:
    body = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1}
    assert post(serve(), "/sdapi/v1/txt2img", {**body, "hr_scale": "1.5"}).status_code == 200
    refused = post(serve(), "/sdapi/v1/txt2img", {**body, "hr_scale": {}})
    assert refused.status_code == 422 and refused.json()["detail"].startswith("hr_scale: ")


@pytest.mark.parametrize("path", ["/readyz", "/sdapi/v1/loras"])
def test_a_bug_in_a_route_is_told_in_the_shape_of_its_api(
    path: str, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*about: Any) -> None:
        raise RuntimeError("secret")

    server = serve()
    monkeypatch.setattr(type(server.service), "ready", property(broken))
    monkeypatch.setattr(server.service, "entries", broken)
    answered = ask(server, path)
    assert answered.status == 500 and answered.header("content-type") == "application/json"
    assert b"secret" not in answered.body and answered.header("x-should-retry") == "false"
    assert answered.json["error"] == "bug" if "sdapi" in path else answered.json["error"]["code"] == "bug"


def test_a_number_that_is_blank_text_counts_as_absent(serve: Callable[..., Any]) -> None:
    body = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1, "batch_size": " ", "seed": ""}
    answered = post(serve(), "/sdapi/v1/txt2img", body)
    assert answered.status_code == 200 and json.loads(answered.json()["info"])["batch_size"] == 1
