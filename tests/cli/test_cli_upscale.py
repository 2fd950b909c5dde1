"""`sdcli upscale`, and `--upscaler FILE` of a second pass: what is asked, planned, refused, said, written and
recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy  # noqa: TID253
import pytest
from cli_run import sdcli, start
from PIL import Image, ImageCms  # noqa: TID253

from scripts import make_checkpoint
from sdcli.machine.folders import config_file
from sdcli.record.metadata import own, read
from sdcli.request import config
from sdcli.workers.worker import environment

FAKE = ("--engine", "fake", "--no-show")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_checkpoint.write_upscaler(root / "x4.safetensors", tiny=True)
    make_checkpoint.write_upscaler(root / "x2.safetensors", tiny=True, scale=2, unshuffle=2)
    make_checkpoint.write_upscaler(root / "x1.safetensors", tiny=True, scale=1, doublings=0)
    make_checkpoint.write_upscaler(root / "slow.safetensors", blocks=4)
    make_checkpoint.write_folder(root / "tiny", "sd15", tiny=True)
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    picture(40, 24).save("photo.png")
    return tmp_path


def picture(width: int, height: int) -> Image.Image:
    rows = numpy.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(rows)


def size_of(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        size: tuple[int, int] = image.size
        return size


# --- how large, where to


def test_an_image_becomes_as_large_as_the_model_makes_it(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "upscale", "photo.png", "--upscaler", "x4.safetensors")
    assert done.code == 0, done.err
    assert done.out == "sdcli-images/0001-photo-160x96.png\n"
    assert size_of("sdcli-images/0001-photo-160x96.png") == (160, 96)
    assert "x4 ×4 · cpu " in done.err and "photo.png  40×24 → 160×96" in done.err
    assert " GiB free · each image whole" in done.err and "predicted" in done.err
    again = sdcli(capfd, "upscale", "photo.png", "--upscaler", "x4.safetensors", "-q")
    assert (again.out, again.err) == ("sdcli-images/0002-photo-160x96.png\n", "")
    first, second = (Path("sdcli-images") / f"000{number}-photo-160x96.png" for number in (1, 2))
    with Image.open(first) as one, Image.open(second) as other:
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("model", "scale", "size"),
    [("x4", "2", (80, 48)), ("x4", "1.5", (60, 36)), ("x2", "5", (200, 120)), ("x2", "100x60", (100, 60)),
     ("x1", "2", (80, 48)), ("x4", "64x64", (64, 64)), ("x4", "0.5", (20, 12)), ("x4", "16", (640, 384))],
)  # fmt: skip
def test_another_size_is_reached_by_going_over_it_again_and_resizing(
    capfd: pytest.CaptureFixture[str], model: str, scale: str, size: tuple[int, int]
) -> None:
    words = ["upscale", "photo.png", "--upscaler", f"{model}.safetensors", "--scale", scale, "-o", "large.png"]
    report = sdcli(capfd, *words, "--json").json
    assert report["status"] == "done" and size_of("large.png") == size
    assert (report["images"][0]["width"], report["images"][0]["height"]) == size


def test_tiles_are_told_and_recorded(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["upscale", "photo.png", "--upscaler", "x4.safetensors", "--tile", "32", "-o", "large.png"]
    done = sdcli(capfd, *words)
    assert done.code == 0 and "tiles of 32, as asked" in done.err
    report = sdcli(capfd, *words, "--json", "--overwrite").json
    assert report["setup"]["upscaler_tile"] == report["images"][0]["tile"] == 32


def test_folders_and_patterns_give_an_image_for_each_file(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "photos").mkdir()
    for name in ("b.jpg", "a.png", "0007-a-cat-42.webp"):
        picture(16, 16).save(here / "photos" / name)
    words = ["--upscaler", "x2.safetensors", "-o", "large", "--format", "webp", "-q"]
    done = sdcli(capfd, "upscale", "photos", "photo.png", *words)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "large/0001-a-cat-42-32x32.webp", "large/0002-a-32x32.webp", "large/0003-b-32x32.webp",
        "large/0004-photo-80x48.webp",
    ]  # fmt: skip
    done = sdcli(capfd, "upscale", "photos/*.png", "--upscaler", "x2.safetensors", "-o", "{slug}-{width}.png", "-q")
    assert done.out == "a-32.png\n"


def test_a_model_is_found_by_its_name_in_an_added_folder(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config.set_folders(config_file(), [models])
    assert sdcli(capfd, "upscale", "photo.png", "--upscaler", "x2", "-q").out.endswith("photo-80x48.png\n")
    listed = sdcli(capfd, "models", "--json").json["models"]
    assert {one["kind"] for one in listed if one["name"] in ("x2", "x4", "slow")} == {"upscaler"}


# --- what is kept of an image


def test_settings_of_a_drawn_image_go_on_into_the_large_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert sdcli(capfd, "generate", "a cat", "--seed", "7", "--steps", "9", *FAKE).code == 0
    small = "sdcli-images/0001-a-cat-7.png"
    for format in ("png", "jpg", "webp"):
        name = f"large.{format}"
        assert sdcli(capfd, "upscale", small, "--upscaler", "x2.safetensors", "-o", name, "-q").code == 0
        before, after = read.stored(small), read.stored(name)
        assert before.parameters is not None and after.parameters is not None and after.own is not None
        done = ", Postprocess upscale by: 2, Postprocess upscaler: x2, Postprocess upscaler hash: "
        assert after.parameters.startswith(before.parameters + done)
        record = own.read(after.own)
        (made,) = record.enlarged
        assert (made.upscaler, made.times, made.width, made.height) == ("x2", 1, 512, 512)
        assert before.own is not None and made.pixel_sha256 == own.read(before.own).pixel_sha256
        again = sdcli(capfd, "plan", "--settings-from", name, "--json").json
        assert [(job["prompt"], job["seed"], job["steps"], job["width"]) for job in again["jobs"]] == [
            ("a cat", 7, 9, 256)
        ]
        assert again["warnings"] == sdcli(capfd, "plan", "--settings-from", small, "--json").json["warnings"]


@pytest.mark.parametrize("metadata", ["full", "a1111", "none"])
def test_what_was_done_to_any_image_is_stored(capfd: pytest.CaptureFixture[str], metadata: str) -> None:
    words = ["upscale", "photo.png", "--upscaler", "x4.safetensors", "-o", "large.png", "--metadata", metadata, "-q"]
    assert sdcli(capfd, *words, "--scale", "64x64").code == 0
    with Image.open("large.png") as image:
        stored = dict(image.info)
    if metadata == "none":
        assert stored == {}
    else:
        assert stored["postprocessing"].startswith("Postprocess upscale to: 64x64, Postprocess upscaler: x4, ")
        assert "parameters" not in stored and "sdcli" not in stored


def test_transparency_and_the_colour_profile_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    logo = picture(20, 20)
    alpha = Image.new("L", (20, 20), 255)
    alpha.paste(0, (0, 0, 10, 20))
    logo.putalpha(alpha)
    logo.save("logo.png", icc_profile=profile)
    words = ["upscale", "logo.png", "--upscaler", "x2.safetensors"]
    done = sdcli(capfd, *words, "-o", "large.png")
    assert done.code == 0 and "white" not in done.err
    with Image.open("large.png") as large:
        assert large.mode == "RGBA" and large.size == (40, 40) and large.info["icc_profile"] == profile
        seen = large.getchannel("A")
        assert seen.getpixel((2, 20)) == 0 and seen.getpixel((37, 20)) == 255
    done = sdcli(capfd, *words, "-o", "large.jpg")
    assert "logo.png: its transparent parts are white" in done.err
    with Image.open("large.jpg") as large:
        assert min(large.getpixel((2, 20))) > 240


# --- JSON


def test_the_report_holds_predicted_and_measured_memory(capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "upscale", "photo.png", "--upscaler", "x4.safetensors", "--json", "-q")
    report = done.json
    assert (report["schema"], report["status"], report["exit_code"], report["error"]) == (
        "sdcli.upscale/1", "done", 0, None
    )  # fmt: skip
    (image,) = report["images"]
    assert image["status"] == "saved" and Path(image["path"]).is_file() and image["source"] == "photo.png"
    assert (image["source_width"], image["width"]) == (40, 160)
    assert report["upscaler"]["scale"] == 4 and len(report["upscaler"]["sha256"]) == 64
    assert [one["phase"] for one in report["memory"]] == ["load", "upscale", "save"]
    assert all(one["predicted_host"] > 0 and one["host"] > 0 for one in report["memory"])
    assert report["budget"]["host"] > 0 and report["environment"]["threads"] >= 1


def test_memory_on_a_cpu_is_what_the_plan_says(here: Path) -> None:
    """In a process of its own: peaks of this one hold whatever ran before."""
    make_checkpoint.write_upscaler(here / "wide.safetensors", blocks=1)
    picture(192, 192).save(here / "large.png")
    words = ("upscale", "large.png", "--upscaler", "wide.safetensors", "--dtype", "fp32", "--json", "-q")
    out, _ = start(*words, cwd=here, stdout=-1, stderr=-1).communicate()
    report = json.loads(out)
    assert report["status"] == "done"
    for one in report["memory"]:
        assert one["host"] == pytest.approx(one["predicted_host"], rel=0.15), one["phase"]


# --- refusals


REFUSED: list[tuple[list[str], int, str]] = [
    ([], 2, "no image"),
    (["photo.png"], 2, "--upscaler names no model"),
    (["photo.png", "--upscaler", "lanczos"], 2, "--upscaler names no model"),
    (["nothing.png", "--upscaler", "x4.safetensors"], 2, "there is no file nothing.png"),
    (["photo.png", "--upscaler", "nothing.safetensors"], 3, "there is no file nothing.safetensors"),
    (["photo.png", "--upscaler", "nothing"], 3, 'no upscaler "nothing"'),
    (["photo.png", "--upscaler", "tiny/unet/diffusion_pytorch_model.safetensors"], 9, "is a UNet alone, not an up"),
    (["photo.png", "--upscaler", "photo.png"], 9, "is a PNG image"),
    (["photo.png", "--upscaler", "x4.safetensors", "--scale", "large"], 2, "neither a factor nor WIDTHxHEIGHT"),
    (["photo.png", "--upscaler", "x4.safetensors", "--scale", "17"], 2, "--scale 17 is not above 0 and up to 16"),
    (["photo.png", "--upscaler", "x4.safetensors", "--scale", "99999x10"], 2, "sides are 1 to 65535"),
    (["photo.png", "--upscaler", "x4.safetensors", "--tile", "100"], 2, "--tile 100 is not a multiple of 8"),
    (["photo.png", "--upscaler", "x4.safetensors", "--max-ram", "0.2"], 4, "does not fit: it needs"),
    (["photo.png", "--upscaler", "x4.safetensors", "--dtype", "fp16"], 2, "--dtype fp16 is not possible here"),
    (["photo.png", "--upscaler", "x4.safetensors", "-o", "{seed}.png"], 2, "an enlarged image has no {seed}"),
    (["photo.png", "photo.png", "--upscaler", "x4.safetensors", "-o", "one.png"], 2, "2 images cannot all be saved as"),
    (["photo.png", "--upscaler", "x4.safetensors", "-o", "photo.png"], 7, "photo.png already exists"),
]


@pytest.mark.parametrize(("words", "code", "message"), REFUSED)
def test_refusals_come_before_anything_is_loaded(
    capfd: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    done = sdcli(capfd, "upscale", *words)
    assert message in " ".join(done.err.split()), done.err
    assert done.code == code and done.out == ""
    assert not Path("sdcli-images").exists()
    assert sdcli(capfd, "upscale", *words, "--json").json["error"]["code"] == code


def test_a_damaged_image_is_refused_by_name(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "half.png").write_bytes((here / "photo.png").read_bytes()[:500])
    done = sdcli(capfd, "upscale", "photo.png", "half.png", "--upscaler", "x4.safetensors")
    assert done.code == 9 and "half.png is a damaged image" in done.err


def test_a_pickle_is_refused_with_what_to_do(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "x4.pth").write_bytes(b"PK\x03\x04 archive/data.pkl")
    done = sdcli(capfd, "upscale", "photo.png", "--upscaler", "x4.pth")
    assert done.code == 6 and "is a pickle; loading one can run code; refused" in " ".join(done.err.split())
    assert "weights_only=True" in done.err and "save_file(" in done.err


def test_ctrl_c_keeps_the_images_that_are_finished(here: Path) -> None:
    picture(16, 16).save(here / "a.png")
    picture(700, 700).save(here / "b.png")
    process = start(
        "upscale", "a.png", "b.png", "--upscaler", "slow.safetensors", "--tile", "64", "--dtype", "fp32", cwd=here,
        stdout=-1, stderr=-1,
    )  # fmt: skip
    saved = here / "sdcli-images" / "0001-a-64x64.png"
    for _ in range(600):
        if saved.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out.decode() == "sdcli-images/0001-a-64x64.png\n" and size_of(saved) == (64, 64)
    assert b"interrupted" in err and b"kept: 1 of 2 images" in err
    assert sorted(path.name for path in (here / "sdcli-images").iterdir()) == ["0001-a-64x64.png"]


INTERRUPTED = """
import os, signal
from sdcli.record import enlarged
from sdcli.__main__ import run
place = enlarged.place
def placed(*words, **options):
    done = place(*words, **options)
    os.kill(os.getpid(), signal.SIGINT)
    return done
