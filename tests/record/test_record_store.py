"""The store: every image whole under its name or absent, whatever fails, and found again afterwards."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from record_samples import RUN, SIDE, decoded, destination, job, pixels, plan, stream

from sdcli.errors import BadFile, CannotWrite, Usage
from sdcli.events import Decoded, Degraded, Done, Event, Failed, Interrupted, Planned, Saved, Warned
from sdcli.files import REAL, Files
from sdcli.plan.plan import Plan
from sdcli.record import runs
from sdcli.record.metadata.read import read as read_settings
from sdcli.record.store import store


def saved(events: list[Event]) -> list[Saved]:
    return [event for event in events if isinstance(event, Saved)]


def journal(folder: Path) -> list[dict[str, object]]:
    text = (folder / "runs" / RUN / "run.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_each_image_is_saved_under_its_name_and_its_hashes_are_true(tmp_path: Path) -> None:
    from PIL import Image

    of = plan(images=3)
    events = list(store(stream(of), destination(tmp_path)))
    assert [one.file for one in saved(events)] == ["0001-a-cat-42.png", "0002-a-cat-43.png", "0003-a-cat-44.png"]
    for one in saved(events):
        data = Path(one.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (one.bytes, one.file_sha256)
        raw = Image.open(io.BytesIO(data)).convert("RGB").tobytes()
        assert raw == pixels(of.jobs[one.index].seed)
        assert hashlib.sha256(raw).hexdigest() == one.pixel_sha256
    assert sorted(os.listdir(tmp_path)) == ["0001-a-cat-42.png", "0002-a-cat-43.png", "0003-a-cat-44.png", "runs"]


def test_all_other_events_pass_unchanged_and_decoded_comes_before_its_saved(tmp_path: Path) -> None:
    of = plan(images=2, batch_size=2)
    through = list(store(stream(of), destination(tmp_path)))
    assert [event for event in through if not isinstance(event, Saved)] == list(stream(of))
    for place, event in enumerate(through):
        if isinstance(event, Decoded):
            after = through[place + 1]
            assert isinstance(after, Saved) and after.index == event.index


def test_an_image_is_on_the_disk_before_anyone_sees_its_event(tmp_path: Path) -> None:
    for event in store(stream(plan(images=2)), destination(tmp_path)):
        if isinstance(event, Decoded):
            assert len(list(tmp_path.glob("*.png"))) == event.index + 1


def test_the_journal_has_the_plan_then_intent_and_done_of_each_image(tmp_path: Path) -> None:
    of = plan(images=2)
    list(store(stream(of), destination(tmp_path), environment={"torch": "2.13.0"}))
    lines = journal(tmp_path)
    assert [line["type"] for line in lines] == ["run", "intent", "done", "intent", "done", "end"]
    assert lines[0]["schema"] == "sdcli.run/1" and lines[0]["environment"] == {"torch": "2.13.0"}
    assert "ways" not in lines[0]["plan"]  # type: ignore[operator]
    assert (lines[-1]["status"], lines[-1]["exit_code"]) == ("done", 0)
    assert all(list(line)[-1] == "crc" for line in lines)


def test_the_crc_is_that_of_the_line_without_it(tmp_path: Path) -> None:
    import zlib

    list(store(stream(plan()), destination(tmp_path)))
    for raw in (tmp_path / "runs" / RUN / "run.jsonl").read_bytes().splitlines():
        crc = json.loads(raw)["crc"]
        without = raw.replace(b',"crc":"' + crc.encode() + b'"', b"")
        assert f"{zlib.crc32(without):08x}" == crc


def test_the_settings_inside_name_the_job_the_model_and_the_pixels(tmp_path: Path) -> None:
    of = plan(images=2, batch_size=2)
    events = list(store(stream(of), destination(tmp_path)))
    for one in saved(events):
        record = read_settings(one.path).record
        assert record is not None
        assert record.job == of.jobs[one.index]
        assert record.pixel_sha256 == one.pixel_sha256
        assert record.model.weights == {}  # of a model without files
        assert (record.batch.size, record.batch.position, record.batch.members) == (2, one.index, of.jobs)


def test_nothing_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(b"mine")
    (tmp_path / "7-2.png").mkdir()
    (tmp_path / "7-3.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "7-4.png")
    jobs = [job(0, seed=7), job(1, seed=7)]
    events = list(store(stream(plan(jobs=jobs)), destination(tmp_path, kind="template", pattern="{seed}.png")))
    assert [one.file for one in saved(events)] == ["7-5.png", "7-6.png"]
    assert (tmp_path / "7.png").read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


def test_overwrite_replaces_what_was_there_before_but_no_image_of_this_run(tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(b"old")
    jobs = [job(0, seed=7), job(1, seed=7, prompt="a dog")]
    where = destination(tmp_path, kind="template", pattern="{seed}.png", overwrite=True)
    events = list(store(stream(plan(jobs=jobs)), where))
    assert [one.file for one in saved(events)] == ["7.png", "7-2.png"]
    assert read_settings(tmp_path / "7.png").values["prompts"] == ("a cat",)


def test_a_name_taken_between_the_look_and_the_link_is_followed_by_the_next_number(tmp_path: Path) -> None:
    class Racing(Files):
        def link(self, source: Path, target: Path) -> None:
            if target.name.startswith("0001"):
                target.write_bytes(b"another process")
            super().link(source, target)

    [one] = saved(list(store(stream(plan()), destination(tmp_path), files=Racing())))
    assert one.file == "0002-a-cat-42.png"
    assert (tmp_path / "0001-a-cat-42.png").read_bytes() == b"another process"
    recovered = runs.recover(runs.read(tmp_path / "runs" / RUN))
    assert recovered.done[0].file == "0002-a-cat-42.png"


@pytest.mark.parametrize("look", [True, False], ids=["before the look", "between the look and the link"])
def test_a_file_that_was_named_and_taken_by_another_run_meanwhile_is_refused_as_one_that_was_there(
    tmp_path: Path, look: bool
) -> None:
    of = destination(tmp_path, kind="file", pattern="x.png")

    class Late(Files):
        def link(self, source: Path, target: Path) -> None:
            if not target.exists():
                target.write_bytes(b"of another run")
            super().link(source, target)

    if look:
        (tmp_path / "x.png").write_bytes(b"of another run")
    events: list[Event] = []
    with pytest.raises(CannotWrite, match="already exists") as caught:
        for event in store(stream(plan()), of, files=REAL if look else Late()):
            events.append(event)
    assert caught.value.hint.startswith("--overwrite") and any(isinstance(event, Failed) for event in events)
    assert (tmp_path / "x.png").read_bytes() == b"of another run" and not (tmp_path / "x-2.png").exists()


def test_two_runs_in_one_folder_at_once_never_touch_each_others_images(tmp_path: Path) -> None:
    of = plan(images=6)
    one = store(stream(of), destination(tmp_path))
    two = store(stream(of), destination(tmp_path, run="other", records=tmp_path / "runs" / "other"))
    events: list[Event] = []
    for pair in zip(one, two, strict=True):
        events += pair
    files = [event.file for event in saved(events)]
    assert len(set(files)) == 12
    assert all(hashlib.sha256(Path(e.path).read_bytes()).hexdigest() == e.file_sha256 for e in saved(events))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_without_hard_links_the_name_is_claimed_first_and_still_nothing_is_replaced(
    tmp_path: Path, number: int
) -> None:
    class NoLinks(Files):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(number, os.strerror(number))

    (tmp_path / "7.png").write_bytes(b"mine")
    where = destination(tmp_path, kind="template", pattern="{seed}.png")
    [one] = saved(list(store(stream(plan(jobs=[job(seed=7)])), where, files=NoLinks())))
    assert one.file == "7-2.png"
    assert hashlib.sha256(Path(one.path).read_bytes()).hexdigest() == one.file_sha256
    assert (tmp_path / "7.png").read_bytes() == b"mine"


def test_short_writes_are_finished(tmp_path: Path) -> None:
    class Slow(Files):
        def write(self, file: int, data: bytes | memoryview) -> int:
            return super().write(file, bytes(data[:7]))

        def sync(self, file: int) -> None:
            pass

    [one] = saved(list(store(stream(plan()), destination(tmp_path), files=Slow())))
    assert hashlib.sha256(Path(one.path).read_bytes()).hexdigest() == one.file_sha256
    assert len(runs.read(tmp_path / "runs" / RUN).intents) == 1


def test_a_flat_image_is_written_and_suspect(tmp_path: Path) -> None:
    of = plan(images=2)
    events = [Planned(plan=of), decoded(of, 0, 0, pixels=bytes(SIDE * SIDE * 3)), decoded(of, 1, 1), Done()]
    through = list(store(iter(events), destination(tmp_path)))
    assert [one.status for one in saved(through)] == ["suspect", "saved"]
    assert Path(saved(through)[0].path).is_file()
    [warning] = [event for event in through if isinstance(event, Warned)]
    assert (warning.code, "one flat colour" in warning.message) == ("flat-picture", True)
    assert journal(tmp_path)[-1]["exit_code"] == 5


def test_settings_too_long_for_the_format_are_left_out_with_a_warning(tmp_path: Path) -> None:
    of = plan(jobs=[job(prompt="猫" * 20_000)])
    through = list(store(stream(of), destination(tmp_path, format="jpg")))
    assert [event.code for event in through if isinstance(event, Warned)] == ["metadata-left-out"]
    with pytest.raises(BadFile):
        read_settings(saved(through)[0].path)


def test_a_failed_image_is_noted_and_the_others_go_on(tmp_path: Path) -> None:
    of = plan(images=2)
    failure = {"code": 5, "type": "images_failed", "message": "not finite"}
    fallback = Degraded(
        batch=1, phase="decode", step=None, before={"vae": "whole"}, after={"vae": "tile-512"}, because="memory",
        changes_pixels=True,
    )  # fmt: skip
    events = [Planned(plan=of), Failed(batch=0, index=0, error=failure), fallback, decoded(of, 1, 1), Done()]
    through = list(store(iter(events), destination(tmp_path)))
    assert [one.index for one in saved(through)] == [1]
    run = runs.read(tmp_path / "runs" / RUN)
    assert run.failed == {0: failure} and run.degraded == (fallback,)
    assert run.end is not None and (run.end["status"], run.end["exit_code"]) == ("partial", 5)
    record = read_settings(saved(through)[0].path).record
    assert record is not None and record.degraded[0]["to"] == {"vae": "tile-512"}


@pytest.mark.parametrize(("signal", "code"), [("interrupted", 130), ("terminated", 143)])
def test_an_interrupted_run_says_so_in_its_last_line(tmp_path: Path, signal: str, code: int) -> None:
    of = plan(images=2)
    events = [Planned(plan=of), decoded(of, 0, 0), Interrupted(signal=signal, kept=1)]
    list(store(iter(events), destination(tmp_path)))
    assert (journal(tmp_path)[-1]["status"], journal(tmp_path)[-1]["exit_code"]) == ("interrupted", code)


def test_one_file_keeps_its_records_apart_and_is_found_again(tmp_path: Path) -> None:
    images, state = tmp_path / "images", tmp_path / "state" / "runs" / RUN
    where = destination(images, kind="file", pattern="cat.png", records=state)
    list(store(stream(plan()), where))
    assert os.listdir(images) == ["cat.png"]
    run = runs.read(state)
    assert run.destination == where
    assert list(runs.recover(run).done) == [0]


def test_a_folder_behind_a_link_is_cannot_write_and_nothing_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "sd15").symlink_to(tmp_path)
    through: list[Event] = []
    with pytest.raises(CannotWrite, match="would be outside"):
        for event in store(stream(plan()), destination(folder, kind="template", pattern="{model}/{seed}.png")):
            through.append(event)
    assert isinstance(through[-1], Failed)
    assert sorted(os.listdir(tmp_path)) == ["out"]


@pytest.mark.parametrize("pattern", ["", "{model}/{seed}.png"], ids=["numbered", "template"])
def test_a_folder_that_is_gone_is_not_made_anew_and_is_gone_on_with_once_it_is_back(
    tmp_path: Path, pattern: str
) -> None:
    of, away = plan(images=3), tmp_path / "away"
    where = destination(tmp_path / "out", kind="template" if pattern else "numbered", pattern=pattern)
    through: list[Event] = []
    with pytest.raises(CannotWrite, match="the folder is gone") as refused:
        for event in store(stream(of), where):
            through.append(event)
            if isinstance(event, Saved):
                where.folder.rename(away)
    assert "sdcli resume" in refused.value.hint and isinstance(through[-1], Failed)
    assert os.listdir(tmp_path) == ["away"] and len(list(away.rglob("*.png"))) == 1
    away.rename(where.folder)
    check_and_resume(of, where.folder)


# --- faults


class Faulty(Files):
    """Fails the `nth` call of one kind (0: none), once or from then on; counts all. Syncing is counted, not done."""

    KINDS = ("create", "write", "sync", "close", "link", "remove", "make_folder", "sync_folder", "truncate", "replace")

    def __init__(self, kind: str = "", nth: int = 0, number: int = errno.EIO, lasting: bool = False) -> None:
        self.kind, self.nth, self.number, self.lasting = kind, nth, number, lasting
        self.counted = dict.fromkeys(self.KINDS, 0)

    def _call(self, kind: str) -> None:
        self.counted[kind] += 1
        count = self.counted[kind]
        if kind == self.kind and self.nth and (count == self.nth or (self.lasting and count > self.nth)):
            raise OSError(self.number, os.strerror(self.number))

    def create(self, path: Path) -> int:
        self._call("create")
        return super().create(path)

    def write(self, file: int, data: bytes | memoryview) -> int:
        try:
            self._call("write")
        except OSError:
            super().write(file, bytes(data[: len(data) // 2]))  # a full disk takes half of it first
            raise
        return super().write(file, data)

    def sync(self, file: int) -> None:
        self._call("sync")

    def close(self, file: int) -> None:
        super().close(file)
        self._call("close")

    def link(self, source: Path, target: Path) -> None:
        self._call("link")
        super().link(source, target)

    def remove(self, path: Path) -> None:
        if path.exists():
            self._call("remove")
        super().remove(path)

    def make_folder(self, path: Path) -> None:
        self._call("make_folder")
        super().make_folder(path)

    def sync_folder(self, path: Path) -> None:
        self._call("sync_folder")

    def truncate(self, file: int, length: int) -> None:
        self._call("truncate")
        super().truncate(file, length)

    def replace(self, source: Path, target: Path) -> None:
        self._call("replace")
        super().replace(source, target)


ERRORS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EACCES]


def attempt(of: Plan, folder: Path, files: Files) -> tuple[list[Event], CannotWrite | None]:
    through: list[Event] = []
    try:
        for event in store(stream(of), destination(folder), files=files):
            through.append(event)
    except CannotWrite as error:
        return through, error
    return through, None


def missing_only(of: Plan, missing: tuple[int, ...]) -> Iterator[Event]:
    yield Planned(plan=of)
    for index in missing:
        yield decoded(of, index, index)
    yield Done()


def check_and_resume(of: Plan, folder: Path) -> None:
    """What is under a final name is whole and listed; resume draws exactly the rest."""
    records = folder / "runs" / RUN
    images = list(folder.rglob("*.png"))
    present = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in images}
    if not (records / "run.jsonl").exists():
        assert not present
        return
    recovered = runs.recover(runs.read(records))
    assert {intent.file: intent.file_sha256 for intent in recovered.done.values()} == present
    assert not list(folder.glob(".*.part")), "recovery removes what could not be removed before"
    assert recovered.missing == tuple(set(range(len(of.jobs))) - set(recovered.done))
    journal = runs.reopen(recovered.run, {})
    again = store(
        missing_only(of, recovered.missing), recovered.run.destination, journal=journal, earlier=recovered.done
    )
    list(again)
    whole = runs.recover(runs.read(records))
    assert whole.missing == () and whole.run.end is not None and whole.run.end["exit_code"] == 0
    expected = [hashlib.sha256(pixels(one.seed)).hexdigest() for one in of.jobs]
    assert [whole.done[index].pixel_sha256 for index in range(len(of.jobs))] == expected
    assert len(list(folder.rglob("*.png"))) == len(of.jobs)


def calls_of_a_good_run(of: Plan, folder: Path) -> dict[str, int]:
    files = Faulty()
    assert attempt(of, folder, files)[1] is None
    return files.counted


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("kind", Faulty.KINDS)
def test_any_failing_call_leaves_whole_images_a_typed_error_and_a_run_to_resume(
    tmp_path: Path, kind: str, lasting: bool
) -> None:
    of = plan(images=2)
    counted = calls_of_a_good_run(of, tmp_path / "good")
    for number in ERRORS:
        for nth in range(1, counted[kind] + 1):
            folder = tmp_path / f"{number}-{nth}"
            folder.mkdir()
            (folder / "keep.txt").write_bytes(b"mine")
            files = Faulty(kind, nth, number, lasting)
            through, error = attempt(of, folder, files)
            if error is not None:
                assert (error.code, bool(error.message), bool(error.hint)) == (7, True, True)
                assert not isinstance(through[-1] if through else None, Decoded), "every image is accounted for"
            else:
                assert kind not in ("create", "write", "sync", "make_folder", "sync_folder")
                assert len(saved(through)) == 2
            if kind != "remove":
                assert not list(folder.glob(".*.part"))
            for one in saved(through):
                assert hashlib.sha256(Path(one.path).read_bytes()).hexdigest() == one.file_sha256
            assert (folder / "keep.txt").read_bytes() == b"mine"
            check_and_resume(of, folder)


def test_the_fault_sweep_reaches_the_calls_it_is_about(tmp_path: Path) -> None:
    counted = calls_of_a_good_run(plan(images=2), tmp_path)
    assert counted["write"] >= 8 and counted["sync"] >= 8 and counted["link"] == 2 and counted["sync_folder"] >= 2


def test_a_line_that_cannot_be_taken_back_is_only_a_torn_end(tmp_path: Path) -> None:
    """The disk is full in the middle of a line, and truncating fails too."""

    class Stuck(Faulty):
        def truncate(self, file: int, length: int) -> None:
            raise OSError(errno.EIO, "stuck")

    of = plan(images=2)
    writes = calls_of_a_good_run(of, tmp_path / "good")["write"]
    for nth in range(2, writes + 1):
        folder = tmp_path / str(nth)
        _, error = attempt(of, folder, Stuck("write", nth, errno.ENOSPC))
        assert error is not None
        check_and_resume(of, folder)


class Killed(BaseException):
    pass


class Dying(Faulty):
    """The process dies before its nth call of any kind: from then on no call happens at all."""

    def __init__(self, nth: int, half: bool) -> None:
        super().__init__()
        self.left, self.half = nth, half

    def _call(self, kind: str) -> None:
        super()._call(kind)
        self.left -= 1
        if self.left <= 0:
            raise Killed

    def write(self, file: int, data: bytes | memoryview) -> int:
        try:
            self._call("write")
        except Killed:
            if self.half and self.left == 0:
                os.write(file, bytes(data[: len(data) // 2]))
            raise
        return os.write(file, data)


@pytest.mark.parametrize("half", [False, True], ids=["between calls", "within a write"])
@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_process_that_dies_at_any_call_loses_no_finished_image(tmp_path: Path, half: bool, links: bool) -> None:
    class Here(Dying):
        def link(self, source: Path, target: Path) -> None:
            if not links:
                self._call("link")
                raise OSError(errno.EPERM, "no links here")
            super().link(source, target)

    of = plan(images=2)
    for nth in range(1, 1000):
        folder = tmp_path / str(nth)
        try:
            list(store(stream(of), destination(folder), files=Here(nth, half)))
        except Killed:
            claimed = [path for path in folder.glob("*.png") if path.stat().st_size == 0]
            assert not claimed or not links, "with links no empty file ever has a final name"
            for path in claimed:
                path.unlink() if not (folder / "runs" / RUN / "run.jsonl").exists() else None
            check_after_death(of, folder)
        else:
            break
    assert nth > 25


def check_after_death(of: Plan, folder: Path) -> None:
    records = folder / "runs" / RUN
    if (records / "run.jsonl").exists():
        try:
            runs.recover(runs.read(records))
        except BadFile:  # died within the very first line: nothing was drawn yet
            assert not list(folder.glob("*.png"))
            return
    check_and_resume(of, folder)


# --- the journal read


def test_a_torn_last_line_is_dropped_wherever_it_is_torn(tmp_path: Path) -> None:
    of = plan(images=2)
    list(store(stream(of), destination(tmp_path)))
    path = tmp_path / "runs" / RUN / "run.jsonl"
    whole = path.read_bytes()
    starts = [0, *(n + 1 for n, byte in enumerate(whole) if byte == 10)]
    for cut in range(starts[3], len(whole) + 1):
        path.write_bytes(whole[:cut])
        run = runs.read(path.parent)
        assert run.length == max(start for start in starts if start <= cut)
        assert set(runs.recover(run).done) >= {0}


def test_a_bad_line_elsewhere_is_a_damaged_file_that_names_the_line(tmp_path: Path) -> None:
    list(store(stream(plan(images=2)), destination(tmp_path)))
    path = tmp_path / "runs" / RUN / "run.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(len(lines) - 1):
        damaged = [*lines]
        damaged[number] = damaged[number].replace(b'"type"', b'"tYpe"')
        path.write_bytes(b"".join(damaged))
        with pytest.raises(BadFile, match=f"line {number + 1}: damaged"):
            runs.read(path.parent)


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    list(store(stream(plan()), destination(tmp_path)))
    path = tmp_path / "runs" / RUN / "run.jsonl"
    head, *rest = path.read_bytes().splitlines(keepends=True)
    data = json.loads(head)
    del data["crc"]
    path.write_bytes(runs.line({**data, "schema": "sdcli.run/2"}) + b"".join(rest))
    with pytest.raises(BadFile, match="newer sdcli"):
        runs.read(path.parent)
    path.write_bytes(runs.line({**data, "later": 1}) + runs.line({"type": "later"}) + b"".join(rest))
    assert len(runs.read(path.parent).intents) == 1


@pytest.mark.parametrize("file", ["../x.png", "/etc/passwd", "a/../../x", "", "..\\x.png"])
def test_a_journal_that_points_out_of_its_folder_is_damaged(tmp_path: Path, file: str) -> None:
    list(store(stream(plan()), destination(tmp_path)))
    path = tmp_path / "runs" / RUN / "run.jsonl"
    intent = {"type": "intent", "index": 0, "batch": 0, "bytes": 0, "pixel_sha256": "", "file_sha256": ""}
    with open(path, "ab") as journal_file:
        journal_file.write(runs.line({**intent, "file": file}))
    with pytest.raises(BadFile, match="not a file inside"):
        runs.read(path.parent)


def test_images_that_were_changed_or_removed_are_missing(tmp_path: Path) -> None:
    events = saved(list(store(stream(plan(images=3)), destination(tmp_path))))
    Path(events[0].path).unlink()
    changed = bytearray(Path(events[1].path).read_bytes())
    changed[-20] ^= 1
    Path(events[1].path).write_bytes(changed)
    assert runs.recover(runs.read(tmp_path / "runs" / RUN)).missing == (0, 1)


def test_recovery_removes_only_this_runs_half_made_files(tmp_path: Path) -> None:
    where = destination(tmp_path, kind="template", pattern="{model}/{seed}.png")
    list(store(stream(plan()), where))
    mine = tmp_path / "sd15" / f".sdcli-{RUN}-000007.part"
    report = where.records / ".report.json.0011aabb.part"  # killed while the report was written
    others = [tmp_path / "sd15" / ".sdcli-another-000007.part", tmp_path / "sd15" / "x.part"]
    for path in (mine, report, *others):
        path.write_bytes(b"half")
    runs.recover(runs.read(where.records))
    assert not mine.exists() and not report.exists() and all(path.exists() for path in others)


def test_recovery_removes_the_kept_steps_of_finished_batches_and_what_is_half_made_of_others(tmp_path: Path) -> None:
    of = plan(images=3, batch_size=2)
    list(store(stream(of), destination(tmp_path)))
    records = tmp_path / "runs" / RUN
    (tmp_path / "0003-a-cat-44.png").unlink()
    for batch in (0, 1):  # the process was killed before it removed the first, and once more in a write
        runs.step_file(records, batch).write_bytes(b"latents")
    (records / ".000001.step.safetensors.0a1b2c3d.part").write_bytes(b"lat")
    assert runs.recover(runs.read(records)).missing == (2,)
    assert sorted(os.listdir(records)) == ["000001.step.safetensors", "run.jsonl"]


def test_a_run_being_drawn_cannot_be_resumed_by_another_process(tmp_path: Path) -> None:
    of = plan(images=2)
    running = store(stream(of), destination(tmp_path))
    while not isinstance(next(running), Saved):
        pass
    records = tmp_path / "runs" / RUN
    assert runs.is_running(records)
    with pytest.raises(Usage, match="another process"):
        runs.reopen(runs.read(records), {})
    list(running)
    assert not runs.is_running(records)


def test_a_prompt_of_any_characters_comes_back_from_the_journal(tmp_path: Path) -> None:
    jobs = [job(0, prompt='\x00\x1b[31m"\\\n猫 🐈 \udc80 \u2028'), job(1, prompt="x" * 10_000)]
    list(store(stream(plan(jobs=jobs)), destination(tmp_path)))
    assert [one.prompt for one in runs.read(tmp_path / "runs" / RUN).plan.jobs] == [one.prompt for one in jobs]


def test_the_plan_comes_back_from_the_journal(tmp_path: Path) -> None:
    of = plan(images=2, batch_size=2)
    list(store(stream(of), destination(tmp_path)))
    assert runs.read(tmp_path / "runs" / RUN).plan == of


# --- what it does not do


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """In a process of its own: 40 images of 3 MiB may not leave 3 MiB each behind."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import resource
from dataclasses import replace
from pathlib import Path
from record_samples import plan, job, destination, decoded, pixels
from sdcli.events import Planned, Done
from sdcli.record.store import store
from sdcli.files import Files
class Quick(Files):
    def sync(self, file): pass
    def sync_folder(self, path): pass
