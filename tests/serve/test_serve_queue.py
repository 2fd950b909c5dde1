"""Who is drawn for, and when; and that a worker which dies takes no request along."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcli.cli.main import run
from sdcli.errors import BadFile, SdcliError, Usage
from sdcli.record import found_runs, runs
from sdcli.record.names import Destination
from sdcli.serve.line import Full, Line, Room
from sdcli.serve.ticket import LEFT, Ticket
from sdcli.serve.uploads import Uploads


@pytest.fixture
def ticket(serve: Callable[..., Any]) -> Callable[..., Ticket]:
    """Tickets that nobody draws."""
    server = serve()

    def make(client: str, images: int = 1) -> Ticket:
        plan = server.service.plan({"words": ("a cat",), "size": "64x64", "steps": "1", "num_images": str(images)})
        where = Destination(folder=Path("/"), records=Path("/"), run="run", kind="numbered")
        return Ticket(plan=plan, destination=where, client=client)

    return make


def test_clients_are_served_in_turn(ticket: Callable[..., Ticket]) -> None:
    line = Line(Room(requests=10))
    many = [ticket("a") for _ in range(4)]
    other = ticket("b")
    for each in (*many, other):
        line.put(each)
    assert line.ahead_of(other) == 1 and line.ahead_of(many[1]) == 2
    assert [line.take() for _ in range(5)] == [many[0], other, many[1], many[2], many[3]]


def test_a_client_gets_half_of_the_queue_at_most(ticket: Callable[..., Ticket]) -> None:
    line = Line(Room(images=8, requests=100))
    line.put(ticket("a", images=4))
    with pytest.raises(Full, match="this client's part"):
        line.put(ticket("a"))
    line.put(ticket("b", images=4))
    with pytest.raises(Full, match="the queue is full"):
        line.put(ticket("c"))


def test_who_waits_longest_is_told_when_the_line_closes(ticket: Callable[..., Ticket]) -> None:
    line, taken = Line(Room()), []
    waiting = threading.Thread(target=lambda: taken.append(line.take()))
    waiting.start()
    left = ticket("a")
    line.put(left)
    waiting.join(5)
    line.put(ticket("a"))
    assert taken == [left] and len(line.close()) == 1 and line.take() is None


def drawn(service: Any, **values: str) -> Ticket:
    ticket: Ticket = service.submit(service.plan({"words": ("a cat",), "size": "64x64", "seeds": "5", **values}))
    ended = threading.Event()
    ticket.listen(lambda number, event: ended.set() if event is None else None)
    assert ended.wait(60)
    return ticket


def test_a_worker_that_is_killed_is_replaced_and_the_image_is_the_same(serve: Callable[..., Any]) -> None:
    service = serve().service
    first = drawn(service, steps="2")
    killed = threading.Event()

    def kill() -> None:
        while not killed.is_set():
            if service.desks[0].drawing is not None and service.desks[0].worker.process is not None:
                os.kill(service.desks[0].worker.process.pid, signal.SIGKILL)
                killed.set()
            time.sleep(0.001)

    killer = threading.Thread(target=kill)
    killer.start()
    second = drawn(service, steps="999")
    killed.set()
    killer.join()
    assert (first.state, second.state, service.desks[0].worker.starts) == ("done", "done", 2)
    assert first.images[0].pixel_sha256 == second.images[0].pixel_sha256
    assert hashlib.sha256(Path(second.images[0].path).read_bytes()).hexdigest() == second.images[0].file_sha256


def test_a_request_that_kills_every_worker_fails_and_the_next_is_drawn(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve().service
    monkeypatch.setattr(service.desks[0].worker, "engine", "engine_that_does_not_exist")
    ticket = drawn(service, steps="1")
    assert ticket.state == "failed" and isinstance(ticket.error, SdcliError)
    assert "engine_that_does_not_exist" in ticket.error.message and service.desks[0].worker.starts == 2
    monkeypatch.setattr(service.desks[0].worker, "engine", "fake")
    assert drawn(service, steps="1").state == "done"


def test_what_nobody_wants_any_more_is_not_drawn_to_its_end(serve: Callable[..., Any]) -> None:
    service = serve().service
    plan = service.plan({"words": ("a cat",), "size": "64x64", "steps": "999", "num_images": "20"})
    begun, ended = threading.Event(), threading.Event()
    running, waiting = service.submit(plan), service.submit(service.plan({"words": ("a dog",), "size": "64x64"}))
    running.listen(lambda number, event: (ended if event is None else begun).set())
    assert begun.wait(60)
    service.cancel(waiting)
    service.cancel(running)
    assert ended.wait(60)
    assert (running.state, waiting.state) == ("cancelled", "cancelled") and len(running.images) < 20
    assert (
        service.desks[0].worker.starts == 1
        and drawn(service, steps="1").state == "done"
        and service.desks[0].worker.starts == 1
    )


def test_a_run_that_was_cancelled_is_resumed_by_its_name_alone(
    serve: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service, images = serve().service, str(tmp_path / "images")
    plan = service.plan({"words": ("a cat",), "size": "64x64", "steps": "999", "num_images": "30"})

    def begun() -> Ticket:
        ticket: Ticket = service.submit(plan)
        there = threading.Event()
        ticket.listen(lambda number, event: there.set())
        assert there.wait(60)
        return ticket

    cancelled = begun()
    service.cancel(cancelled, LEFT)
    while not cancelled.over:
        time.sleep(0.01)
    report = json.loads((cancelled.destination.records / "report.json").read_text())
    assert (report["status"], report["error"]["type"]) == ("cancelled", "cancelled")
    assert report["error"]["details"] == {"because": "left"}
    with pytest.raises(Usage, match="unfinished"):
        found_runs.to_resume(images)
    left = begun()
    service.stop(grace=0)
    assert found_runs.to_resume(images) == left.destination.records
    with pytest.raises(SystemExit):
        run(["runs", images])
    said = capsys.readouterr().out
    assert f"{cancelled.destination.run}  cancelled" in said and f"{left.destination.run}  interrupted" in said
    records = found_runs.to_resume(str(cancelled.destination.records))
    assert runs.recover(runs.read(records)).missing


def test_an_idle_worker_gives_its_memory_back(serve: Callable[..., Any]) -> None:
    service = serve(idle=0.2).service
    drawn(service, steps="1")
    until = time.monotonic() + 20
    while service.desks[0].worker.process is not None and time.monotonic() < until:
        time.sleep(0.05)
    assert service.desks[0].worker.process is None
    assert drawn(service, steps="1").state == "done" and service.desks[0].worker.starts == 2


def test_what_a_server_did_not_draw_is_resumed_with_the_image_that_was_sent(serve: Callable[..., Any]) -> None:
    service = serve().service
    content = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(content, "PNG")
    path = service.upload(content.getvalue())
    values = {"words": ("a cat",), "image": path, "seeds": "5", "size": "64x64", "steps": "999"}
    tickets = [service.submit(service.plan({**values, "num_images": "20"})), service.submit(service.plan(values))]
    service.stop(grace=0)
    service.clean_up()
    assert tickets[1].state == "cancelled" and not tickets[1].images
    with pytest.raises(SystemExit) as left:
        run(["resume", str(tickets[1].destination.records), "--engine", "fake", "-q", "--no-show"])
    assert not left.value.code
    (image,) = runs.read(tickets[1].destination.records).intents.values()
    assert (tickets[1].destination.folder / image.file).exists()


def test_images_that_were_sent_are_there_as_long_as_results_are(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, keep=100.0)
    old, used = (Path(uploads.path_of(b"\x89PNG\r\n\x1a\n" + name)) for name in (b"old", b"used"))
    for path in (old, used):
        os.utime(path, (time.time() - 1000, time.time() - 1000))
    assert uploads.path_of(used.read_bytes()) == str(used)
    new = Path(uploads.path_of(b"\xff\xd8\xffnew"))
    assert not old.exists() and used.exists() and new.suffix == ".jpg"
    with pytest.raises(BadFile):
        uploads.path_of(b"<svg>")


@pytest.mark.parametrize("kept", [True, False])
def test_the_disk_is_waited_for_where_images_are_kept_and_nowhere_else(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    service, waited, ended = serve(store=kept).service, [], threading.Event()
    plan = service.plan({"words": ("a cat",), "size": "64x64", "steps": "1"})  # which keeps the model's hash
    monkeypatch.setattr(os, "fsync", waited.append)
    drawn = service.submit(plan)
    drawn.listen(lambda number, event: ended.set() if event is None else None)
    assert ended.wait(60) and drawn.state == "done" and Path(drawn.images[0].path).is_file()
    assert bool(waited) == kept
