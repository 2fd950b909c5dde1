"""A second pass: what is planned, drawn, said and recorded."""

from pathlib import Path

import pytest
from cli_run import sdcli
from PIL import Image  # noqa: TID253

from scripts import make_checkpoint

FAKE = ("--engine", "fake", "--no-show")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_image_is_as_large_as_the_second_pass_makes_it(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "a cat", "--hires", "1.5", "--hires-steps", "5", "--seed", "7", *FAKE)
    assert done.code == 0, done.err
    assert "a cat · 256×256, then 384×384 · 20 + 5 steps DDIM" in done.err
    assert "25 steps of" in done.err
    with Image.open("sdcli-images/0001-a-cat-7.png") as image:
        assert image.size == (384, 384)
        pairs = image.info["parameters"]
    for pair in ("Size: 256x256", "Denoising strength: 0.7", "Hires upscale: 1.5", "Hires steps: 5",
                 "Hires upscaler: Latent"):  # fmt: skip
        assert pair in pairs


@pytest.mark.parametrize("metadata", ["full", "a1111"])
def test_the_settings_of_an_image_bring_its_second_pass_back(capfd: pytest.CaptureFixture[str], metadata: str) -> None:
    words = ["--hires", "2", "--upscaler", "lanczos", "--hires-strength", "0.35", "--seed", "7", "--metadata", metadata]
    assert sdcli(capfd, "generate", "a cat", *words, *FAKE).code == 0
    again = sdcli(capfd, "plan", "--settings-from", "sdcli-images/0001-a-cat-7.png", "--json").json
    assert again["jobs"] == sdcli(capfd, "plan", "a cat", *words[:-2], "--json").json["jobs"]


@pytest.mark.parametrize(
    ("upscaler", "stages"),
    [
        ("latent", ["load", "encode", "denoise", "second-pass", "decode"]),
        ("lanczos", ["load", "encode", "denoise", "upscale", "second-pass", "decode"]),
    ],
)
def test_the_plan_prices_both_passes(capfd: pytest.CaptureFixture[str], upscaler: str, stages: list[str]) -> None:
    for device in ("cpu", "cuda:8GiB"):
        words = ["plan", "a cat", "-m", "sd15", "--as-if", device, "--json"]
        once = sdcli(capfd, *words).json
        twice = sdcli(capfd, *words, "--hires", "2", "--upscaler", upscaler).json
        alone = sdcli(capfd, *words, "--size", "1024x1024").json
        assert [phase["name"] for phase in twice["footprint"]["phases"]] == stages
        peaks = [plan["footprint"]["device_peak"] for plan in (once, twice, alone)]
        assert peaks[0] < peaks[1] == peaks[2]


REFUSED = [
    (["--hires", "9"], "--hires 9.0 is not between 1 and 8"),
    (["--hires", "8", "--size", "2048x2048"], "--hires 8 makes 16384×16384; sides are at most 8192"),
    (["--hires", "2", "--hires-strength", "0"], "--hires-strength 0 leaves nothing to draw"),
    (["--hires", "2", "--hires-strength", "0.01"], "makes 20 steps the last of 2000"),
    (["--hires", "2", "--image", "a.png"], "--hires draws twice from a prompt"),
    (["--hires", "2", "--upscaler", "latnt"], '--upscaler: "latnt" is no file; did you mean latent?'),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED)
def test_refusals_come_before_anything_is_loaded(
    capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    Image.new("RGB", (64, 64)).save("a.png")
    done = sdcli(capfd, "plan", "a cat", *flags)
    assert done.code == 2 and message in " ".join(done.err.split())


def test_a_model_that_repaints_draws_no_second_pass(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_checkpoint.write_folder(tmp_path / "repainting", "sd15", tiny=True, channels=9)
    done = sdcli(capfd, "plan", "a cat", "-m", "repainting", "--size", "64x64", "--hires", "2")
    assert done.code == 2 and "was trained to repaint, and draws no second pass" in " ".join(done.err.split())


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_the_built_in_model_draws_twice(capfd: pytest.CaptureFixture[str], upscaler: str) -> None:
    flags = [
        "--size",
        "64x64",
        "--hires",
        "2",
        "--upscaler",
        upscaler,
        "-s",
        "2",
        "--seed",
        "1",
        "-n",
        "2",
        "--no-show",
    ]
    report = sdcli(capfd, "generate", "a cat", *flags, "--json").json
    assert report["status"] == "done"
    assert [(image["width"], image["height"]) for image in report["images"]] == [(128, 128)] * 2
    names = [phase["name"] for phase in report["phases"]]
    assert "second-pass" in names and ("upscale" in names) == (upscaler == "lanczos")
