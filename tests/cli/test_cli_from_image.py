"""generate and plan that start from images: what is asked, refused, said and recorded."""

import json
from pathlib import Path

import pytest
from cli_run import sdcli
from PIL import Image  # noqa: TID253

from scripts import make_checkpoint
from sdcli.record.metadata import read

FAKE = ("--engine", "fake", "--no-show")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photo of 320×192 and a mask of the same size."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (320, 192), (90, 120, 200)).save("photo.png")
    mask = Image.new("L", (320, 192))
    mask.paste(255, (100, 50, 200, 120))
    mask.save("mask.png")
    return tmp_path


def test_the_size_is_the_image_s_and_the_steps_are_a_share(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", "a cat", "--image", "photo.png", "--seed", "7", *FAKE)
    assert done.code == 0, done.err
    assert "320×192 · 12 of 20 steps (strength 0.6) DDIM" in " ".join(done.err.split("\n"))
    with Image.open("sdcli-images/0001-a-cat-7.png") as image:
        assert image.size == (320, 192)


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        (["--size", "128x64"], [128, 64]), (["-W", "160"], [160, 96]), (["-H", "96"], [160, 96]),
        (["--outpaint", "left:64,top:32"], [384, 224]), (["--outpaint", "16"], [352, 224]),
        (["--mask", "mask.png"], [320, 192]), (["--mask", "mask.png", "--only-masked"], [256, 256]),
    ],
)  # fmt: skip
def test_the_size_drawn_at(capfd: pytest.CaptureFixture[str], flags: list[str], size: list[int]) -> None:
    plan = sdcli(capfd, "plan", "a cat", "--image", "photo.png", *flags, "--json").json
    assert [plan["jobs"][0]["width"], plan["jobs"][0]["height"]] == size


def test_the_plan_prices_the_encoding(capfd: pytest.CaptureFixture[str]) -> None:
    plain = sdcli(capfd, "plan", "a cat", "--json").json
    plan = sdcli(capfd, "plan", "a cat", "--image", "photo.png", "--json").json
    assert [phase["name"] for phase in plain["footprint"]["phases"]] == ["load", "encode", "denoise", "decode"]
    names = [phase["name"] for phase in plan["footprint"]["phases"]]
    assert names == ["load", "encode", "encode-image", "denoise", "decode"]
    assert plan["jobs"][0]["unet_calls"] == 12
    assert plan["jobs"][0]["start"]["image"]["name"] == "photo.png"
    assert "path" not in plan["jobs"][0]["start"]["image"]


def test_a_folder_and_a_pattern_give_an_image_for_each_file(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "many").mkdir()
    for number in range(3):
        Image.new("RGB", (64 + 32 * number, 64)).save(here / "many" / f"{number}.png")
    for given in ("many", "many/*.png"):
        plan = sdcli(capfd, "plan", "a cat", "--image", given, "--seed", "1..2", "--json").json
        drawn = [(job["start"]["image"]["name"], job["width"], job["seed"]) for job in plan["jobs"]]
        assert drawn == [(f"{n}.png", 64 + 32 * n, seed) for n in range(3) for seed in (1, 2)]


