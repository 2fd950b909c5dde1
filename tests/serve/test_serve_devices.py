"""A server with several devices: one line, a worker for each, and no image that depends on which of them drew it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asgi import asked

from scripts import make_checkpoint
from sdcli.asking import planning
from sdcli.cli.main import run
from sdcli.draw.fake import _gradient
from sdcli.errors import OutOfMemory
from sdcli.machine import several, survey
from sdcli.plan.plan import Seconds
from sdcli.plan.several import drawn_by
from sdcli.record import found_runs, runs
from sdcli.serve import job_json, shared
from sdcli.serve.line import MOST_PASSED, Line, Room, Suits
from sdcli.serve.service import Service, Settings
from sdcli.serve.ticket import Ticket
from tests.pretend_gpu import device, pretend

Serve = Callable[..., Any]
FRAGILE = (sys.executable, "-P", "-m", "scripts.fragile_worker")
SLOW = ("--seconds", "0.3")  # for each image
STEPS = ("--step", "0.02")  # for each step
LONG = {"steps": "999"}


def until(holds: Callable[[], Any]) -> Any:
    end = time.monotonic() + 300
    while not (found := holds()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


@pytest.fixture
def two(serve: Serve) -> Callable[..., Any]:
    """A server with two workers, whose processes have these flags."""

    def start(first: tuple[str, ...] = (), second: tuple[str, ...] = (), **settings: Any) -> Any:
        server = serve(typed={"devices": "cpu:2x1"}, **settings)
        for desk, flags in zip(server.service.desks, (first, second), strict=True):
            desk.worker.command = (*FRAGILE, *flags)
        return server

    return start


def submitted(service: Any, prompt: str = "a cat", client: str = "", **values: str) -> Ticket:
    small = {"size": "64x64", "steps": "2", "seeds": "5"}
    ticket: Ticket = service.submit(service.plan({"words": (prompt,), **small, **values}), client)
    return ticket


def ended(*tickets: Ticket) -> list[str]:
    until(lambda: all(ticket.over for ticket in tickets))
    return [ticket.state for ticket in tickets]


def hold(desk: Any, plan: Any) -> None:
    """The plan's model is loaded there, so that it comes there."""
    own = drawn_by(plan, desk.name)
    assert own is not None
    list(desk.worker.run(own, []))


def pixels(ticket: Ticket) -> dict[int, str]:
    return {image.job.seed: image.pixel_sha256 for image in ticket.images}


def right(*seeds: int) -> dict[int, str]:
    """What any worker draws of them."""
    return {seed: hashlib.sha256(_gradient(seed, 64, 64)).hexdigest() for seed in seeds}


def ask(server: Any, path: str) -> Any:
    return asked(server.guard, "GET", path, [(b"host", server.url.removeprefix("http://").encode())])


def test_two_requests_are_drawn_at_once_and_what_is_said_of_them_is_true(two: Callable[..., Any]) -> None:
    server = two(STEPS, STEPS)
    service = server.service
    tickets = [submitted(service, client=name, **LONG) for name in "ab"]
    until(lambda: len(service.drawing) == 2 and all(ticket.step[0] for ticket in tickets))
    third = submitted(service, client="a", **LONG)
    assert {ticket.device for ticket in tickets} == {"cpu:1", "cpu:2"}
    assert [ticket.plan.workers for ticket in tickets] == [(), ()] and service.line.waiting() == [third]
    status = ask(server, "/v1/status").json
    assert [(one["device"], one["draws"], one["holds"]) for one in status["devices"]] == [
        ("cpu:1", True, ["builtin"]), ("cpu:2", True, ["builtin"]),
    ]  # fmt: skip
    assert set(status["queue"]["drawing"]) == {ticket.id for ticket in tickets}
    job = ask(server, f"/v1/jobs/{third.id}").json
    assert (job["position"], [one["device"] for one in job["plan"]["workers"]]) == (2, ["cpu:1", "cpu:2"])
    lines = ask(server, "/metrics").body.decode().splitlines()
    for name in ("drawing", "worker_starts_total"):
        assert [f'sdcli_{name}{{device="cpu:{n}"}} 1' in lines for n in (1, 2)] == [True, True]
    first, second = tickets
    service.cancel(first)
    assert ended(first) == ["cancelled"] and not second.over
    until(lambda: third.step[0])  # by the worker that is free again, which was never another
    assert third.device == first.device and [desk.worker.starts for desk in service.desks] == [1, 1]
    service.cancel(third)
    service.cancel(second)
    assert ended(second, third) == ["cancelled", "cancelled"]


