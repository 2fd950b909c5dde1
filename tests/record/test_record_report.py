"""The report: a pure fold over events, with the same keys whatever happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from record_samples import RUN, decoded, destination, job, plan, stream

from sdcli.errors import BadFile, CannotWrite, ImagesFailed, OutOfMemory, SdcliError
from sdcli.events import (
    Decoded,
    Degraded,
    Denoised,
    Done,
    Encoded,
    Event,
    Failed,
    Interrupted,
    Memory,
    Planned,
    Saved,
    Step,
    Timed,
    Warned,
)
from sdcli.files import Files
from sdcli.machine import memories
from sdcli.plan.plan import Plan, PlanWarning
from sdcli.plan.remembered import measures
from sdcli.plan.together import Held
from sdcli.record import remembering, runs
from sdcli.record import report as reports
from sdcli.record.report import Folding, Report, fold
from sdcli.record.store import store
from sdcli.sizes import GIB


def folded(events: Iterable[Event], **options: Any) -> Report:
    return fold(events, started="2026-11-03T14:25:01Z", run=RUN, seconds=84.1, **options)


def good_run(folder: Path, of: Plan) -> list[Event]:
    return list(store(stream(of), destination(folder)))


def saved(of: Plan, index: int, status: str = "saved") -> Saved:
    one = of.jobs[index]
    return Saved(
        batch=index, index=index, status=status, file=f"{index}.png", path=f"/out/{index}.png", format="png", bytes=10,
        width=one.width, height=one.height, pixel_sha256="p", file_sha256="f", seconds=0.05,
    )  # fmt: skip


KEYS = [
    "schema", "version", "run", "folder", "status", "exit_code", "error", "started", "seconds", "plan", "phases",
    "batches", "images", "memory", "workers", "degraded", "warnings", "environment",
]  # fmt: skip
IMAGE_KEYS = [
    "index", "status", "file", "path", "format", "bytes", "width", "height", "prompt", "negative_prompt", "seed",
    "steps", "unet_calls", "guidance", "sampler", "clip_skip", "emphasis", "rng", "id", "start",
    "second", "controls", "guess_mode", "references", "refined", "template", "negative_template",
    "lora_weights", "tokens", "pixel_sha256",
    "file_sha256", "error",
]  # fmt: skip


def test_a_good_run_is_done_with_every_figure_in_its_place(tmp_path: Path) -> None:
    report = folded(good_run(tmp_path, plan(images=2)))
    assert (report.status, report.exit_code, report.error) == ("done", 0, None)
    assert [phase.name for phase in report.phases] == ["import", "load", "encode", "denoise", "decode", "save"]
    assert report.phase("denoise").seconds == pytest.approx(0.8) and report.phase("denoise").count == 2
    assert report.phase("decode").host_peak == 2 * GIB
    assert report.phase("decode").predicted_host_peak == GIB
    assert report.phase("decode").predicted_device_peak is None
    assert [batch.step_seconds for batch in report.batches] == [(0.1,) * 4] * 2
    assert [image.tokens for image in report.images] == [3, 3]
    assert report.environment == {"torch": "2.13.0"}


def test_the_keys_are_those_of_the_schema_whatever_happened(tmp_path: Path) -> None:
    for report in (folded(good_run(tmp_path, plan())), folded([]), folded([Planned(plan=plan())])):
        data = reports.to_json(report, tmp_path)
        assert list(data) == KEYS
        assert all(list(image) == IMAGE_KEYS for image in data["images"])
        json.dumps(data, allow_nan=False)
        assert "ways" not in data["plan"]


def test_paths_are_absolute_on_stdout_and_absent_from_the_file(tmp_path: Path) -> None:
    report = folded(good_run(tmp_path, plan()))
    shown = reports.to_json(report, tmp_path)
    assert shown["folder"] == str(tmp_path)
    assert Path(shown["images"][0]["path"]).is_file()
    stored = reports.to_json(report)
    assert stored["folder"] is None and "path" not in stored["images"][0]
    assert str(tmp_path) not in json.dumps(stored)


def test_a_report_comes_back_from_its_json(tmp_path: Path) -> None:
    report = folded(good_run(tmp_path, plan(images=3, batch_size=2)))
    assert reports.from_json(json.loads(json.dumps(reports.to_json(report)))) == report
    with pytest.raises(BadFile, match="newer sdcli"):
        reports.from_json({**reports.to_json(report), "schema": "sdcli.report/2"})


def test_seconds_end_with_the_last_file_on_disk() -> None:
    of = plan(images=2)
    ticks = iter([10.0, 20.0, 99.0])
    folding = Folding(started="", run=RUN, clock=lambda: next(ticks))
    for event in (Planned(plan=of), saved(of, 0), saved(of, 1), Done()):
        folding(event)
    assert folding.report().seconds == 20.0


# --- status and exit code


def failure(message: str = "not finite") -> dict[str, Any]:
    return ImagesFailed(message).to_json()


OF = plan(images=2)


@pytest.mark.parametrize(
    ("events", "error", "status", "code", "images"),
    [
        ([saved(OF, 0), saved(OF, 1), Done()], None, "done", 0, "saved saved"),
        ([saved(OF, 0), saved(OF, 1, "suspect"), Done()], None, "partial", 5, "saved suspect"),
        ([saved(OF, 0), Failed(batch=1, index=1, error=failure()), Done()], None, "partial", 5, "saved failed"),
        ([Failed(batch=n, index=n, error=failure()) for n in (0, 1)], None, "failed", 5, "failed failed"),
        ([saved(OF, 0), Done()], None, "partial", 5, "saved missing"),
        ([saved(OF, 0)], OutOfMemory("no"), "partial", 4, "saved missing"),
        ([], OutOfMemory("no"), "failed", 4, "missing missing"),
        ([saved(OF, 0)], CannotWrite("full"), "partial", 7, "saved missing"),
        ([saved(OF, 0), Interrupted(signal="interrupted")], None, "interrupted", 130, "saved missing"),
        ([Interrupted(signal="terminated")], None, "interrupted", 143, "missing missing"),
    ],
)
def test_status_and_exit_code_follow_from_what_happened(
    events: list[Event], error: SdcliError | None, status: str, code: int, images: str
) -> None:
    report = folded([Planned(plan=OF), *events], error=error)
    assert (report.status, report.exit_code) == (status, code)
    assert " ".join(image.status for image in report.images) == images
    assert (report.error is None) == (code == 0)
    assert report.error is None or report.error["code"] == code


def test_what_all_that_failed_have_to_try_is_what_the_run_has_to_try() -> None:
    """Another draw with the same seed would fail in the same way."""
    error = ImagesFailed("not finite", hint="sdcli models check broken").to_json()
    report = folded([Planned(plan=OF), *(Failed(batch=n, index=n, error=error) for n in (0, 1)), Done()])
    assert report.error is not None and report.error["hint"] == "sdcli models check broken"
    report = folded([Planned(plan=OF), Failed(batch=0, index=0, error=error), Done()])  # no event about the other
    assert report.error is not None and report.error["hint"] == "the same command with --seed for each missing image"


def test_a_failed_image_keeps_its_error_and_its_settings() -> None:
    report = folded(
        [Planned(plan=OF), Encoded(batch=1, tokens=(7,), seconds=0.0), Failed(batch=1, index=1, error=failure())]
    )
    one = report.images[1]
    assert (one.status, one.file, one.tokens, one.job and one.job.seed) == ("failed", None, 7, 43)
    assert one.error is not None and one.error["message"] == "not finite"


def test_what_an_interrupted_run_had_done_is_in_the_report() -> None:
    events: list[Event] = [
        Planned(plan=OF),
        Step(batch=0, step=1, of=4, seconds=0.5),
        Interrupted(signal="interrupted"),
    ]
    report = folded(events)
    assert report.phase("denoise").seconds == 0.5
    assert report.batches[0].step_seconds == (0.5,)


# --- the rest


def test_predicted_is_beside_measured_on_a_cpu_and_on_a_gpu() -> None:
    cpu = folded(
        [Planned(plan=plan()), Memory(phase="before-load", host_peak=7), Memory(phase="denoise", host_peak=3 * GIB)]
    )
    assert cpu.memory.ratio == 1.5
    assert (cpu.memory.measured.host_before_load, cpu.memory.measured.host_peak) == (7, 3 * GIB)
    gpu = folded(
        [
            Planned(plan=plan(device="cuda:0")),
            Memory(phase="denoise", device_peak=GIB, reserved_peak=GIB, allocated_peak=9, host_peak=GIB),
            Memory(phase="decode", device_peak=GIB, reserved_peak=2 * GIB, allocated_peak=8, host_peak=1),
        ]
    )
    assert gpu.memory.ratio == 1.0
    assert (gpu.memory.measured.reserved_peak, gpu.memory.measured.allocated_peak) == (2 * GIB, 9)
    assert gpu.memory.predicted is not None and gpu.memory.predicted.device_peak == 2 * GIB
    assert folded([Planned(plan=plan())]).memory.ratio is None


def test_what_other_models_held_is_beside_what_was_measured_with_them() -> None:
    folding = Folding(started="", run="", clock=lambda: 0.0)
    for event in (Planned(plan=plan()), Memory(phase="denoise", host_peak=3 * GIB)):
        folding(event)
    folding.beside = Held(device=GIB, host=GIB)
    report = folding.report()
    assert (report.memory.ratio, report.memory.beside) == (1.0, Held(device=GIB, host=GIB))
    assert reports.from_json(reports.to_json(report)).memory == report.memory


@pytest.mark.parametrize("beside", [None, Held(device=GIB, host=GIB)])
def test_peaks_that_hold_other_models_too_are_not_remembered(tmp_path: Path, beside: Held | None) -> None:
    of = replace(plan(), hardware=replace(plan().hardware, source="os"))
    folding = Folding(started="", run="", clock=lambda: 0.0)
    for event in (*good_run(tmp_path, of), Memory(phase="denoise", host_peak=3 * GIB)):
        folding(event)
    folding.beside = beside
    remembering.remember(of, folding.report())
    (entry,) = memories.remembered(memories.machine_of(of.hardware)).values()
    known = measures(entry)
    assert known is not None and known.step is not None
    assert (known.host_peak, known.runs) == ((3 * GIB, 1) if beside is None else (None, 0))


def test_load_as_a_whole_replaces_the_sum_of_its_parts() -> None:
    events = list(stream(plan()))
    assert folded(events).phase("load").seconds == 1.9
    assert folded([Timed(phase="load", seconds=2.5), *events]).phase("load").seconds == 2.5


def test_every_step_is_kept_up_to_ten_thousand_then_only_sums() -> None:
    of = plan(images=12)
    events: list[Event] = [Planned(plan=of)]
    for batch in range(12):
        events += [Step(batch=batch, step=n + 1, of=1000, seconds=0.001) for n in range(1000)]
        events.append(Denoised(batch=batch, seconds=1.0))
    report = folded(events)
    assert [len(batch.step_seconds) for batch in report.batches] == [1000] * 10 + [0, 0]
    assert [batch.steps for batch in report.batches] == [1000] * 12
    assert report.batches[11].denoise_seconds == pytest.approx(1.0)
    assert report.phase("denoise").seconds == pytest.approx(12.0)


def test_a_fallback_is_recorded_as_the_schema_says() -> None:
    fallback = Degraded(
        batch=0, phase="denoise", step=7, before={"placement": "resident"}, after={"placement": "group-offload"},
        because="out of memory", changes_pixels=False,
    )  # fmt: skip
    data = reports.to_json(folded([Planned(plan=plan()), fallback]))
    assert data["degraded"] == [
        {
            "worker": "", "batch": 0, "phase": "denoise", "step": 7, "from": {"placement": "resident"},
            "to": {"placement": "group-offload"}, "because": "out of memory", "changes_pixels": False,
        }
    ]  # fmt: skip


def test_warnings_of_the_plan_and_of_the_run_are_reported_once() -> None:
    of = replace(plan(), warnings=(PlanWarning(code="size-not-native", message="small"),))
    again = Warned(code="size-not-native", message="small")
    report = folded([Planned(plan=of), again, Warned(code="flat-picture", message="flat")])
    assert [warning.code for warning in report.warnings] == ["size-not-native", "flat-picture"]


def test_images_of_prompts_read_as_they_come_are_reported_though_no_plan_lists_them(tmp_path: Path) -> None:
    of = plan(images=1)
    later = [job(1, prompt="a dog", seed=7), job(2, prompt="a fox", seed=8)]
    events: list[Event] = [*stream(of)]
    done = events.pop()
    events.append(Encoded(batch=1, tokens=(4, 5), seconds=0.0))
    for one in later:
        events.append(replace(decoded(of, 1, 0), index=one.index, job=one))
    report = folded(store(iter([*events, done]), destination(tmp_path)))
    assert [(image.job and image.job.prompt, image.tokens, image.status) for image in report.images] == [
        ("a cat", 3, "saved"), ("a dog", 4, "saved"), ("a fox", 5, "saved")
    ]  # fmt: skip
    assert (report.exit_code, report.batches[1].images) == (0, (1, 2))


def test_a_resumed_run_reports_the_images_it_had_and_those_it_drew(tmp_path: Path) -> None:
    of = plan(images=3)
    events = list(stream(of))
    first = [event for event in events if not (isinstance(event, Decoded) and event.index > 0)]
    list(store(iter(first), destination(tmp_path)))
    recovered = runs.recover(runs.read(tmp_path / "runs" / RUN))
    rest: list[Event] = [Planned(plan=of), *(decoded(of, n, n) for n in recovered.missing), Done()]
    journal = runs.reopen(recovered.run, {})
    through = store(iter(rest), destination(tmp_path), journal=journal, earlier=recovered.done)
    folding = Folding(started="", run=RUN, clock=lambda: 1.0)
    folding.add_recovered(recovered.done)
    for event in through:
        folding(event)
    report = folding.report()
    whole = folded(good_run(tmp_path / "whole", of))
    assert report.status == "done"
    for one, other in zip(report.images, whole.images, strict=True):
        assert (one.pixel_sha256, one.file, one.format) == (other.pixel_sha256, other.file, other.format)


def test_the_file_is_the_old_report_or_the_new_one(tmp_path: Path) -> None:
    class Full(Files):
        def write(self, file: int, data: bytes | memoryview) -> int:
            raise OSError(28, "No space left on device")

    path = tmp_path / "report.json"
    one, two = folded([Planned(plan=plan())]), folded(good_run(tmp_path / "x", plan()))
    reports.write(one, path)
    with pytest.raises(CannotWrite, match="disk is full"):
        reports.write(two, path, Full())
    assert reports.from_json(json.loads(path.read_text("utf-8"))) == one
    reports.write(two, path)
    assert reports.from_json(json.loads(path.read_text("utf-8"))) == two
    assert sorted(os.listdir(tmp_path)) == ["report.json", "x"]


def test_the_file_says_what_the_object_says(tmp_path: Path) -> None:
    for report in (folded(good_run(tmp_path, plan(images=3))), folded([])):
        assert json.loads(b"".join(reports.pieces(report))) == reports.to_json(report)


def test_a_prompt_of_any_characters_is_in_the_report_as_strict_utf_8(tmp_path: Path) -> None:
    of = plan(jobs=[job(prompt='\x1b[31m"猫 🐈 \udc80')])
    reports.write(folded([Planned(plan=of)]), tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_bytes().decode("utf-8"))
    assert data["images"][0]["prompt"] == of.jobs[0].prompt


def test_folding_keeps_no_pixels_and_little_else(tmp_path: Path) -> None:
    """In a process of its own: 1,500 more images stored, folded and reported cost less than 4 kB each."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import resource
from pathlib import Path
from record_samples import plan, destination, stream
from sdcli.record.report import Folding, write
from sdcli.record.store import store
from sdcli.files import Files
class Quick(Files):
    def sync(self, file): pass
    def sync_folder(self, path): pass
def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def go(count, folder):
    of = plan(images=count)
    folding = Folding(started="", run="r", clock=lambda: 1.0)
    for event in store(stream(of), destination(Path({str(tmp_path)!r}) / folder), files=Quick()):
        folding(event)
    write(folding.report(), Path({str(tmp_path)!r}) / f"{{folder}}.json", Quick())
go(400, "some")
before = rss()
go(1900, "many")
print((rss() - before) / 1500)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    each = float(ran.stdout)
    assert each < 4, "kB for each image, with its job, its plan's JSON and its report's"
