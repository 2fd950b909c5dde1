"""`sdcli resume` and `sdcli runs`: an interrupted run draws what is missing, with the pixels it would have drawn."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch  # noqa: TID253
from cli_run import sdcli
from PIL import Image  # noqa: TID253
from safetensors.torch import save_file

from scripts import make_checkpoint
from sdcli.files import REAL
from sdcli.record import found_runs, runs
from sdcli.record.runs import JOURNAL

FAKE = ("--engine", "fake", "--steps", "2", "--size", "64x64", "--no-show")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.5, and what goes beside it."""
    root = tmp_path_factory.mktemp("shelf")
    make_checkpoint.write_folder(root / "tiny", "sd15", tiny=True)
    make_checkpoint.write_controlnet_folder(root / "net", "sd15", tiny=True)
    write_lora(root)
    return root


def write_lora(root: Path) -> None:
    from sdcli.models import lora, resolve

    parts = resolve.at(root / "tiny").components
    layers = lora.layers({name: part.config for name, part in parts.items() if name != "vae"})
    stored = {}
    for name, layer in layers.items():
        if name.startswith("lora_") and len(layer.shape) == 2:
            stored[f"{name}.lora_down.weight"] = torch.full((4, layer.shape[1]), 0.1)
            stored[f"{name}.lora_up.weight"] = torch.full((layer.shape[0], 4), 0.1)
    save_file(stored, root / "ink.safetensors")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDCLI_HOME", str(tmp_path / "home"))
    return tmp_path


def records_of(folder: Path) -> Path:
    (records,) = found_runs.found([folder])
    return records


def killed_after(records: Path, images: int) -> dict[int, str]:
    """Makes a finished run one that was killed after so many images: what is written later is gone. The pixels of
    every image, as the whole run drew them."""
    whole = runs.read(records)
    lines = (records / JOURNAL).read_bytes().splitlines(keepends=True)
    kept, seen = [], 0
    for line in lines:
        if b'"type":"done"' in line and seen == images:
            break
        seen += b'"type":"done"' in line
        kept.append(line)
    (records / JOURNAL).write_bytes(b"".join(kept) + b'{"type":"done","ind')  # torn
    (records / "report.json").unlink()
    for intent in list(whole.intents.values())[images:]:
        (whole.destination.folder / intent.file).unlink()
    return {index: intent.pixel_sha256 for index, intent in whole.intents.items()}


def pixels_of(records: Path) -> dict[int, str]:
    run = runs.read(records)
    assert not runs.recover(run).missing
    return {index: intent.pixel_sha256 for index, intent in run.intents.items()}


# --- the same pixels


@pytest.mark.parametrize(
    ("flags", "kept"),
    [(("-n", "3", "--batch-size", "2"), 1), (("-n", "2", "--sampler", "Euler a"), 1)],
    ids=["in the middle of a batch", "with noise in every step"],
)
def test_what_is_missing_is_drawn_with_the_same_pixels(
    capfd: pytest.CaptureFixture[str], here: Path, flags: tuple[str, ...], kept: int
) -> None:
    drawn = sdcli(capfd, "generate", "a cat", "-m", "builtin", "--steps", "2", "--seed", "5", "--no-show", *flags)
    assert drawn.code == 0
    records = records_of(here / "sdcli-images")
    expected = killed_after(records, kept)
    assert found_runs.look(records).state == "stopped"

    resumed = sdcli(capfd, "resume", "--no-show")
    assert resumed.code == 0, resumed.err
    assert pixels_of(records) == expected
    assert len(resumed.out.splitlines()) == len(expected) - kept  # only what was missing is drawn
    assert len(list((here / "sdcli-images").glob("*.png"))) == len(expected)
    assert f"{kept} of {len(expected)} images are there" in resumed.err
    assert found_runs.look(records).state == "done"


def test_a_run_from_an_image_with_a_lora_and_a_net_goes_on_with_them(
    capfd: pytest.CaptureFixture[str], here: Path, shelf: Path
) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save("photo.png")
    drawn = sdcli(
        capfd, "generate", "a cat", "-m", str(shelf / "tiny"), "--image", "photo.png", "--lora",
        str(shelf / "ink.safetensors"), "--control", f"{shelf / 'net'}=photo.png", "--steps", "3", "--seed", "1,2",
        "--sampler", "DPM++ 2M", "--no-show", "-o", "out",
    )  # fmt: skip
    assert drawn.code == 0, drawn.err
    records = records_of(here / "out")
    expected = killed_after(records, 1)
    os.rename("photo.png", "elsewhere.png")
    refused = sdcli(capfd, "resume", str(records), "--no-show")
    assert refused.code == 2 and "photo.png" in refused.err
    os.rename("elsewhere.png", "photo.png")
    assert sdcli(capfd, "resume", "out", "--no-show").code == 0
    assert pixels_of(records) == expected


