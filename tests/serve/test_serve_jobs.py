"""/v1/jobs, as a client meets it: asked for, watched, cancelled, fetched."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from sdcli.plan.remembered import Measures
from sdcli.record import remembering
from sdcli.serve import asked, results
from sdcli.serve.bounds import Bounds
from sdcli.serve.jobs import routes

Serve = Callable[..., Any]
LONG = {"prompt": "a cat", "size": "64x64", "steps": 900, "num_images": 32}  # that is not over before it is cancelled


def call(
    server: Any, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def get(server: Any, path: str) -> Any:
    status, _, content = call(server, "GET", path)
    assert status == 200, content
    return json.loads(content)


def submit(server: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    status, headers, content = call(server, "POST", "/v1/jobs", body)
    job = json.loads(content)
    assert (status, headers["location"]) == (202, f"/v1/jobs/{job['id']}"), content
    return job


def refused(server: Any, body: Any, path: str = "/v1/jobs") -> tuple[int, dict[str, Any]]:
    status, _, content = call(server, "POST", path, body)
    return status, json.loads(content)["error"]


def happenings(server: Any, job: str, after: int | None = None) -> Iterator[tuple[int | None, str, dict[str, Any]]]:
    """The number, kind and data of each event until the stream ends."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    connection.request("GET", f"/v1/jobs/{job}/events", headers=headers)
    with contextlib.closing(connection), connection.getresponse() as answer:
        assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["Cache-Control"] == "no-store"
        fields: dict[str, str] = {}
        for line in answer:
            name, colon, value = line.decode().rstrip("\n").partition(": ")
            if name and colon:
                fields[name] = value
            elif fields:
                number = int(fields["id"]) if "id" in fields else None
                yield number, fields["event"], json.loads(fields["data"])
                fields = {}


def finished(server: Any, job: str) -> dict[str, Any]:
    *_, (_, kind, data) = happenings(server, job)
    assert kind == "job"
    return data