def test_images_of_one_request_are_drawn_by_all_who_have_nothing_else_to_do(
    two: Callable[..., Any],
) -> None:
    values = {"seeds": "1..6", "steps": "3"}
    server = two(SLOW, SLOW)
    for desk in server.service.desks:
        hold(desk, server.service.plan({"words": ("a cat",), "size": "64x64"}))
    ticket = submitted(server.service, **values)
    assert ended(ticket) == ["done"] and pixels(ticket) == right(*range(1, 7))
    assert set(ticket.work) == {"cpu:1", "cpu:2"} and sum(work.steps for work in ticket.work.values()) == 18
    assert [row["images"] > 0 for row in ticket.report["workers"]] == [True, True]
    assert sorted(image.file for image in ticket.images) == [f"{n:04d}-a-cat-{n}.png" for n in range(1, 7)]
    report = json.loads((ticket.destination.records / "report.json").read_text())
    assert report["status"] == "done" and len(report["images"]) == 6
    lines = ask(server, "/metrics").body.decode().splitlines()
    steps = [line for line in lines if line.startswith("sdcli_steps_total")]
    assert sum(int(line.split()[1]) for line in steps) == 18 and len(steps) == 2


def test_a_request_that_comes_later_is_drawn_before_the_rest_of_a_long_one(two: Callable[..., Any]) -> None:
    service = two(SLOW, SLOW).service
    long = submitted(service, seeds="1..20")
    until(lambda: len(long.work) == 2)
    late = submitted(service, client="another")
    assert ended(late) == ["done"] and not long.over and len(long.images) < 19
    service.cancel(long)
    assert ended(long) == ["cancelled"] and len(long.images) < 20
    assert runs.recover(runs.read(long.destination.records)).missing
    assert ended(submitted(service)) == ["done"]


