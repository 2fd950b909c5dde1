"""diff: what two images differ in, settings and pixels; and that it says no with an exit code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from cli_run import Outcome, sdcli

FAKE = ("--engine", "fake")
A1111 = "a cat\nSteps: 20, Sampler: DDIM, CFG scale: 2, Seed: 5, Size: 256x256, Model: builtin"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def drawn(capfd: pytest.CaptureFixture[str], name: str, *flags: str) -> str:
    done = sdcli(capfd, "generate", "a cat", "--seed", "5", *FAKE, "-o", name, *flags)
    assert done.code == 0, done.err
    return name


def saved(name: str, colour: int, text: str | None = None, size: tuple[int, int] = (8, 4)) -> str:
    """As another program leaves it."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    Image.new("RGB", size, (colour,) * 3).save(name, pnginfo=info)
    return name


def with_chunk(name: str, of: str, **changes: Any) -> str:
    """The image `of` with its own chunk changed: each name leads to a value within."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    with Image.open(of) as image:
        chunk = json.loads(image.info["sdcli"])
        for path, value in changes.items():
            *above, last = path.split("__")
            within = chunk
            for key in above:
                within = within[key]
            within[last] = value
        info.add_itxt("sdcli", json.dumps(chunk))
        image.save(name, pnginfo=info)
    return name


def compared(capfd: pytest.CaptureFixture[str], a: str, b: str) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    found = sdcli(capfd, "diff", a, b, "--json").json
    return found, {row["name"]: (row["a"], row["b"]) for row in found["settings"] or ()}


def test_the_same_image_twice_is_identical_whatever_its_format(capfd: pytest.CaptureFixture[str]) -> None:
    drawn(capfd, "a.png")
    drawn(capfd, "b.png")
    done = sdcli(capfd, "diff", "a.png", "b.png")
    assert done.code == 0 and done.err == ""
    assert done.out == "image     a.png → b.png\nsettings  no difference\npixels    identical\n"
    drawn(capfd, "c.webp", "--format", "webp")
    found, settings = compared(capfd, "a.png", "c.webp")
    assert settings == {} and found["pixels"]["values"] == 256 * 256 * 3


def test_each_setting_that_differs_has_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    drawn(capfd, "a.png", "--negative", "dogs")
    drawn(capfd, "b.png", "--seed", "6", "--steps", "9", "--guidance", "3.5", "--sampler", "Euler a")
    done = sdcli(capfd, "diff", "a.png", "b.png")
    lines = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in done.out.splitlines()}
    assert done.code == 10 and done.err == ""
    assert {name: lines[name] for name in ("seed", "steps", "guidance", "sampler", "negative_prompt")} == {
        "seed": "5 → 6", "steps": "20 → 9", "guidance": "2 → 3.5", "sampler": "DDIM → Euler a",
        "negative_prompt": "dogs → -",
    }  # fmt: skip
    assert "width" not in lines and "values differ" in lines["pixels"]


def test_what_moved_the_pixels_without_being_a_setting_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    drawn(capfd, "a.png")
    with_chunk(
        "b.png", "a.png", version="9.9", model__hash="0123456789", setup__dtype="fp16", setup__device="cuda:0",
        setup__threads=64, environment__torch="3.0", scheduler__beta_end=0.5, batch__size=2,
    )  # fmt: skip
    found, settings = compared(capfd, "a.png", "b.png")
    assert found["identical"] and {name: b for name, (_, b) in settings.items()} == {
        "version": "9.9", "model.hash": "0123456789", "setup.dtype": "fp16", "setup.device": "cuda:0",
        "setup.threads": 64, "environment.torch": "3.0", "scheduler.beta_end": 0.5, "batch.size": 2,
    }  # fmt: skip


def test_images_drawn_over_two_files_of_one_name_differ_in_that(capfd: pytest.CaptureFixture[str]) -> None:
    for colour, name in ((10, "a.png"), (200, "b.png")):
        saved("sketch.png", colour, size=(64, 64))
        drawn(capfd, name, "--image", "sketch.png", "--size", "64x64")
    _, settings = compared(capfd, "a.png", "b.png")
    assert list(settings) == ["image.sha256"]


def test_another_programs_image_is_compared_by_what_it_says(capfd: pytest.CaptureFixture[str]) -> None:
    drawn(capfd, "a.png")
    saved("b.png", 7, A1111 + ", Tiling: Tiling", (256, 256))
    found, settings = compared(capfd, "a.png", "b.png")
    assert (found["a"]["dialect"], found["b"]["dialect"]) == ("sdcli", "a1111")
    settings.pop("Model hash"), settings.pop("Version")
    assert settings == {"Tiling": (None, "Tiling")}
    saved("c.png", 7, A1111.replace("Seed: 5", "Seed: 6, Clip skip: 2"))
    _, settings = compared(capfd, "b.png", "c.png")
    assert settings == {"seed": (5, 6), "clip_skip": (1, 2), "Tiling": ("Tiling", None)}


def test_pixels_are_counted(capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    saved("a.png", 100)
    saved("b.png", 100)
    with Image.open("b.png") as image:
        image.putpixel((3, 2), (100, 90, 107))
        image.save("b.png")
    found, _ = compared(capfd, "a.png", "b.png")
    psnr = pytest.approx(10 * math.log10(255**2 * 96 / (10**2 + 7**2)))
    assert found["pixels"] == {
        "identical": False, "values": 96, "different_values": 2, "max": 10, "psnr": psnr,
    }  # fmt: skip
    assert (
        "2 of 96 values differ (2.08 %), by at most 10 of 255; PSNR 46.2 dB"
        in sdcli(capfd, "diff", "a.png", "b.png").out
    )


def test_images_without_settings_or_of_two_sizes_are_still_compared(capfd: pytest.CaptureFixture[str]) -> None:
    saved("a.png", 1)
    saved("b.bmp", 1)
    done = sdcli(capfd, "diff", "a.png", "b.bmp")
    assert done.code == 0 and "settings  a.png has no settings that sdcli can read" in done.out
    saved("wide.png", 1, A1111, (9, 4))
    found, _ = compared(capfd, "a.png", "wide.png")
    assert found["settings"] is None and found["pixels"] is None and not found["identical"]
    assert (found["a"]["error"]["code"], found["b"]["error"]) == (9, None)
    done = sdcli(capfd, "diff", "a.png", "wide.png")
    assert done.code == 10 and "pixels    not compared: 8×4 → 9×4" in done.out


def test_a_file_decides_nothing_on_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    saved("a.png", 1, A1111)
    saved("b.png", 1, A1111.replace("a cat", "a \x1b[31mcat"))
    assert "\x1b" not in sdcli(capfd, "diff", "a.png", "b.png").out


def test_what_is_no_image_is_refused(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    def refused(code: int, *words: str) -> Outcome:
        done = sdcli(capfd, "diff", *words)
        assert done.code == code and done.err.startswith("error: ") and "\n  try: " in done.err
        return done

    saved("a.png", 1)
    (here / "torn.png").write_bytes((here / "a.png").read_bytes()[:45])
    (here / "text.png").write_text("no image")
    assert "diff takes two images, not 1" in refused(2, "a.png").err
    refused(2)
    refused(2, "a.png", "a.png", "a.png")
    refused(2, "a.png", "nowhere.png")
    refused(9, "a.png", "torn.png")
    refused(9, "text.png", "a.png")
