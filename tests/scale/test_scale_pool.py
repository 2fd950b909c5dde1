"""Several workers draw one plan: every image once and with its own pixels, whatever happens to them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sdcli import __version__
from sdcli.errors import Bug, DeviceUnusable, OutOfMemory, SdcliError
from sdcli.events import Decoded, Degraded, Event, Failed, Planned, Saved, Warned
from sdcli.plan.plan import Plan
from sdcli.record import report as reports
from sdcli.record.store import store
from sdcli.scale.pool import Pool
from tests.record.record_samples import destination, job, plan
from tests.scale.images_of import alone, pixels

FRAGILE = (sys.executable, "-P", "-m", "scripts.fragile_worker")


def planned(images: int, *names: str) -> Plan:
    of = replace(plan(images=images), version=__version__)
    return replace(of, workers=tuple(of.worker(name) for name in names))


def each(**flags: Sequence[str]) -> Pool:
    """A pool whose workers of these names are started with these flags, the others with none."""
    return Pool("fake", lambda own: (*FRAGILE, *flags.get(own.name, ())))


def drawn(pool: Pool, of: Plan, **more: object) -> Iterator[Event]:
    yield Planned(plan=of)
    with pool:
        yield from pool.run(of, **more)  # type: ignore[arg-type]


def children() -> list[psutil.Process]:
    """That run: one that another test left behind, ended, is none of ours."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [one] if one.status() != psutil.STATUS_ZOMBIE else []
    return found


def killing(events: Iterator[Event], every: int) -> Iterator[Event]:
    """Kills a worker, whichever it is, each time so many images have come."""
    seen = 0
    for event in events:
        yield event
        seen += isinstance(event, Decoded)
        if isinstance(event, Decoded) and seen % every == 0:
            for child in children()[:1]:
                child.kill()


def test_workers_that_are_killed_lose_no_image_and_draw_none_twice(tmp_path: Path) -> None:
    of = planned(40, "one", "two")
    slow = ("--seconds", "0.02")
    through = list(store(killing(drawn(each(one=slow, two=slow), of), 7), destination(tmp_path)))
    assert pixels(through) == alone(of)
    assert any(isinstance(event, Warned) and event.code == "worker-died" for event in through)
    saved = [event for event in through if isinstance(event, Saved)]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(event.file for event in saved)
    assert sorted(event.file for event in saved) == [f"{n + 1:04d}-a-cat-{42 + n}.png" for n in range(40)]
    assert not list(tmp_path.rglob("*.part")) and not children()
    report = reports.fold(through, started="", run="r", seconds=1.0)
    assert report.exit_code == 0 and sum(one.images for one in report.workers) == 40
    assert [(one.name, one.device) for one in report.workers] == [("one", "a CPU"), ("two", "a CPU")]


def test_a_batch_that_ends_every_worker_is_given_up_after_three_and_the_others_are_drawn() -> None:
    jobs = [job(index, prompt="poison" if index == 3 else "a cat") for index in range(6)]
    of = replace(plan(jobs=jobs), version=__version__)
    of = replace(of, workers=(of.worker("one"), of.worker("two")))
    poison = ("--poison", "poison")
    events = list(drawn(each(one=poison, two=poison), of))
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.index == 3 and failed.error["type"] == "out_of_memory"  # what kills a process most often
    assert pixels(events).keys() == {0, 1, 2, 4, 5}
    assert sum(isinstance(event, Warned) for event in events) == 3


def test_a_worker_of_another_version_draws_nothing() -> None:
    of = replace(planned(2, "one"), version="0.0.9")
    with pytest.raises(DeviceUnusable, match=r"there, and 0\.0\.9 here"):
        list(drawn(each(), of))


@pytest.mark.parametrize("error", [OutOfMemory, Bug])
def test_a_worker_that_cannot_go_on_is_left_out_and_the_others_draw_everything(error: type[SdcliError]) -> None:
    of = planned(6, "one", "two")
    broken = (sys.executable, "-c", "raise SystemExit('no driver')")
    pool = each(one=("--full",)) if error is OutOfMemory else Pool(
        "fake", lambda own: broken if own.name == "one" else FRAGILE
    )  # fmt: skip
    events = list(drawn(pool, of))
    assert pixels(events) == alone(of)
    left_out = [event.message for event in events if isinstance(event, Warned) and event.code == "left-out"]
    assert all("one is left out from here on: " in message for message in left_out)
    assert len(left_out) <= 1  # none, where the other was faster than its end


def test_without_a_worker_that_can_draw_the_run_ends_with_the_reason_of_the_last() -> None:
    of = planned(4, "one", "two")
    with pytest.raises(OutOfMemory, match="there is no memory left"):
        list(drawn(each(one=("--full",), two=("--full",)), of))
    assert not children()


def test_closing_the_stream_ends_every_worker_after_its_step() -> None:
    of = planned(50, "one", "two")
    stream = drawn(each(one=("--seconds", "0.05"), two=("--seconds", "0.05")), of)
    for event in stream:
        if isinstance(event, Decoded):
            break
    assert len(children()) == 2
    stream.close()  # type: ignore[attr-defined]
    assert not children()


def test_workers_keep_what_they_loaded_from_one_run_to_the_next() -> None:
    of = planned(4, "one")
    with each() as pool:
        first = pixels(list(pool.run(of)))
        (process,) = children()
        assert pixels(list(pool.run(of))) == first == alone(of)
        assert children() == [process]


def test_a_worker_stays_on_its_fallback_and_the_others_on_the_plan() -> None:
    of = planned(12, "one", "two")
    slow = ("--seconds", "0.1")
    events = list(drawn(each(one=(*slow, "--fallback"), two=slow), of))
    lower = replace(of.setup, vae="tile-256")
    (fallback,) = [event for event in events if isinstance(event, Degraded)]
    assert fallback.worker == "one"
    by_one = [event.setup for event in events if isinstance(event, Decoded) and event.worker == "one"]
    assert by_one[1:] == [lower] * (len(by_one) - 1)  # the fake engine draws the first as planned all the same
    assert {event.setup for event in events if isinstance(event, Decoded) and event.worker == "two"} <= {of.setup}


def test_at_the_end_an_idle_worker_draws_what_takes_another_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.scale.pool.GRACE", 0.1)  # it would sleep for a minute
    of = planned(6, "slow", "fast")
    events = list(drawn(each(slow=("--seconds", "60")), of))
    assert pixels(events) == alone(of)
    assert {event.worker for event in events if isinstance(event, Decoded)} == {"fast"}
    assert not any(isinstance(event, Warned) for event in events) and not children()