side = 1024
of = plan(jobs=[job(n, width=side, height=side) for n in range(45)])
def events():
    yield Planned(plan=of)
    for n in range(45):
        yield decoded(of, n, n, pixels=bytes([n, 0, 99]) * (side * side))
    yield Done()
seen = []
for event in store(events(), destination(Path({str(tmp_path)!r})), files=Quick()):
    if type(event).__name__ == "Saved" and event.index in (4, 44):
        seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(seen[1] - seen[0])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert int(ran.stdout) < 8_000, "kB more after 40 further images of 3,072 kB"


def test_the_files_class_is_what_the_store_uses_by_default() -> None:
    assert type(REAL) is Files


def test_no_name_at_all_is_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.record.store.MOST_NAMES", 3)
    for name in ("7.png", *(f"7-{n}.png" for n in range(2, 9))):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CannotWrite):
        list(
            store(
                stream(plan(jobs=[replace(job(), seed=7)])),
                destination(tmp_path, kind="template", pattern="{seed}.png"),
            )
        )


def test_half_made_files_of_a_run_that_was_killed_go_with_the_next_one_and_those_of_a_living_one_stay(
    tmp_path: Path,
) -> None:
    killed, living = "20261103-142501-dead", "20261103-142502-beef"
    parts = {run: tmp_path / f".sdcli-{run}-000006.part" for run in (killed, living, "20261103-142503-0000")}
    for part in parts.values():
        part.write_bytes(b"half")
    for run in (killed, living):
        records = tmp_path / "runs" / run
        records.mkdir(parents=True)
        (records / "run.jsonl").write_bytes(b"")
    drawing = runs.begin(destination(tmp_path, records=tmp_path / "runs" / living / "now", run=living), plan(), {})
    (tmp_path / "runs" / living / "run.jsonl").unlink()
    os.link(tmp_path / "runs" / living / "now" / "run.jsonl", tmp_path / "runs" / living / "run.jsonl")
    list(store(stream(plan()), destination(tmp_path)))
    # of the third no record says whether it is over
    assert [part.exists() for part in parts.values()] == [False, True, True]
    drawing.close()


@pytest.mark.parametrize("unknown", ["no locks", "another user's"])
def test_half_made_files_stay_where_their_run_may_still_be_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unknown: str
) -> None:
    other = "20261103-142502-beef"
    part = tmp_path / f".sdcli-{other}-000001.part"
    drawing = runs.begin(destination(tmp_path, run=other, records=tmp_path / "runs" / other), plan(), {})
    part.write_bytes(b"half")
    real = os.open

    def refusing(path: Path, flags: int, *rest: int) -> int:
        if Path(path) == drawing.path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *rest)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    if unknown == "no locks":
        monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", no_locks)
    else:
        monkeypatch.setattr(os, "open", refusing)
    list(store(stream(plan()), destination(tmp_path)))
    assert part.exists()
    drawing.close()


def test_half_made_files_go_from_every_folder_that_a_template_leads_to(tmp_path: Path) -> None:
    killed = "20261103-142501-dead"
    for name in (f"runs/{killed}/run.jsonl", f"sd15/.sdcli-{killed}-000000.part"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    list(store(stream(plan()), destination(tmp_path, kind="template", pattern="{model}/{seed}.png")))
    assert [path.name for path in (tmp_path / "sd15").iterdir()] == ["42.png"]
