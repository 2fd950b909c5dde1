"""Reports of more images than stay in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import pytest
from record_samples import RUN, job, plan

from sdcli import reading
from sdcli.events import Decoded, Denoised, Encoded, Event, Failed, Planned, Saved, Step
from sdcli.record import report as reports
from sdcli.record.entries import tally
from sdcli.record.report import Folding, Report
from sdcli.record.rows import MOST_IN_MEMORY, Rows

IMAGES = MOST_IN_MEMORY + 50
FAILS, SUSPECT = 7, 11


def of_two_workers() -> Iterator[Event]:
    """The second is ahead by one, so that no number follows its own."""
    of = plan(jobs=[job()])
    yield Planned(plan=of)
    for number in (place ^ 1 for place in range(IMAGES)):
        one = job(number, prompt=f"a cat, number {number}")
        yield Encoded(batch=number, tokens=(5,), seconds=0.25)
        yield Step(batch=number, step=1, of=1, seconds=0.5)
        yield Denoised(batch=number, seconds=0.5)
        if number == FAILS:
            yield Failed(batch=number, index=number, error={"message": "no", "hint": "again"})
            continue
        yield Decoded(batch=number, index=number, job=one, width=16, height=16, seconds=0.125)
        yield Saved(
            batch=number, index=number, status="suspect" if number == SUSPECT else "saved", file=f"{number}.png",
            path="", format="png", bytes=10, width=16, height=16, pixel_sha256="p", file_sha256="f", seconds=0.125,
        )  # fmt: skip


def folded(events: Iterable[Event]) -> Report:
    folding = Folding(started="", run=RUN, clock=lambda: 1.0)
    for event in events:
        folding(event)
    return folding.report()


def check(report: Report) -> None:
    images, batches = list(report.images), list(report.batches)
    assert [image.index for image in images] == [batch.index for batch in batches] == list(range(IMAGES))
    assert [image.index for image in images if image.status != "saved"] == [FAILS, SUSPECT]
    assert images[-1].job == job(IMAGES - 1, prompt=f"a cat, number {IMAGES - 1}")
    assert all(batch.encode_seconds == 0.25 and batch.steps == 1 for batch in batches)
    assert report.tally == tally(images, batches)
    assert report.error is not None and report.exit_code == 5
    assert report.error["message"] == f"1 of {IMAGES} images could not be saved; 1 of {IMAGES} images came out as one flat colour"  # fmt: skip  # noqa: E501


def test_a_report_of_more_images_than_stay_in_memory_has_each_in_its_place(tmp_path: Path) -> None:
    report = folded(of_two_workers())
    assert isinstance(report.images, Rows) and isinstance(report.batches, Rows)
    check(report)
    reports.write(report, tmp_path / "report.json")
    read = reports.from_json(reading.read((tmp_path / "report.json").read_bytes(), ""))
    assert list(read.images) == list(report.images) and list(read.batches) == list(report.batches)


def test_where_the_disk_has_no_room_for_a_long_report_it_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(buffering: int) -> IO[bytes]:
        return open("/dev/full", "r+b", buffering)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    numbers: Rows[int] = Rows(lambda row: b"%d" % row, int, most=3)
    for number in (5, 3, 4, 1, 2, 0):
        numbers.put(number, number * number)
    assert list(numbers) == [0, 1, 4, 9, 16, 25] and len(numbers) == 6 and numbers[2] == 4 and numbers[-1] == 25


def test_rows_are_found_in_memory_and_in_the_file() -> None:
    numbers: Rows[int] = Rows(lambda row: b"%d" % row, int, most=3)
    for number in (5, 3, 4, 1, 2, 0):
        numbers.put(number, number * number)
    assert [numbers.find(number) for number in range(7)] == [0, 1, 4, 9, 16, 25, None]
    assert sorted(numbers.numbers()) == list(range(6)) and numbers[1:3] == (1, 4) and numbers[-1] == 25