def test_a_worker_that_is_killed_takes_no_image_along_and_disturbs_no_other(two: Callable[..., Any]) -> None:
    service = two(SLOW, SLOW).service
    many = submitted(service, seeds="1..8")
    killed = 0
    while not many.over:
        for desk in service.desks:
            if killed < 3 and desk.drawing is many and len(many.images) > 2 * killed and desk.worker.process:
                killed += 1
                desk.worker.process.kill()
        time.sleep(0.002)
    assert many.state == "done" and killed and sum(desk.worker.starts for desk in service.desks) > 2
    assert pixels(many) == right(*range(1, 9)) and len(many.images) == 8
    one, other = submitted(service), submitted(service, client="another", seeds="6")
    until(lambda: len(service.drawing) == 2)
    (desk,) = (desk for desk in service.desks if desk.drawing is one)
    os.kill(until(lambda: desk.worker.process).pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    assert ended(one, other) == ["done", "done"] and set(other.work) == {other.device}


@pytest.mark.parametrize("broken", ["dies", "full"])
def test_a_device_that_cannot_draw_loses_no_request(two: Callable[..., Any], broken: str) -> None:
    server = two(("--full",))
    service = server.service
    if broken == "dies":
        service.desks[0].worker.command = (sys.executable, "-c", "raise SystemExit('no driver')")
    tickets = [submitted(service, client=str(number), seeds=f"{number}") for number in range(3)]
    tickets.append(submitted(service, seeds="7,8,9"))
    assert set(ended(*tickets)) == {"done"} and len(tickets[-1].images) == 3
    assert {name for ticket in tickets for name in ticket.work} == {"cpu:2"}


def test_a_request_that_a_broken_device_took_waits_for_another_that_is_busy(
    two: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 0.1)
    service = two((), STEPS).service
    service.desks[0].worker.command = (sys.executable, "-c", "raise SystemExit('no driver')")
    hold(service.desks[1], service.plan({"words": ("a cat",), "size": "64x64"}))
    busy = submitted(service, seeds="1", **LONG)
    until(lambda: set(busy.work) == {"cpu:2"} and busy.step[0])
    late = submitted(service, client="another")
    until(lambda: service.desks[0].worker.starts >= 2 and service.desks[0].drawing is late)
    assert late.state == "drawing"
    service.cancel(busy)
    assert ended(late, busy) == ["done", "cancelled"] and set(late.work) == {"cpu:2"}


def test_two_devices_that_can_draw_nothing_say_so_and_do_not_wait_for_each_other(two: Callable[..., Any]) -> None:
    service = two(("--full",), ("--full",)).service
    tickets = [submitted(service, client=name, seeds="1,2") for name in "ab"]
    assert ended(*tickets) == ["failed", "failed"]
    assert [type(ticket.error) for ticket in tickets] == [OutOfMemory, OutOfMemory]


def test_without_a_device_that_can_draw_a_request_fails_with_the_reason(two: Callable[..., Any]) -> None:
    service = two().service
    for desk in service.desks:
        desk.worker.command = (sys.executable, "-c", "raise SystemExit('no driver')")
    ticket = submitted(service, seeds="1,2")
    assert ended(ticket) == ["failed"] and ticket.error is not None and "no driver" in ticket.error.message
    assert {desk.worker.starts for desk in service.desks} != {0}


def test_a_request_that_kills_every_worker_fails_alone(two: Callable[..., Any]) -> None:
    poison = ("--poison", "poison")
    service = two(poison, poison).service
    ticket = submitted(service, "poison")
    assert ended(ticket) == ["failed"] and isinstance(ticket.error, OutOfMemory)  # what kills a process most often
    assert sum(desk.worker.starts for desk in service.desks) == 3
    assert ended(submitted(service)) == ["done"]


def test_what_is_drawn_when_the_server_ends_is_kept_to_be_resumed(two: Callable[..., Any], tmp_path: Path) -> None:
    service = two(STEPS, STEPS).service
    drawn = [submitted(service, client=name, **LONG) for name in "ab"]
    until(lambda: all(ticket.step[0] for ticket in drawn))
    waits = submitted(service, seeds="7,8")
    service.stop(grace=0)
    assert set(service.unfinished) == {ticket.destination.run for ticket in (*drawn, waits)}
    assert [desk.worker.process for desk in service.desks] == [None, None]
    for ticket in (drawn[0], waits):
        with pytest.raises(SystemExit) as left:
            run(["resume", str(ticket.destination.records), "--engine", "fake", "-q", "--no-show"])
        assert not left.value.code
        assert runs.recover(runs.read(ticket.destination.records)).missing == ()
    assert found_runs.to_resume(str(tmp_path / "images")) == drawn[1].destination.records


def test_what_a_device_is_given_is_what_it_holds_already(two: Callable[..., Any]) -> None:
    """Two models, two workers: each stays where it is loaded, as long as that worker is free."""
    service = two().service
    plan = service.plan({"words": ("a cat",), "size": "64x64", "steps": "1"})
    named = {name: replace(plan, model=replace(plan.model, name=name)) for name in ("one", "two")}
    for desk, name in zip(service.desks, named, strict=True):
        hold(desk, named[name])
    for name in ("two", "one", "one", "two", "two", "one"):
        until(lambda: len(service.line._free) == 2)
        assert ended(service.submit(named[name])) == ["done"]
    assert [desk.worker.held for desk in service.desks] == [("one",), ("two",)]


class Holding:
    """Takes tickets, and holds one model."""

    def __init__(self, name: str, model: str = "", gpu: bool = True) -> None:
        self.name, self.model, self.gpu = name, model, gpu

    def suits(self, ticket: Ticket) -> Suits | None:
        return Suits(gpu=self.gpu, held=ticket.plan.model.name == self.model, room=-bool(self.model))


@pytest.fixture
def ticket(serve: Serve) -> Callable[..., Ticket]:
    """Tickets that nobody draws."""
    service = serve().service
    plan = service.plan({"words": ("a cat",), "size": "64x64", "steps": "1"})
    where = submitted(service).destination

    def make(client: str, model: str = "one") -> Ticket:
        return Ticket(
            plan=replace(plan, model=replace(plan.model, name=model)), destination=where, client=client
        )  # fmt: skip

    return make


def test_a_loaded_model_goes_before_others_only_so_often(ticket: Callable[..., Ticket]) -> None:
    line, taker = Line(Room(requests=100, share=1)), Holding("a", "one")
    other = ticket("first", "two")
    line.put(other)
    loaded = [ticket("second") for _ in range(10)]
    for one in loaded:
        line.put(one)
    taken = [line.take(0, taker) for _ in range(11)]
    assert taken.index(other) == MOST_PASSED and [one for one in taken if one is not other] == loaded


@pytest.mark.parametrize(
    "best, others",
    [
        (Holding("a", "one"), [Holding("b", "two"), Holding("c", "one", gpu=False)]),
        (Holding("a", "two"), [Holding("b", "one", gpu=False)]),
        (Holding("a"), [Holding("b", "two"), Holding("c", "two")]),
    ],
)
def test_a_ticket_is_left_to_the_free_worker_that_suits_it_best(
    ticket: Callable[..., Ticket], best: Holding, others: list[Holding]
) -> None:
    line = Line(Room())
    taken: dict[str, Any] = {}
    takers = [
        threading.Thread(target=lambda one=one: taken.update({one.name: line.take(60, one)})) for one in (*others, best)
    ]
    for thread in takers:
        thread.start()
    until(lambda: len(line._free) == len(takers))
    first, second = ticket("client"), ticket("client")
    line.put(first)
    until(lambda: taken)
    assert taken == {"a": first}
    line.put(second)  # the best has something to do
    until(lambda: len(taken) == 2)
    line.close()
    for thread in takers:
        thread.join(60)
    assert second in taken.values()


def test_seconds_to_wait_are_those_of_so_many_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_HOME", str(tmp_path))
    service = Service(Settings(typed={"devices": "cpu:2x1", "output": str(tmp_path)}, engine="fake"))  # nobody draws
    plan = service.plan({"words": ("a cat",), "size": "64x64"})
    takes = replace(plan, seconds=Seconds(total=12.0, load=2.0, step=1.0))
    tickets = [service.submit(takes, client) for client in "abcd"]
    assert service.seconds_ahead() == 20.0  # four of ten seconds, without loading, by two
    assert [job_json.eta(service, one) for one in tickets] == [12.0, 12.0, 24.0, 24.0]


def test_unlike_cards_draw_by_plans_of_their_own_and_one_that_is_too_small_draws_nothing(serve: Serve) -> None:
    with pretend(device("24GiB"), device("8GiB"), device("0.52GiB")):
        service = serve(typed={"devices": "all"}).service
        for desk in service.desks:
            desk.worker.command = (*FRAGILE, *STEPS)
        plan = service.plan({"words": ("a cat",), "size": "64x64", "steps": "50"})
        assert [one.name for one in plan.workers] == ["cuda:0", "cuda:1"] and "cuda:2 is left out" in str(plan.warnings)
        tickets = [service.submit(plan, client) for client in "abc"]
        assert ended(*tickets) == ["done"] * 3
    assert {ticket.device for ticket in tickets} == {"cuda:0", "cuda:1"}
    for ticket in tickets:
        assert ticket.plan.setup.device == ticket.plan.hardware.device == ticket.plan.request.device == ticket.device
        assert not ticket.plan.workers and ticket.plan.decisions


def test_what_the_workers_hold_counts_as_free_to_be_shared_out_anew(
    two: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, seen = two().service, survey.look()
    for desk in service.desks:
        monkeypatch.setattr(desk.worker, "resident", lambda: 1 << 30)
    cpu = replace(survey.choose("cpu", seen), free=4 << 30, ram_free=4 << 30, total=64 << 30, ram_total=64 << 30)
    monkeypatch.setattr(several, "choose", lambda name, survey: cpu)
    seats = planning.seats_of(service.settings.typed, service._without_own)
    assert [seat.hardware.free for seat in seats] == [3 << 30, 3 << 30]  # of six for both


def test_an_image_is_the_one_that_generate_draws_on_one_of_the_devices(serve: Serve, tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    make_checkpoint.write_folder(model, "sd15", tiny=True)
    flags = ["-m", str(model), "--dtype", "fp32", "--pin", "execution=eager", "--pin", "attention=fused"]
    asks = ["a cat", "--seed", "5", "--steps", "2", "--size", "64x64", *flags, "--devices", "cpu:1x1"]
    with pytest.raises(SystemExit) as left:
        run(["generate", *asks, "-q", "--no-show", "-o", str(tmp_path / "generated")])
    assert not left.value.code
    (records,) = found_runs.found([tmp_path / "generated"])
    generated = [intent.pixel_sha256 for intent in runs.read(records).intents.values()]
    typed = {"devices": "cpu:2x1", "model": str(model), "dtype": "fp32", "pins": ["execution=eager", "attention=fused"]}
    ticket = submitted(serve(typed=typed, engine="local").service)
    assert ended(ticket) == ["done"] and list(pixels(ticket).values()) == generated
    assert (ticket.plan.setup.threads, ticket.plan.hardware.threads) == (1, 1)