def test_resuming_may_itself_be_killed_and_resumed(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    sdcli(capfd, "generate", "a cat", "-n", "5", "--seed", "1", *FAKE)
    records = records_of(here / "sdcli-images")
    expected = killed_after(records, 1)
    for kept in (2, 4, 5):
        assert sdcli(capfd, "resume", "--engine", "fake", "--no-show").code == 0
        assert pixels_of(records) == expected
        killed_after(records, kept)
    assert len(list((here / "sdcli-images").glob("*.png"))) == 5


def test_prompts_from_stdin_are_in_the_journal(
    capfd: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a cat\na dog\na cow\n")))
    assert sdcli(capfd, "generate", "--prompts", "-", "--seed", "9", *FAKE).code == 0
    records = records_of(here / "sdcli-images")
    assert [job.prompt for job in runs.read(records).plan.jobs] == ["a cat", "a dog", "a cow"]
    expected = killed_after(records, 1)
    known = len(runs.read(records).plan.jobs)  # the third was not read yet
    assert sdcli(capfd, "resume", "--engine", "fake", "--no-show").code == 0
    drawn = pixels_of(records)
    assert 1 < known <= 3 and drawn == {index: expected[index] for index in range(known)}


# --- refusals


def test_a_model_that_changed_or_is_gone_is_not_drawn_with(
    capfd: pytest.CaptureFixture[str], here: Path, shelf: Path
) -> None:
    shutil.copytree(shelf / "tiny", here / "model")
    sdcli(capfd, "generate", "a cat", "-m", "model", "-n", "2", *FAKE)
    records = records_of(here / "sdcli-images")
    killed_after(records, 1)
    weights = next((here / "model" / "unet").glob("*.safetensors"))
    status = weights.stat()
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    changed = sdcli(capfd, "resume", "--engine", "fake")
    assert changed.code == 9 and "has changed since the run began" in changed.err
    weights.rename(here / "weights")
    gone = sdcli(capfd, "resume", "--engine", "fake")
    assert gone.code == 3 and "is gone" in gone.err
    (here / "weights").rename(weights)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sdcli(capfd, "resume", "--engine", "fake", "--no-show").code == 0


def test_another_processor_draws_only_when_told_to(
    capfd: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdcli.plan import planner

    sdcli(capfd, "generate", "a cat", "-n", "2", *FAKE)
    records = records_of(here / "sdcli-images")
    killed_after(records, 1)
    monkeypatch.setattr(planner, "_elsewhere", lambda setup, hardware: "its processor computes with amx")
    refused = sdcli(capfd, "resume", "--engine", "fake", "--no-show")
    assert refused.code == 4 and f"try: sdcli resume {records.name} --replan" in refused.err
    assert found_runs.look(records).kept == 1
    assert sdcli(capfd, "resume", records.name, "--replan", "--engine", "fake", "--no-show").code == 0
    assert found_runs.look(records).state == "done"


def test_a_run_that_no_longer_fits_is_not_drawn_otherwise(
    capfd: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from sdcli.machine import survey

    sdcli(capfd, "generate", "a cat", "-n", "2", *FAKE)
    records = records_of(here / "sdcli-images")
    killed_after(records, 1)
    chosen = survey.choose
    monkeypatch.setattr(
        survey, "choose", lambda *given: replace(chosen(*given), free=1 << 20, ram_free=1 << 20)
    )  # fmt: skip
    refused = sdcli(capfd, "resume", "--engine", "fake", "--no-show")
    assert refused.code == 4 and "does not fit" in refused.err and "--replan" in refused.err


def test_a_run_being_drawn_is_left_alone(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    sdcli(capfd, "generate", "a cat", "-n", "2", *FAKE)
    records = records_of(here / "sdcli-images")
    killed_after(records, 1)
    before = (records / JOURNAL).read_bytes()
    file = REAL.append(records / JOURNAL)
    assert runs._lock(file)
    try:
        refused = sdcli(capfd, "resume", records.name, "--engine", "fake")
        assert refused.code == 2 and "being drawn by another process" in refused.err
        assert (records / JOURNAL).read_bytes() == before
        assert "running" in sdcli(capfd, "runs").out
    finally:
        REAL.close(file)


def test_what_there_is_not_to_resume_is_said(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    nothing = sdcli(capfd, "resume")
    assert nothing.code == 2 and "no run is unfinished" in nothing.err
    unknown = sdcli(capfd, "resume", "20200101-000000-abcd")
    assert unknown.code == 2 and "try: sdcli runs" in unknown.err
    sdcli(capfd, "generate", "a cat", *FAKE)
    complete = sdcli(capfd, "resume", records_of(here / "sdcli-images").name)
    assert complete.code == 0 and "is complete: 1 of 1 images are there" in complete.err
    assert sdcli(capfd, "resume", "one", "two").code == 2


# --- the list


def test_runs_are_listed_newest_first_with_their_state(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    assert "no runs here" in sdcli(capfd, "runs").err
    sdcli(capfd, "generate", "a cat", "-n", "3", *FAKE)
    first = records_of(here / "sdcli-images")
    killed_after(first, 1)
    os.rename(first, first.with_name("20200101-000000-abcd"))
    sdcli(capfd, "generate", "a dog", "-o", "dog.png", *FAKE)  # its records are in the state folder
    (here / "sdcli-images" / "runs" / "20190101-000000-abcd").mkdir()
    (here / "sdcli-images" / "runs" / "20190101-000000-abcd" / JOURNAL).write_text("nonsense\n")

    shown = sdcli(capfd, "runs")
    rows = [line.split() for line in shown.out.splitlines()]
    assert [row[1] for row in rows] == ["state", "done", "stopped", "damaged"]
    assert rows[2][2:5] == ["1", "of", "3"] and rows[2][-2:] == ["a", "cat"]
    assert "to draw what is missing: sdcli resume 20200101-000000-abcd" in shown.err
    listed = sdcli(capfd, "runs", "--json").json
    assert listed["schema"] == "sdcli.runs/1"
    assert [(run["state"], run["kept"], run["images"]) for run in listed["runs"]] == [
        ("done", 1, 1), ("stopped", 1, 3), ("damaged", 0, 0),
    ]  # fmt: skip
    assert len(sdcli(capfd, "runs", "sdcli-images", "--json").json["runs"]) == 2
    assert sdcli(capfd, "runs", "nowhere").code == 2


def test_images_and_reports_say_nothing_of_where_files_are(
    capfd: pytest.CaptureFixture[str], here: Path, shelf: Path
) -> None:
    sdcli(capfd, "generate", "a cat", "-m", str(shelf / "tiny"), *FAKE)
    records = records_of(here / "sdcli-images")
    weights = str(next((shelf / "tiny" / "unet").glob("*.safetensors"))).encode()
    assert weights in (records / JOURNAL).read_bytes()  # to find them again
    assert weights not in (records / "report.json").read_bytes()
    (image,) = (here / "sdcli-images").glob("*.png")
    assert str(shelf).encode() not in image.read_bytes()


# --- inside an image


def test_an_image_is_gone_on_with_from_its_last_kept_step(
    capfd: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdcli.draw import run as drawing

    words = (
        "generate",
        "a cat",
        "-m",
        "builtin",
        "--steps",
        "5",
        "--seed",
        "5",
        "--keep-steps",
        "--no-show",
        "-n",
        "2",
    )
    assert sdcli(capfd, *words, "-o", "whole").code == 0
    expected = pixels_of(records_of(here / "whole"))
    assert not list(records_of(here / "whole").glob("*.step.safetensors"))

    taken = drawing.denoise._advance
    calls = []

    def interrupted(*given: object) -> object:
        if len(calls) == 8:  # in the second image
            raise KeyboardInterrupt
        calls.append(given)
        return taken(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing.denoise, "_advance", interrupted)
    stopped = sdcli(capfd, *words)
    assert stopped.code == 130 and stopped.err.splitlines()[-1].startswith("  try: sdcli resume 20")
    records = records_of(here / "sdcli-images")
    assert [path.name for path in records.glob("*.step.safetensors")] == ["000001.step.safetensors"]
    monkeypatch.setattr(drawing.denoise, "_advance", lambda *given: [calls.append(given), taken(*given)][1])
    assert sdcli(capfd, "resume", "--no-show").code == 0
    assert len(calls) == 10  # the two steps that were missing
    assert pixels_of(records) == expected
    assert not list(records.glob("*.step.safetensors"))