enlarged.place = placed
run()
"""  # sdcli, to which Ctrl-C comes when an image has its name and nobody was told of it


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_an_image_saved_as_the_signal_arrives_is_said(here: Path) -> None:
    command = [sys.executable, "-P", "-c", INTERRUPTED, "upscale", "photo.png", "photo.png", "--upscaler"]
    done = subprocess.run([*command, "x4.safetensors"], env=environment(), capture_output=True, text=True)
    (saved,) = (here / "sdcli-images").iterdir()
    assert done.returncode == 130 and done.stdout == f"sdcli-images/{saved.name}\n", done.stderr
    assert "kept: 1 of 2 images" in done.stderr


# --- generate


WORDS = (
    "a cat", "-m", "tiny", "--size", "64x64", "-s", "4", "--seed", "7", "--hires", "2", "--upscaler", "x4.safetensors",
)  # fmt: skip


def test_a_second_pass_through_a_model_is_planned_said_and_recorded(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = sdcli(capfd, "generate", *WORDS, *FAKE)
    assert done.code == 0, done.err
    assert "with upscaler x4 ×4" in done.err
    assert size_of("sdcli-images/0001-a-cat-7.png") == (128, 128)
    with Image.open("sdcli-images/0001-a-cat-7.png") as image:
        parameters, chunk = image.info["parameters"], json.loads(image.info["sdcli"])
    assert "Hires upscaler: x4" in parameters and "Denoising strength: 0.4" in parameters
    assert chunk["job"]["second"]["upscaler"] == "x4"
    assert [(one["kind"], one["name"]) for one in chunk["setup"]["adapters"]] == [("upscaler", "x4")]
    assert str(here) not in json.dumps(chunk)


@pytest.mark.parametrize("metadata", ["full", "a1111"])
def test_the_settings_of_an_image_find_the_model_again(
    here: Path, capfd: pytest.CaptureFixture[str], metadata: str
) -> None:
    """Next to the model, or in an added folder."""
    assert sdcli(capfd, "generate", *WORDS, "--metadata", metadata, *FAKE).code == 0
    plan = sdcli(capfd, "plan", "--settings-from", "sdcli-images/0001-a-cat-7.png", "--json").json
    assert "error" not in plan, plan
    assert plan["jobs"] == sdcli(capfd, "plan", *WORDS, "--json").json["jobs"]
    assert [one["kind"] for one in plan["setup"]["adapters"]] == ["upscaler"]
    (here / "x4.safetensors").unlink()
    lost = sdcli(capfd, "plan", "-m", "tiny", "--settings-from", "sdcli-images/0001-a-cat-7.png")
    assert lost.code == 3 and 'no upscaler "x4"' in lost.err


def test_the_plan_counts_it(capfd: pytest.CaptureFixture[str]) -> None:
    asked = ("--size", "768x768", "--hires", "1.25", "--json")
    words = ("plan", "a cat", "-m", "sd15", "--as-if", "cuda:24GiB", *asked, "--upscaler")
    plain, plan = sdcli(capfd, *words, "lanczos").json, sdcli(capfd, *words, "slow.safetensors").json
    assert "upscaler" in plan["model"]["components"] and "upscaler" not in plain["model"]["components"]
    works = [
        next(phase["work"] for phase in one["footprint"]["phases"] if phase["name"] == "upscale")
        for one in (plain, plan)
    ]
    assert works[1] > 1.1 * works[0] and plan["setup"]["upscaler_tile"] == 0
    small = sdcli(capfd, *[word.replace("24", "4") for word in words], "slow.safetensors").json
    assert small["setup"]["upscaler_tile"] > 0
    row = next(decision for decision in small["decisions"] if decision["slot"] == "upscaler_tile")
    assert row["choice"] == str(small["setup"]["upscaler_tile"]) and "than the budget" in row["because"]


def test_lines_have_upscalers_of_their_own(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "a cat", "hires": 2, "upscaler": "x4.safetensors"},
        {"prompt": "a dog", "hires": 2, "upscaler": "x2.safetensors"},
        {"prompt": "a fox", "hires": 2, "upscaler": "lanczos"}, {"prompt": "an owl"},
    ]  # fmt: skip
    (here / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("--prompts", "lines.jsonl", "-m", "tiny", "--size", "64x64", "-s", "2", "--seed", "7", "--no-show")
    report = sdcli(capfd, "generate", *words, "--json").json
    seconds = [job["second"] and job["second"]["upscaler"] for job in report["plan"]["jobs"]]
    assert seconds == ["x4", "x2", "lanczos", None]
    assert report["status"] == "done"
    assert [(image["width"], image["height"]) for image in report["images"]] == [(128, 128)] * 3 + [(64, 64)]


@pytest.mark.parametrize("name", ["x2.safetensors", "x4.safetensors"])
def test_from_files_to_a_file_it_draws_another_image(capfd: pytest.CaptureFixture[str], name: str) -> None:
    """For real, with a tiny model."""
    plain = sdcli(capfd, "generate", *WORDS[:-1], "lanczos", "--no-show", "--json").json
    report = sdcli(capfd, "generate", *WORDS[:-1], name, "--no-show", "--json").json
    assert report["status"] == "done", report
    assert report["images"][0]["pixel_sha256"] != plain["images"][0]["pixel_sha256"]