def test_lines_have_their_own_images_and_strengths(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"prompt": "a cat", "image": "photo.png", "strength": 0.3},
        {"prompt": "a dog"},
        {"prompt": "a hat", "image": "photo.png", "mask": "mask.png", "width": 64, "height": 64},
    ]
    (here / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plan = sdcli(capfd, "plan", "--prompts", "lines.jsonl", "--seed", "1", "--json").json
    starts = [job["start"] for job in plan["jobs"]]
    assert [start and start["strength"] for start in starts] == [0.3, None, 0.8]
    assert [(job["width"], job["height"]) for job in plan["jobs"]] == [(320, 192), (256, 256), (64, 64)]
    assert [job["unet_calls"] for job in plan["jobs"]] == [6, 20, 16]


def test_a_preset_and_the_config_may_set_how_but_not_from_what(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sdcli(capfd, "config", "set", "strength", "0.25").code == 0
    plan = sdcli(capfd, "plan", "a cat", "--image", "photo.png", "--json").json
    assert plan["jobs"][0]["start"]["strength"] == 0.25
    refused = sdcli(capfd, "config", "set", "image", "photo.png")
    assert refused.code == 2 and 'no setting "image"' in refused.err


REFUSED = [
    (["--image", "nothing.png"], "there is no file nothing.png"),
    (["--image", "photo.png", "--strength", "0.04"], "--strength 0.04 of 20 steps leaves none; the smallest is 0.05"),
    (["--image", "photo.png", "--strength", "1.5"], "--strength 1.5 is not between 0 and 1"),
    (["--image", "photo.png", "--mask", "black.png"], "nothing is white in the mask"),
    (["--image", "photo.png", "--mask", "square.png"], "the mask square.png is 64×64, the image photo.png 320×192"),
    (["--mask", "mask.png"], "--mask needs an image to repaint"),
    (["--outpaint", "left:8"], "--outpaint needs an image to repaint"),
    (["--image", "photo.png", "--only-masked"], "--only-masked needs a mask"),
    (["--image", "photo.png", "--outpaint", "up:8"], '--outpaint: "up:8" is not SIDE:PIXELS'),
    (["--image", "photo.png", "--outpaint", "left:300", "--size", "320x192"], "leaves 20×192 for the image"),
    (["--image", "tiny.png"], "tiny.png would be drawn at 16×16; sides are 64 to 8192"),
    (["--image", "notes.txt"], "notes.txt is not an image"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED)
def test_refusals_come_before_anything_is_loaded(
    here: Path, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    Image.new("L", (320, 192)).save("black.png")
    Image.new("L", (64, 64), 255).save("square.png")
    Image.new("RGB", (20, 20)).save("tiny.png")
    Path("notes.txt").write_text("hello")
    done = sdcli(capfd, "plan", "a cat", *flags)
    assert done.code in (2, 9), done.err
    assert message in " ".join(done.err.split())


def test_what_changes_the_image_itself_is_told(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("RGBA", (64, 64), (0, 0, 0, 10)).save("clear.png")
    done = sdcli(capfd, "generate", "a cat", "--image", "clear.png", *FAKE)
    assert "note: clear.png: its transparent parts are white" in done.err


def test_the_settings_are_in_the_image_but_not_its_input(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--image", "photo.png", "--mask", "mask.png", "--only-masked", "--mask-blur", "2", "--strength", "0.7"]
    assert sdcli(capfd, "generate", "a hat", *words, "--seed", "3", *FAKE).code == 0
    file = "sdcli-images/0001-a-hat-3.png"
    with Image.open(file) as image:
        parameters, chunk = image.info["parameters"], image.info["sdcli"]
    for pair in ("Denoising strength: 0.7", "Mask blur: 2", "Inpaint area: Only masked", "Masked area padding: 32"):
        assert pair in parameters
    assert str(here) not in chunk and json.loads(chunk)["job"]["start"]["image"]["name"] == "photo.png"
    assert dict(read.read(file).unknown) == {"Image": "photo.png", "Mask": "mask.png"}

    missing = sdcli(capfd, "plan", "--settings-from", file, "--json")
    assert "--only-masked needs an image" in missing.json["error"]["message"]
    again = sdcli(capfd, "plan", "--settings-from", file, "--image", "photo.png", "--mask", "mask.png", "--json").json
    first = sdcli(capfd, "plan", "a hat", *words, "--seed", "3", "--json").json
    assert again["jobs"] == first["jobs"]


def test_an_image_without_its_input_is_drawn_anew_and_says_so(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sdcli(capfd, "generate", "a hat", "--image", "photo.png", "--seed", "3", *FAKE).code == 0
    done = sdcli(capfd, "generate", "--settings-from", "sdcli-images/0001-a-hat-3.png", *FAKE)
    assert "Image photo.png (--image names one)" in " ".join(done.err.split())


# --- models that edit


@pytest.fixture(scope="module")
def editing(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("editing")
    return str(make_checkpoint.write_folder(folder / "pix2pix", "sd15", tiny=True, channels=8))


def test_a_model_that_edits_looks_at_the_image_in_all_steps(editing: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["-m", editing, "--image", "photo.png", "--seed", "3"]
    done = sdcli(capfd, "generate", "make it snow", *words, *FAKE)
    assert done.code == 0, done.err
    asked = "320×192 · 25 steps DPM++ 2M Karras guidance 7.0, image guidance 1.5 · seed 3"
    assert asked in " ".join(done.err.split())
    file = "sdcli-images/0001-make-it-snow-3.png"
    with Image.open(file) as image:
        parameters = image.info["parameters"]
    assert "Image CFG scale: 1.5" in parameters and "Denoising strength" not in parameters
    plan = sdcli(capfd, "plan", "a cat", *words, "--image-guidance", "2", "--json").json
    assert plan["jobs"][0]["start"]["guidance"] == 2
    assert plan["model"]["kind"] == "sd15-edit"
    more = ["-m", editing, "--settings-from", file, "--image", "photo.png", "--json"]
    assert sdcli(capfd, "plan", *more).json["jobs"][0]["start"]["guidance"] == 1.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "this model changes an image as the prompt says, and there is none"),
        (["--image", "photo.png", "--strength", "0.5"], "--strength is not for a model that edits"),
        (["--image", "photo.png", "--mask", "mask.png"], "--mask is not for a model that edits"),
        (["--image", "photo.png", "--hires", "2"], "--hires draws twice from a prompt, --image starts from an image"),
        (["--image", "photo.png", "--image-guidance", "0.5"], "--image-guidance 0.5 is not between 1 and 100"),
    ],
)
def test_what_a_model_that_edits_does_not_take(
    editing: str, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    done = sdcli(capfd, "plan", "make it snow", "-m", editing, *flags)
    assert done.code == 2 and message in " ".join(done.err.split())


def test_other_models_say_that_image_guidance_does_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "plan", "a cat", "--image", "photo.png", "--image-guidance", "2", "--json")
    assert [one["code"] for one in done.json["warnings"]] == ["flag-not-needed"]
    assert done.json["jobs"][0]["start"]["guidance"] is None


def test_the_built_in_model_repaints_and_keeps_the_rest(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """For real: the whole way from files to a file."""
    noise = Image.effect_noise((192, 128), 80).convert("RGB")
    noise.save("noise.png")
    mask = Image.new("L", (192, 128))
    mask.paste(255, (64, 32, 128, 96))
    mask.save("part.png")
    flags = ["--image", "noise.png", "--mask", "part.png", "-s", "3", "--seed", "1", "-q"]
    for more in ([], ["--only-masked", "--size", "64x64"], ["--masked-content", "noise"]):
        done = sdcli(capfd, "generate", "a cat", *flags, *more, "--no-show")
        assert done.code == 0, done.err
        with Image.open(done.out.strip()) as drawn:
            made = drawn.convert("RGB")
        assert made.size == noise.size
        old, new = noise.load(), made.load()
        outside = [(x, y) for x in range(192) for y in range(128) if not (64 <= x < 128 and 32 <= y < 96)]
        assert all(old[at] == new[at] for at in outside)
        assert old[96, 64] != new[96, 64]
