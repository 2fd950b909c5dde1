"""again: an image drawn once more from what is stored in it, as it was or with something changed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from cli_run import sdcli

FAKE = ("--engine", "fake")
SMALL = ("--size", "64x64", "--steps", "2", "--dtype", "fp32")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(capfd: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The paths that a command prints."""
    done = sdcli(capfd, *words)
    assert done.code == 0, done.err
    return done.out.split()


def pixels(path: str) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def seeds(capfd: pytest.CaptureFixture[str], *words: str) -> list[int]:
    return [image["seed"] for image in sdcli(capfd, "again", *words, *FAKE, "--json").json["images"]]


def hint(error: str) -> list[str]:
    return shlex.split(error.partition("  try: ")[2])


def stored(name: str, text: str) -> str:
    """An image with such a text in it, as another program leaves it."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", text)
    return blank(name, pnginfo=info)


def blank(name: str, **options: Any) -> str:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(name, **options)
    return name


def test_the_built_in_model_draws_the_same_pixels_again_and_the_next_seeds_where_asked(
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, second = drawn(capfd, "generate", "a red cat", "--seed", "7,8", *SMALL)
    assert pixels(first) != pixels(second)
    (same,) = drawn(capfd, "again", first, "--dtype", "fp32")
    (following,) = drawn(capfd, "again", first, "--dtype", "fp32", "--seed", "+1")
    assert pixels(same) == pixels(first) and pixels(following) == pixels(second)


def test_a_seed_with_a_sign_counts_from_the_images_own(capfd: pytest.CaptureFixture[str]) -> None:
    drawn(capfd, "generate", "a cat", "--seed", "40", "-o", "a.png", *FAKE)
    assert seeds(capfd, "a.png") == [40]
    assert seeds(capfd, "a.png", "--seed", "+2") == [42]
    assert seeds(capfd, "a.png", "--seed", "-3") == [37]
    assert seeds(capfd, "a.png", "--seed=-1") == [39]
    assert seeds(capfd, "a.png", "--seed", "+1", "-n", "4") == [41, 42, 43, 44]
    assert seeds(capfd, "a.png", "-n", "2") == [40, 41]
    assert seeds(capfd, "a.png", "--seed", "5,9") == [5, 9]
    assert seeds(capfd, "a.png", "--seed", "5") == [5]


def test_however_many_images_the_user_draws_by_default_one_is_drawn_again(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(capfd, "generate", "a cat", "--seed", "40", "-o", "a.png", *FAKE)
    monkeypatch.setenv("SDCLI_NUM_IMAGES", "3")
    assert seeds(capfd, "a.png") == [40]
    assert seeds(capfd, "a.png", "--seed", "+1") == [41]


def test_a_flag_wins_over_what_is_stored(capfd: pytest.CaptureFixture[str]) -> None:
    drawn(capfd, "generate", "a cat", "--seed", "40", "--steps", "9", "--negative", "dogs", "-o", "a.png", *FAKE)
    report = sdcli(capfd, "again", "a.png", "-p", "a heron", "--steps", "5", *FAKE, "--json").json
    (image,) = report["images"]
    assert (image["prompt"], image["steps"], image["seed"], image["negative_prompt"]) == ("a heron", 5, 40, "dogs")
    assert report["plan"]["origins"]["steps"] == "flag" and report["plan"]["origins"]["guidance"] == "settings-from"


def test_the_noise_of_a_gpu_is_drawn_again_as_such_and_that_of_the_web_ui_too(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def rng(*words: str) -> str:
        (image,) = sdcli(capfd, *words, *FAKE, "--json").json["images"]
        return str(image["rng"])

    drawn(capfd, "generate", "a cat", "--rng", "nv", "-o", "a.png", *FAKE)
    assert rng("again", "a.png") == "nv" and rng("again", "a.png", "--rng", "cpu") == "cpu"
    pairs = "Steps: 7, Sampler: Euler a, CFG scale: 3, Seed: 11, Size: 64x64"
    stored("web.png", f"a cat\n{pairs}, Version: v1.10.1")
    assert rng("again", "web.png") == rng("generate", "--settings-from", "web.png") == "nv"
    stored("told.png", f"a cat\n{pairs}, RNG: CPU, Version: v1.10.1")
    assert rng("again", "told.png") == "cpu"


def test_a_sampler_whose_noise_the_web_ui_draws_otherwise_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    said = "note: --rng nv does not give A1111's images with DPM++ 2M SDE Karras"
    words = ("generate", "a cat", "--sampler", "DPM++ 2M SDE Karras", "-m", "sd15", *FAKE)
    assert said in sdcli(capfd, *words, "--rng", "nv").err and said not in sdcli(capfd, *words).err
    assert said not in sdcli(capfd, *words, "--rng", "nv", "--sampler", "Euler a").err


def test_several_images_are_a_run_each(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    drawn(capfd, "generate", "a cat", "--seed", "5", "-o", "in/a.png", *FAKE)
    drawn(capfd, "generate", "a dog", "--seed", "9", "-o", "in/b.png", *FAKE)
    assert drawn(capfd, "again", "in", *FAKE) == ["sdcli-images/0001-a-cat-5.png", "sdcli-images/0002-a-dog-9.png"]
    assert len(list((here / "sdcli-images" / "runs").iterdir())) == 2
    refused = sdcli(capfd, "again", "in", "--json", *FAKE)
    assert refused.code == 2 and "2" in refused.json["error"]["message"]
    refused = sdcli(capfd, "again", "in", "-o", "one.png", *FAKE)
    assert refused.code == 2 and refused.err.startswith("error: 2 images cannot all be saved as one.png\n")
    assert sdcli(capfd, *hint(refused.err)[1:]).code == 0
    assert len(list(here.glob("one-*.png"))) == 2


def test_nothing_is_drawn_if_one_of_them_cannot_be(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    drawn(capfd, "generate", "a cat", "--seed", "5", "-o", "a.png", *FAKE)
    blank("bare.png")
    done = sdcli(capfd, "again", "a.png", "bare.png", *FAKE)
    assert done.code == 9 and "bare.png has no settings that sdcli can read" in done.err
    assert not (here / "sdcli-images").exists()


def test_an_image_of_another_program_is_drawn_with_its_settings(capfd: pytest.CaptureFixture[str]) -> None:
    stored("web.png", "a cat\nSteps: 7, Sampler: Euler, CFG scale: 3, Seed: 11, Size: 64x128")
    (image,) = sdcli(capfd, "again", "web.png", "--seed", "+1", *FAKE, "--json").json["images"]
    assert (image["prompt"], image["steps"], image["sampler"], image["seed"]) == ("a cat", 7, "Euler", 12)
    assert (image["width"], image["height"]) == (64, 128)


def test_what_cannot_be_drawn_again_is_refused_with_a_line_that_works(
    capfd: pytest.CaptureFixture[str], here: Path
) -> None:
    drawn(capfd, "generate", "a cat", "--seed", "5", "-o", "a.png", *FAKE)
    stored("seedless.png", "a cat\nSteps: 7, Sampler: Euler, CFG scale: 3, Size: 64x64")
    stored("wordless.png", "Steps: 7, Sampler: Euler, CFG scale: 3, Seed: 1, Size: 64x64")
    for typed, message in (
        (["a.png", "--seed", "-6"], "--seed -6: a.png has seed 5, and seeds are from 0 to 4294967295"),
        (["a.png", "--seed", "+4294967291"], "--seed +4294967291: a.png has seed 5, and seeds are from 0"),
        (["seedless.png", "--seed", "+1"], "seedless.png stores no seed to count from"),
        (["wordless.png"], "wordless.png stores no prompt"),
    ):
        done = sdcli(capfd, "again", *typed, *FAKE)
        assert done.code == 2 and done.err.startswith(f"error: {message}"), done.err
        assert sdcli(capfd, *hint(done.err)[1:]).code == 0
    assert sdcli(capfd, "again").err == "error: no image\n  try: sdcli again IMAGE --seed +1\n"


def test_an_image_drawn_over_another_asks_for_that(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "in").mkdir()
    blank("in/my sketch.png")
    drawn(capfd, "generate", "a cat", "--seed", "5", "--image", "in/my sketch.png", "-o", "in/a.png", *FAKE)
    done = sdcli(capfd, "again", "in/a.png", *FAKE)
    assert done.code == 2
    assert done.err.startswith("error: in/a.png was drawn from my sketch.png, which is not in it\n")
    assert hint(done.err) == ["sdcli", "again", "in/a.png", *FAKE, "--image", "in/my sketch.png"]
    (image,) = sdcli(capfd, *hint(done.err)[1:], "--json").json["images"]
    assert image["start"]["image"]["name"] == "my sketch.png" and image["seed"] == 5
    (here / "in" / "my sketch.png").unlink()
    assert hint(sdcli(capfd, "again", "in/a.png", *FAKE).err)[-2:] == ["--image", "FILE"]


def test_an_image_that_was_enlarged_since_is_drawn_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    import json

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    (name,) = drawn(capfd, "generate", "a cat", "--size", "64x64", *FAKE)
    by: dict[str, Any] = dict.fromkeys(("upscaler", "sha256", "dtype", "fit", "pixel_sha256"), "x")
    info = PngInfo()
    with Image.open(name) as image:
        chunk = json.loads(image.info["sdcli"])
        chunk["enlarged"] = [by | {"times": 1, "tile": 0, "width": 128, "height": 128}]
        info.add_itxt("sdcli", json.dumps(chunk))
        image.resize((128, 128)).save("large.png", pnginfo=info)
    done = sdcli(capfd, "again", "large.png", "-o", "small.png", *FAKE)
    assert "note: large.png was enlarged since; it is drawn in its first size" in done.err
    with Image.open("small.png") as image:
        assert image.size == (64, 64)


def test_a_model_that_is_wrong_is_corrected_beside_the_image(capfd: pytest.CaptureFixture[str]) -> None:
    drawn(capfd, "generate", "a cat", "--seed", "5", "-o", "a.png", *FAKE)
    done = sdcli(capfd, "again", "a.png", "-m", "sdlx", *FAKE)
    assert done.code == 3 and hint(done.err) == ["sdcli", "again", "a.png", "-m", "sdxl", *FAKE]


@pytest.mark.parametrize("seed", ["+1", "-3", "1,+2"])
def test_generate_has_no_seed_to_count_from(seed: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "a cat", "--seed", seed, *FAKE)
    assert done.code == 2
    assert "counts from an image's own seed, which only sdcli again does\n  try: sdcli again IMAGE --seed " in done.err