def until(server: Any, job: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    for _ in range(600):
        if holds(found := get(server, f"/v1/jobs/{job}")):
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def image_url(width: int = 64, height: int = 64, mode: str = "RGB") -> str:
    file = io.BytesIO()
    Image.new(mode, (width, height), "white").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_a_job_is_taken_at_once_and_its_images_are_fetched_by_their_names(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    job = submit(server, {"prompt": "a cat", "size": "64x96", "seed": 5, "num_images": 2, "steps": 2, "guidance": 3})
    assert job["status"] in ("queued", "drawing") and job["position"] == 0
    done = finished(server, job["id"])
    assert (done["status"], done["position"], done["eta"], done["error"]) == ("done", None, None, None)
    assert [image["settings"]["seed"] for image in done["images"]] == [5, 6]
    for image in done["images"]:
        status, headers, content = call(server, "GET", image["url"])
        assert (status, headers["content-type"], headers["etag"]) == (200, "image/png", f'"{image["sha256"]}"')
        assert content == (tmp_path / "images" / image["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == image["sha256"]
        assert Image.open(io.BytesIO(content)).size == (64, 96)
        assert headers["x-content-type-options"] == "nosniff" and "sandbox" in headers["content-security-policy"]
        assert call(server, "GET", image["url"], headers={"If-None-Match": headers["etag"]})[0] == 304


def test_the_settings_of_an_image_draw_it_again(serve: Serve) -> None:
    server = serve()
    body = {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "size": "64x64",
        "steps": 2,
        "sampler": "euler",
        "seeds": [7],
    }
    (first,) = finished(server, submit(server, body)["id"])["images"]
    assert first["settings"]["sampler"] == "Euler" and first["settings"]["negative_prompt"] == "a dog"
    (again,) = finished(server, submit(server, first["settings"])["id"])["images"]
    assert again["settings"] == first["settings"]
    pixels = [Image.open(io.BytesIO(call(server, "GET", one["url"])[2])).tobytes() for one in (first, again)]
    assert pixels[0] == pixels[1]


def test_what_memory_was_predicted_and_measured_is_told(serve: Serve) -> None:
    server = serve()
    done = finished(server, submit(server, {"prompt": "a cat", "size": "64x64", "steps": 2})["id"])
    assert done["memory"]["predicted"]["host"] > 0 and done["memory"]["measured"]["host"] > 0
    assert done["plan"]["device"]["kind"] == "cpu" and done["plan"]["predicted"] == done["memory"]["predicted"]
    assert {decision["slot"] for decision in done["plan"]["decisions"]} >= {"dtype", "placement"}
    assert done["seconds"] > 0


def test_events_tell_every_step_and_the_image(serve: Serve) -> None:
    server = serve()
    seen = list(happenings(server, submit(server, {"prompt": "a cat", "size": "64x64", "steps": 3})["id"]))
    assert [data["step"] for _, kind, data in seen if kind == "step"] == [1, 2, 3]
    (saved,) = [data for _, kind, data in seen if kind == "saved"]
    assert call(server, "GET", saved["url"])[0] == 200 and "path" not in saved
    previews = [data for _, kind, data in seen if kind == "preview"]
    assert len(previews) <= 2  # in half a second
    for preview in previews:
        file = base64.b64decode(preview["image"].removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(file)).size == (preview["width"], preview["height"])
    numbers = [number for number, _, _ in seen if number is not None]
    assert numbers == sorted(set(numbers))
    assert [(number, kind) for number, kind, _ in (seen[0], seen[-1])] == [(None, "job")] * 2


def test_a_stream_goes_on_after_the_last_event_that_was_seen(serve: Serve) -> None:
    server = serve()
    job = submit(server, {"prompt": "a cat", "size": "64x64", "steps": 5})["id"]
    every = [one for one in happenings(server, job) if one[1] not in ("job", "preview")]
    for after in (every[0][0], every[3][0], every[-1][0]):
        rest = [one for one in happenings(server, job, after) if one[1] not in ("job", "preview")]
        assert rest == [one for one in every if (one[0] or 0) > (after or 0)]


def test_a_stream_that_was_cut_loses_no_step(serve: Serve) -> None:
    server = serve()
    job = submit(server, {**LONG, "num_images": 1})["id"]
    steps, last, cuts, last_kind = [], 0, 0, ""
    while last_kind != "end":
        with contextlib.closing(happenings(server, job, last)) as stream:
            last_kind = "end"
            for number, kind, data in stream:
                last = number or last
                steps += [data["step"]] if kind == "step" else []
                if kind == "step" and data["step"] == 100 * (cuts + 1) and cuts < 5:
                    cuts, last_kind = cuts + 1, "cut"
                    break
    assert cuts == 5 and steps == list(range(1, 901))


def test_positions_count_what_is_drawn_before(serve: Serve) -> None:
    server = serve()
    first, second, third = (submit(server, {**LONG, "num_images": 8})["id"] for _ in range(3))
    until(server, first, lambda job: job["status"] == "drawing")
    assert [get(server, f"/v1/jobs/{job}")["position"] for job in (first, second, third)] == [0, 1, 2]
    assert [job["id"] for job in get(server, "/v1/jobs")["jobs"]] == [third, second, first]
    call(server, "POST", f"/v1/jobs/{second}/cancel")
    assert get(server, f"/v1/jobs/{third}")["position"] == 1
    for job in (first, third):
        call(server, "POST", f"/v1/jobs/{job}/cancel")


def test_who_waits_is_told_of_a_new_position(serve: Serve) -> None:
    server = serve()
    first, second = (submit(server, {**LONG, "num_images": 8})["id"] for _ in range(2))
    until(server, first, lambda job: job["status"] == "drawing")
    told: list[tuple[str, int | None]] = []

    def listen() -> None:
        told.extend((data["status"], data["position"]) for _, kind, data in happenings(server, second) if kind == "job")

    listening = threading.Thread(target=listen)
    listening.start()
    while not told:
        time.sleep(0.01)
    call(server, "POST", f"/v1/jobs/{first}/cancel")
    until(server, second, lambda job: job["status"] == "drawing" and job["step"] is not None)
    call(server, "POST", f"/v1/jobs/{second}/cancel")
    listening.join(30)
    assert told[0] == ("queued", 1) and ("drawing", 0) in told and told[-1] == ("cancelled", None)


def test_a_job_is_cancelled_wherever_it_is_and_as_often_as_one_likes(serve: Serve) -> None:
    server = serve()
    drawing, queued = (submit(server, {**LONG, "num_images": 16})["id"] for _ in range(2))
    until(server, drawing, lambda job: job["step"] is not None)
    for job in (queued, queued, drawing, drawing):
        status, _, content = call(server, "POST", f"/v1/jobs/{job}/cancel")
        assert status == 200 and json.loads(content)["id"] == job
    over = until(server, drawing, lambda job: job["status"] == "cancelled")
    assert len(over["images"]) < 16 and over["error"]["code"] == "cancelled"
    assert get(server, f"/v1/jobs/{queued}")["status"] == "cancelled"
    done = finished(server, submit(server, {"prompt": "a cat", "size": "64x64", "steps": 1})["id"])
    assert done["status"] == "done"
    status, _, content = call(server, "POST", f"/v1/jobs/{done['id']}/cancel")
    assert status == 200 and json.loads(content)["status"] == "done"


@pytest.mark.parametrize("way", ["", "/events", "/cancel"])
def test_an_unknown_job_is_not_found(serve: Serve, way: str) -> None:
    server = serve()
    for name in ("0" * 24, "0" * 32, "x", "..%2f..%2fetc%2fpasswd", "%00"):
        status, _, _ = call(server, "POST" if way == "/cancel" else "GET", f"/v1/jobs/{name}{way}")
        assert status == 404


def test_a_result_is_known_by_32_hex_digits_and_by_nothing_else(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    (image,) = finished(server, submit(server, {"prompt": "a cat", "size": "64x64", "steps": 1})["id"])["images"]
    name = image["url"].rpartition("/")[2]
    assert len(name) == 32
    for other in (
        name[:-1] + "1",
        name.upper(),
        name + "0",
        "..%2f" + image["file"],
        image["file"],
        "%2e%2e",
        "a" * 999,
    ):
        assert call(server, "GET", f"/v1/results/{other}")[0] == 404, other


def test_a_result_that_is_not_the_file_any_more_is_not_given_out(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    (image,) = finished(server, submit(server, {"prompt": "a cat", "size": "64x64", "steps": 1})["id"])["images"]
    (tmp_path / "images" / image["file"]).write_bytes(b"something else")
    assert call(server, "GET", image["url"])[0] == 404


@pytest.mark.parametrize("kept", [True, False])
def test_a_deleted_result_is_gone_and_its_file_only_where_none_is_kept(
    serve: Serve, tmp_path: Path, kept: bool
) -> None:
    server = serve(store=kept)
    job = submit(server, {"prompt": "a cat", "size": "64x64", "steps": 1, "num_images": 2})["id"]
    first, second = finished(server, job)["images"]
    path = Path(server.service.tickets[job].images[0].path)
    assert path.exists()
    assert call(server, "DELETE", first["url"])[0] == 204
    assert call(server, "DELETE", first["url"])[0] == 404 and call(server, "GET", first["url"])[0] == 404
    assert path.exists() == kept
    assert [image["url"] for image in get(server, f"/v1/jobs/{job}")["images"]] == [second["url"]]


def test_an_image_starts_from_one_that_came_along_and_is_repainted_by_its_mask(serve: Serve) -> None:
    server = serve()
    body = {"prompt": "a cat", "steps": 4, "image": image_url(), "mask": image_url(mode="L"), "strength": 0.5}
    (image,) = finished(server, submit(server, body)["id"])["images"]
    assert image["settings"]["strength"] == 0.5
    content = base64.b64decode(body["image"].partition(",")[2])
    assert image["settings"]["image"] == hashlib.sha256(content).hexdigest()


def test_a_plan_says_what_an_image_would_need_and_draws_nothing(serve: Serve) -> None:
    server = serve()
    status, _, content = call(server, "POST", "/v1/plan", {"prompt": "a cat", "size": "64x64", "num_images": 3})
    answer = json.loads(content)
    assert status == 200 and answer["images"] == 3 and answer["settings"]["width"] == 64
    assert answer["plan"]["predicted"]["host"] > 0 and answer["plan"]["seconds"] is None
    assert answer["settings"]["steps"] > 0 and answer["settings"]["sampler"]
    assert get(server, "/v1/jobs")["jobs"] == [] and server.service.desks[0].worker.starts == 0


def test_what_does_not_fit_is_refused_with_a_way_out(serve: Serve) -> None:
    server = serve(typed={"max_ram": "1GiB"}, bounds=Bounds(width=4096, height=4096))
    status, error = refused(server, {"prompt": "a cat", "size": "4096x4096"})
    assert (status, error["code"]) == (400, "does_not_fit") and "size" in error["hint"]
    assert server.service.desks[0].worker.starts == 0


def test_the_settings_in_an_image_are_read(serve: Serve) -> None:
    server = serve()
    body = {"prompt": "a cat", "size": "64x64", "steps": 2, "seed": 11, "guidance": 4.5}
    (image,) = finished(server, submit(server, body)["id"])["images"]
    url = "data:image/png;base64," + base64.b64encode(call(server, "GET", image["url"])[2]).decode()
    status, _, content = call(server, "POST", "/v1/settings", {"image": url})
    found = json.loads(content)
    assert status == 200 and found["from"] == "sdcli"
    assert {"prompt": "a cat", "seed": 11, "steps": 2, "guidance": 4.5}.items() <= found["settings"].items()
    status, error = refused(server, {"image": image_url()}, "/v1/settings")
    assert (status, error["code"]) == (400, "bad_file")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "a cat", "sead": 5}, "sead"),
        ({"prompt": "a cat", "output": "/tmp/x"}, "output"),
        ({"prompt": "a cat", "device": "cuda"}, "device"),
        ({"prompt": "a cat", "vae_file": "/etc/passwd"}, "vae_file"),
        ({"prompt": "a cat", "upscaler": "/etc/passwd"}, "upscaler"),
        ({"prompt": "a cat", "lora": "../../secret"}, "lora"),
        ({"prompt": "a cat", "lora": ["a>b"]}, "lora"),
        ({"prompt": "a cat", "image": "http://127.0.0.1/x.png"}, "image"),
        ({"prompt": "a cat", "image": "/etc/passwd"}, "image"),
        ({"prompt": "a cat", "image": "data:image/png;base64,%%%"}, "image"),
        ({"prompt": "a cat", "steps": True}, "steps"),
        ({"prompt": "a cat", "steps": "20"}, "steps"),
        ({"prompt": "a cat", "steps": 2.5}, "steps"),
        ({"prompt": "a cat", "steps": None}, "steps"),
        ({"prompt": "a cat", "steps": 0}, "steps"),
        ({"prompt": "a cat", "guidance": 1e9}, "guidance"),
        ({"prompt": "a cat", "format": "gif"}, "format"),
        ({"prompt": "a cat", "size": 64}, "size"),
        ({"prompt": "a cat", "seed": 1.5}, "seed"),
        ({"prompt": "a cat", "seeds": []}, "seeds"),
        ({"prompt": "a cat", "seeds": [-1]}, "seeds"),
        ({"prompt": "a cat", "lora": None}, "lora"),
        ({"prompt": "a cat", "steps": [1, 2]}, "steps"),
        ({"prompt": "a cat", "only_masked": "yes"}, "only_masked"),
        ({"prompt": 5}, "prompt"),
        ({"steps": 5}, "prompt"),
        ({"prompt": "a", "prompts": ["b"]}, "prompt"),
        ({"prompts": []}, "prompts"),
    ],
)
def test_a_field_that_is_wrong_is_named(serve: Serve, body: dict[str, Any], field: str) -> None:
    status, error = refused(serve(), body)
    assert (status, error["code"], error["param"]) == (400, "bad_body", field)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"prompt": "a cat", "model": "/etc"}, 404, "model_missing"),
        ({"prompt": "a cat", "model": "no/such"}, 404, "model_missing"),
        ({"prompt": "a cat", "lora": "nowhere"}, 404, "model_missing"),
        ({"prompt": "a <lora:../x:1> cat"}, 404, "model_missing"),
        ({"prompt": "a cat", "seed": 2**32}, 400, "usage"),
        ({"prompt": "a cat", "size": "7x7"}, 400, "usage"),
        ({"prompt": "a cat", "sampler": "eulre"}, 400, "usage"),
        ({"prompt": "a cat", "preset": "../x"}, 400, "usage"),
        ({"prompt": "a cat", "image": "data:image/png;base64,aaaa"}, 400, "bad_file"),
        ({"prompt": "a cat", "image": "data:image/png;base64,iVBORw0KGgoAAAA="}, 400, "bad_file"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_it_takes_a_place(
    serve: Serve, body: dict[str, Any], status: int, kind: str
) -> None:
    server = serve()
    got, error = refused(server, body)
    assert (got, error["code"]) == (status, kind)
    assert "sdcli-uploads" not in json.dumps(error)
    assert get(server, "/v1/jobs")["jobs"] == []


def test_a_full_queue_says_when_to_come_again(serve: Serve) -> None:
    server = serve()
    jobs = [submit(server, LONG)["id"]]
    until(server, jobs[0], lambda job: job["status"] == "drawing")
    jobs.append(submit(server, LONG)["id"])
    status, headers, content = call(server, "POST", "/v1/jobs", LONG)
    assert status == 429 and 1 <= int(headers["retry-after"]) <= 120
    assert json.loads(content)["error"]["code"] == "queue_full"
    for job in jobs:
        call(server, "POST", f"/v1/jobs/{job}/cancel")


def test_the_status_names_device_model_and_queue(serve: Serve) -> None:
    server = serve()
    before = get(server, "/v1/status")
    assert (before["devices"][0]["holds"], before["queue"]["requests"], before["drawn"]) == ([], 0, 0)
    finished(server, submit(server, {"prompt": "a cat", "size": "64x64", "steps": 1})["id"])
    after = get(server, "/v1/status")
    (device,) = after["devices"]
    assert (device["holds"], after["model"], device["kind"]) == (["builtin"], "builtin", "cpu")
    assert after["drawn"] == 1 and "Euler" in after["samplers"] and after["versions"]["torch"]


def test_older_jobs_are_listed_page_by_page(serve: Serve) -> None:
    server = serve()
    jobs = [submit(server, {"prompt": "a cat", "size": "64x64", "steps": 1})["id"] for _ in range(4)]
    newest = get(server, "/v1/jobs?limit=2")["jobs"]
    older = get(server, f"/v1/jobs?limit=2&before={newest[-1]['id']}")["jobs"]
    assert [job["id"] for job in (*newest, *older)] == jobs[::-1]
    for query in ("limit=0", "limit=x", "limit=1001", "limit=-1"):
        assert call(server, "GET", f"/v1/jobs?{query}")[0] == 400


def test_what_was_drawn_before_tells_how_long_it_will_take(serve: Serve) -> None:
    server = serve()
    new = submit(server, {"prompt": "a cat", "size": "64x64", "steps": 1})
    assert new["eta"] is None
    finished(server, new["id"])
    known = server.service.plan({"prompts": ("a cat",), "size": "64x64", "steps": "900"})
    found = Measures(host_peak=1 << 30, load=3.0, step=0.01, image=1.0)
    remembering.keep(known, known.batch(0), found)
    first, second = submit(server, {**LONG, "num_images": 10}), submit(server, {**LONG, "num_images": 10})
    assert second["eta"] > first["eta"] > 0
    one = 10 * (900 * 0.01 + 1)
    assert second["eta"] - first["eta"] == pytest.approx(one, abs=3.1)  # 3 seconds are for loading
    for job in (first, second):
        call(server, "POST", f"/v1/jobs/{job['id']}/cancel")


def test_the_document_names_every_setting_and_every_address(serve: Serve) -> None:
    service = serve().service
    text = (Path(__file__).resolve().parents[2] / "docs" / "jobs.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([a-z_]+)`", text)) >= asked.NAMES
    assert {
        route.path.replace("{id}", "ID").replace("{name}", "NAME")
        for route in (*routes(service), *results.routes(service))
    } <= set(re.findall(r"(/v1/[\w/]+)`", text))


