"""The built-in model, where a build has one: the default, called what it is wherever it speaks."""

from __future__ import annotations

import json
from pathlib import Path

import builtin_model
import pytest
from cli_run import ROOT, Outcome, sdcli

from sdcli import data

FAKE = ("--engine", "fake", "--seed", "7")
PHOTOGRAPHS = "Photographs: -m sd15 (2.13 GB to download) or -m sdxl (6.94 GB to download)"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin_model.write(tmp_path_factory.mktemp("package") / "builtin", hollow=True)


@pytest.fixture(autouse=True)
def build_with_it(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "builtin_model", lambda: shipped)
    monkeypatch.chdir(tmp_path)


def generate(capfd: pytest.CaptureFixture[str], *words: str) -> Outcome:
    done = sdcli(capfd, "generate", *words, *FAKE)
    assert done.code == 0, done.err
    return done


def test_it_is_the_default_calls_itself_an_emoji_model_and_says_how_to_get_more(
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = generate(capfd, "a red cat").err.splitlines()
    assert lines[0].startswith("builtin, a small emoji model · cpu ") and "needs 0." in lines[0]
    assert "a red cat · 128×128 · 18 steps Euler · guidance 3.5 · seed 7" in lines
    assert lines[-1] == PHOTOGRAPHS
    assert not [line for line in lines if line.startswith("note:")]


def test_other_models_win_over_it(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_MODEL", "sd15")
    done = generate(capfd, "a xylophone")
    assert "sd15 · cpu" in done.err and "emoji" not in done.err and "note:" not in done.err
    monkeypatch.delenv("SDCLI_MODEL")
    assert sdcli(capfd, "config", "set", "model", "sdxl").code == 0
    assert "sdxl · cpu" in generate(capfd, "a cat", "--size", "512x512").err
    assert "builtin, a small emoji model" in generate(capfd, "a cat", "-m", "builtin").err


def test_words_it_never_saw_are_named_once(capfd: pytest.CaptureFixture[str]) -> None:
    said = generate(capfd, "a (xylophone:1.2), a red cat", "-n", "2").err
    assert said.count("note:") == 1
    assert "note: the built-in model does not know “xylophone”; it will guess\n" in said
    several = generate(capfd, "a zither", "a lute", "a xylophone", "un oboe").err.replace("\n      ", " ")
    assert "does not know “zither”, “lute”, “xylophone” and 1 more; it will guess" in several
    assert "does not know “木琴” and “lute”;" in generate(capfd, "一只木琴", "a lute").err.replace("\n      ", " ")


def test_strange_words_stand_in_the_report_the_plan_and_their_json(capfd: pytest.CaptureFixture[str]) -> None:
    note = {"code": "unknown-words", "message": "the built-in model does not know “lute”; it will guess"}
    answer = generate(capfd, "a lute", "--json").json
    assert answer["warnings"] == [note]
    folder = Path(answer["folder"])
    (stored,) = (folder / "runs").glob("*/report.json")
    assert json.loads(stored.read_text(encoding="utf-8"))["warnings"] == [note]
    assert note in sdcli(capfd, "plan", "a lute", "--json").json["warnings"]


def test_its_own_tokens_are_counted_and_its_files_name_it_in_the_image(capfd: pytest.CaptureFixture[str]) -> None:
    prompt = "photograph of an elephant, 猫"
    image = generate(capfd, prompt, "--json").json["images"][0]
    (image_of_sd15,) = generate(capfd, prompt, "-m", "sd15", "--json").json["images"]
    assert image["tokens"] > image_of_sd15["tokens"] > 0  # a smaller vocabulary cuts finer
    from PIL import Image

    with Image.open(image["path"]) as opened:
        text, own = opened.info["parameters"], json.loads(opened.info["sdcli"])["model"]
    assert own["name"] == "builtin" and len(own["hash"]) == 10
    assert f"Model hash: {own['hash']}, Model: builtin" in text and "Size: 128x128" in text


def test_the_plan_says_what_it_is_and_that_it_is_small(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "plan", "a cat", "--as-if", "cpu")
    assert done.code == 0
    assert done.out.startswith("builtin, a small emoji model\n") and "comes with sdcli" in done.out
    assert done.out.endswith(f"  {PHOTOGRAPHS}\n") and all(len(line) <= 80 for line in done.out.splitlines())
    answer = sdcli(capfd, "plan", "a cat", "--as-if", "cpu", "--json").json
    assert answer["model"]["source"] == "builtin" and answer["model"]["zero_snr"]
    assert 300 << 20 < answer["footprint"]["host_peak"] < 900 << 20
    on_a_card = sdcli(capfd, "generate", "a cat", *FAKE, "--json").json["plan"]
    assert on_a_card["model"]["components"]["unet"]["parameters"] == builtin_model.UNET_PARAMETERS


def test_models_and_doctor_know_it(capfd: pytest.CaptureFixture[str], shipped: Path) -> None:
    listed = sdcli(capfd, "models").out.splitlines()
    assert listed[0] == "shipped with sdcli"
    assert listed[1].split() == ["builtin", "small", "emoji", "model", "40", "MB", "fp16", "v_prediction"]
    doctor = sdcli(capfd, "doctor").out
    assert "builtin ✓ a small emoji model   sd15 – 2.13 GB   sdxl – 6.94 GB" in doctor
    assert "Photographs: sdcli pull sd15" in doctor
    checked = sdcli(capfd, "models", "check", "builtin")  # its weights are holes here, without names
    assert str(shipped / "unet" / "diffusion_pytorch_model.safetensors") in checked.out and checked.code == 9


def test_bench_measures_it_and_names_the_line_for_figures_to_compare(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = sdcli(capfd, "bench", "--engine", "fake", "-s", "2", "--quick", "--max-time", "1")
    assert done.code == 0, done.err
    assert "builtin" in done.err and "128×128" in done.err
    assert "For figures comparable with others': sdcli bench -m sd15 --random-weights" in done.err


def test_a_sampler_it_cannot_use_is_refused_with_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    refused = sdcli(capfd, "generate", "a cat", "--sampler", "DPM++ 2M Karras", *FAKE)
    assert refused.code == 2 and "zero terminal SNR" in refused.err


def test_a_size_below_or_far_above_its_own_is_drawn_and_noted(capfd: pytest.CaptureFixture[str]) -> None:
    for size in ("64x64", "192x128", "512x512"):
        answer = generate(capfd, "a cat", "--size", size, "--json").json
        assert f"{answer['images'][0]['width']}x{answer['images'][0]['height']}" == size
    assert "size-not-native" in [warning["code"] for warning in answer["warnings"]]
