"""Several workers at once: their batches come interleaved, and every record says what it would say of each alone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from record_samples import destination, plan

from sdcli.draw import fake
from sdcli.events import Decoded, Degraded, Event, Planned, Saved, Step
from sdcli.plan.plan import Plan, Setup
from sdcli.record import report as reports
from sdcli.record.metadata.read import read as read_settings
from sdcli.record.sinks.progress import Progress, RunProgress
from sdcli.record.store import store


def of_two_workers(of: Plan) -> Iterator[Event]:
    """Even batches drawn by one worker, odd ones by another, an event of each in turn."""
    yield Planned(plan=of)
    streams = []
    for first, name in ((0, "one"), (1, "two")):
        batches = [(number, of.batch(number)) for number in range(first, len(of.batches), 2)]
        streams.append([replace(event, worker=name) for event in fake.run(of, batches)])
    for pair in zip_longest(*streams):
        yield from (event for event in pair if event is not None)


def planned(images: int, batch_size: int) -> Plan:
    of = plan(images=images)
    numbers = range(0, images, batch_size)
    batches = tuple(tuple(range(first, min(first + batch_size, images))) for first in numbers)
    return replace(of, request=replace(of.request, batch_size=batch_size), batches=batches)


def test_what_two_workers_draw_is_stored_and_reported_as_if_one_had(tmp_path: Path) -> None:
    of = planned(5, 2)
    saved: dict[str, dict[int, tuple[int, int]]] = {}
    reported: dict[str, list[object]] = {}
    for name, stream in (("two", of_two_workers(of)), ("one", iter([Planned(plan=of), *fake.run(of)]))):
        through = list(store(stream, destination(tmp_path / name)))
        positions = {}
        for event in through:
            if isinstance(event, Saved):
                chunk = read_settings(event.path).record
                assert chunk is not None and chunk.job == of.jobs[event.index]
                positions[event.index] = (chunk.batch.size, chunk.batch.position)
        saved[name] = positions
        report = reports.fold(iter(through), started="", run="r", seconds=1.0)
        images = [(one.index, one.status, one.tokens, one.pixel_sha256, one.job) for one in report.images]
        reported[name] = [images, [(one.index, one.images, one.steps) for one in report.batches]]
    assert saved["two"] == saved["one"] == {0: (2, 0), 1: (2, 1), 2: (2, 0), 3: (2, 1), 4: (1, 0)}
    assert reported["two"] == reported["one"]


def test_a_fallback_of_one_worker_is_recorded_with_its_own_images_only(tmp_path: Path) -> None:
    of = planned(4, 1)
    fallback = Degraded(
        worker="one", batch=0, phase="decode", step=None, before={"vae": "whole"}, after={"vae": "tile-256"},
        because="memory", changes_pixels=True,
    )  # fmt: skip
    lower = replace(of.setup, vae="tile-256")

    def stream() -> Iterator[Event]:
        for event in of_two_workers(of):
            if isinstance(event, Decoded) and event.batch == 0:
                yield fallback
            if isinstance(event, Decoded) and event.worker == "one":  # it stays on the fallback
                event = replace(event, setup=lower)
            yield event

    setups: dict[int, tuple[Setup, int]] = {}
    for event in store(stream(), destination(tmp_path)):
        if isinstance(event, Saved):
            record = read_settings(event.path).record
            assert record is not None
            setups[event.index] = (record.setup, len(record.degraded))
    assert setups == {0: (lower, 1), 1: (of.setup, 0), 2: (lower, 0), 3: (of.setup, 0)}


def test_progress_counts_every_image_and_step_once_whatever_the_batches_are() -> None:
    """Prompts are encoded ahead of all batches, and the last batch is smaller."""
    of = planned(5, 2)
    for stream in ([Planned(plan=of), *fake.run(of)], list(of_two_workers(of))):
        run, seen = RunProgress(), []
        run.plan(of)
        for event in stream:
            if isinstance(event, Step):
                seen.append(run.step(event, 0.1))
        assert {(one.first, one.last, one.images) for one in seen} == {(1, 2, 5), (3, 4, 5), (5, 5, 5)}
        assert [one.done for one in seen] == list(range(1, seen[-1].total + 1))
        assert {one.total for one in seen} == {sum(of.jobs[batch[0]].unet_calls for batch in of.batches)}


def test_lines_of_progress_name_the_images_of_the_batch_that_is_drawn() -> None:
    of, said = planned(5, 2), io.StringIO()
    sink = Progress(said, clock=iter(range(0, 10**6, 100)).__next__, columns=80)
    for event in [Planned(plan=of), *fake.run(of)]:
        sink(event)
    places = [line.split()[1] for line in said.getvalue().splitlines() if line.strip().startswith("image")]
    assert set(places) == {"1-2/5", "3-4/5", "5/5"}


def test_prompts_that_no_plan_lists_are_counted_as_they_come() -> None:
    of = planned(1, 1)
    run = RunProgress()
    run.plan(of)
    later = [(1, (replace(of.jobs[0], index=1),)), (2, (replace(of.jobs[0], index=2),))]
    last = None
    for event in fake.run(of, iter([(0, of.batch(0)), *later])):
        if isinstance(event, Step):
            last = run.step(event, 0.1)
    assert last is not None and (last.first, last.last, last.images) == (3, 3, 3) and last.done == last.total


def test_a_report_read_back_has_its_jobs_whole(tmp_path: Path) -> None:
    of = planned(2, 1)
    report = reports.fold(
        store(iter([Planned(plan=of), *fake.run(of)]), destination(tmp_path)), started="", run="r", seconds=1.0
    )
    assert [image.job for image in report.images] == list(of.jobs)
    again = reports.from_json(json.loads(b"".join(reports.pieces(report))))
    assert [image.job for image in again.images] == list(of.jobs)
