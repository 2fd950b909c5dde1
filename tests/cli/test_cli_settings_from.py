"""--settings-from: what a image's settings cannot give is said, with what is used in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_run import Outcome, sdcli

REST = "CFG scale: 7, Seed: 1, Size: 64x64"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def web_ui(pairs: str, prompt: str = "a cat") -> str:
    """A image as AUTOMATIC1111's web UI leaves it."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", f"{prompt}\nSteps: 20, {pairs}, {REST}")
    Image.new("RGB", (8, 8)).save("webui.png", pnginfo=info)
    return "webui.png"


def planned(capfd: pytest.CaptureFixture[str], pairs: str, *flags: str, prompt: str = "a cat") -> tuple[str, list[str]]:
    """The sampler planned with, and what is said to be left out."""
    done = sdcli(capfd, "plan", "--settings-from", web_ui(pairs, prompt), "-m", "sd15", "--json", *flags)
    assert done.code in (0, 4), done.err
    plan = done.json
    left = [one["message"] for one in plan["warnings"] if one["code"] == "settings-not-taken"]
    return plan["request"]["sampler"], left


@pytest.mark.parametrize(
    ("pairs", "sampler", "said"),
    [
        ("Sampler: DPM++ 2M, Schedule type: Karras", "DPM++ 2M Karras", ""),
        ("Sampler: DPM++ 2M Karras", "DPM++ 2M Karras", ""),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "DPM++ 2M Karras", ""),
        ("Sampler: Euler a, Schedule type: Automatic", "Euler a", ""),
        ("Sampler: UniPC", "UniPC", ""),
        ("Sampler: DDIM", "DDIM", ""),
        ("Sampler: Euler a, Schedule type: Karras", "Euler a", "Schedule type Karras (Euler a is used without it)"),
        ("Sampler: DPM++ 2M Exponential", "DPM++ 2M Exponential", ""),
        ("Sampler: DPM2 a Karras", "DPM2 a Karras", ""),
        ("Sampler: DDIM Karras", "DDIM", "Schedule type Karras (DDIM is used without it)"),
        ("Sampler: DPM++ SDE Karras", "DPM++ 2M Karras", "Sampler DPM++ SDE Karras (DPM++ 2M Karras is used)"),
        ("Sampler: DPM++ 3M SDE, Schedule type: SGM Uniform", "DPM++ 3M SDE SGM Uniform", ""),
        ("Sampler: Restart", "DPM++ 2M Karras", "Sampler Restart (DPM++ 2M Karras is used)"),
        ("Sampler: LMS", "DPM++ 2M Karras", "Sampler LMS (DPM++ 2M Karras is used)"),
        ("Sampler: DPM fast", "DPM++ 2M Karras", "Sampler DPM fast (DPM++ 2M Karras is used)"),
        (
            "Sampler: LMS, Schedule type: Karras",
            "DPM++ 2M Karras",
            "Sampler LMS (DPM++ 2M Karras is used), Schedule type Karras",
        ),
    ],
)
def test_a_sampler_of_the_web_ui_is_taken_or_told(
    pairs: str, sampler: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = [f"ignored in the image's settings: {said}"] if said else []
    assert planned(capfd, pairs) == (sampler, wanted)


def test_whatever_else_moves_pixels_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    pairs = (
        "Sampler: Euler, Model hash: 0123456789, VAE: sharp.safetensors, Denoising strength: 0.4, Hires upscale: 2, "
        'RNG: Dice, Lora hashes: "ink wash: 0123, <b>: 4", TI hashes: "bad hand: 56", Tiling: Tiling, Version: v1.9'
    )
    _, (said,) = planned(capfd, pairs)
    assert said.removeprefix("ignored in the image's settings: ") == (
        "VAE sharp.safetensors (the model's own is used), Denoising strength 0.4, Hires upscale 2, "
        "RNG Dice (cpu is used), the LoRA ink wash, the LoRA <b>, the embedding bad hand, Tiling"
    )


def test_what_a_flag_sets_anyway_is_not_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert planned(capfd, "Sampler: Restart", "--sampler", "Heun") == ("Heun", [])


def test_generate_says_it_and_keeps_it_in_the_report(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--settings-from", web_ui("Sampler: Restart"), "-m", "builtin", "--engine", "fake"]
    said = "ignored in the image's settings: Sampler Restart (DDIM is used)"
    assert f"note: {said}" in sdcli(capfd, *words).err
    report = sdcli(capfd, *words, "--json").json
    assert [one["message"] for one in report["warnings"] if one["code"] == "settings-not-taken"] == [said]


def drawn_elsewhere(capfd: pytest.CaptureFixture[str]) -> Outcome:
    """A image drawn with a model that was given by its path, then asked for again without it."""
    import shutil

    from sdcli import data

    shutil.copytree(str(data.builtin_model()), "models/tiny15")
    sdcli(capfd, "generate", "a cat", "-m", "models/tiny15", "--engine", "fake", "-o", "drawn.png")
    return sdcli(capfd, "plan", "--settings-from", "drawn.png")


def test_an_image_of_a_model_given_by_path_asks_for_its_place(capfd: pytest.CaptureFixture[str]) -> None:
    done = drawn_elsewhere(capfd)
    assert done.code == 3
    assert done.err.splitlines() == [
        "error: the image was drawn with tiny15, and there is no model of that name on this machine",
        "  try: sdcli plan --settings-from drawn.png -m PATH   (of tiny15)",
    ]
    assert sdcli(capfd, "plan", "--settings-from", "drawn.png", "-m", "models/tiny15").code == 0