def test_a_body_that_is_sent_again_with_its_key_finds_its_job(serve: Serve) -> None:
    server = serve()
    body = {"prompt": "a cat", "size": "64x64", "steps": 1}

    def sent(body: dict[str, Any], key: str) -> tuple[int, dict[str, Any]]:
        status, _, content = call(server, "POST", "/v1/jobs", body, {"Idempotency-Key": key})
        return status, json.loads(content)

    first, again, other = (sent(body, key)[1]["id"] for key in ("one", "one", "two"))
    assert first == again != other
    assert sent({**body, "steps": 2}, "one")[0] == 422
    assert len(get(server, "/v1/jobs")["jobs"]) == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "a" * 8001}, "prompt"),
        ({"prompt": "a", "negative_prompt": "a" * 8001}, "prompt"),
        ({"prompt": "a", "num_images": 5}, "num_images"),
        ({"prompt": "a", "seeds": [1, 2, 3, 4, 5]}, "num_images"),
        ({"prompts": ["a", "b"], "num_images": 3}, "num_images"),
        ({"prompt": "a", "steps": 11}, "steps"),
        ({"prompt": "a", "size": "128x64"}, "size"),
    ],
)
def test_more_than_the_server_draws_at_once_is_refused(serve: Serve, body: dict[str, Any], field: str) -> None:
    server = serve(bounds=Bounds(images=4, steps=10, width=64, height=64), typed={"size": "64x64", "steps": "2"})
    assert get(server, "/v1/status")["most"] == {"images": 4, "steps": 10, "width": 64, "height": 64, "prompt": 8000}
    for path in ("/v1/jobs", "/v1/plan"):
        status, error = refused(server, body, path)
        assert (status, error["code"], error["param"]) == (400, "usage", field)
