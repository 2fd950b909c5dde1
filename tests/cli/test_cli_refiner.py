"""--refiner on the command line: what is asked, refused, said, recorded and taken back from an image."""

import json
from pathlib import Path

import pytest
from cli_run import sdcli
from fake_hub import FakeHub, repository
from PIL import Image  # noqa: TID253
from PIL.PngImagePlugin import PngInfo  # noqa: TID253

from scripts import make_checkpoint

FAKE = ("--engine", "fake", "--no-show")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny ones: SDXL, one of it that predicts v, one that repaints, its refiner, and SD1.5."""
    root = tmp_path_factory.mktemp("models")
    for family in ("sdxl", "refiner", "sd15"):
        make_checkpoint.write_folder(root / family, family, tiny=True)
    make_checkpoint.write_folder(root / "other", "sdxl", tiny=True, scheduler={"prediction_type": "v_prediction"})
    make_checkpoint.write_folder(root / "repaints", "sdxl", tiny=True, channels=9)
    return root


@pytest.fixture
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, link in (("sdxl", "base"), ("refiner", "refiner"), ("sd15", "small"), ("other", "other"),
                       ("repaints", "repaints")):  # fmt: skip
        (tmp_path / link).symlink_to(models / name)
    Image.new("RGB", (64, 64), (200, 90, 40)).save("photo.png")
    Image.new("L", (64, 64), 255).save("mask.png")
    return tmp_path


DRAWN = ("a cat", "--size", "64x64", "-s", "4", "--seed", "7")
WORDS = (*DRAWN, "-m", "base")


def test_a_refiner_is_planned_said_and_recorded(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", *WORDS, "--refiner", "refiner@0.7", *FAKE)
    assert done.code == 0, done.err
    assert "a cat · 64×64 · 3 + 1 steps" in done.err and "with refiner refiner" in done.err
    with Image.open("sdcli-images/0001-a-cat-7.png") as image:
        parameters, chunk = image.info["parameters"], json.loads(image.info["sdcli"])
    (adapter,) = chunk["setup"]["adapters"]
    assert f"Refiner: refiner [{adapter['sha256'][:10]}], Refiner switch at: 0.7" in parameters
    assert chunk["job"]["refined"] == {"model": "refiner", "share": 0.7, "steps": 1, "unet_calls": 1}
    assert str(here) not in json.dumps(chunk)


@pytest.mark.parametrize("metadata", ["full", "a1111"])
def test_the_settings_of_an_image_bring_its_refiner_back(
    here: Path, capfd: pytest.CaptureFixture[str], metadata: str
) -> None:
    words = (*WORDS, "--refiner", "refiner@0.5")
    assert sdcli(capfd, "generate", *words, "--metadata", metadata, *FAKE).code == 0
    flags = ("--settings-from", "sdcli-images/0001-a-cat-7.png", "--json")
    assert sdcli(capfd, "plan", *flags).json["jobs"] == sdcli(capfd, "plan", *words, "--json").json["jobs"]
    without = sdcli(capfd, "plan", *flags, "--refiner", "none").json
    assert without["jobs"][0]["refined"] is None and "refiner_unet" not in without["model"]["components"]


def test_a_refiner_of_an_image_that_is_not_here_is_named(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    info = PngInfo()
    pairs = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Refiner: lost_1.0 [7440042bbd]"
    info.add_text("parameters", f"a cat\n{pairs}, Refiner switch at: 0.8")
    Image.new("RGB", (8, 8)).save("webui.png", pnginfo=info)
    done = sdcli(capfd, "plan", "-m", "base", "--settings-from", "webui.png")
    said = " ".join(done.err.split())
    assert "--refiner none (or with the path of lost_1.0)" in said
    assert done.code == 3 and "the image was drawn with the refiner lost_1.0, and there is no model" in said
    assert sdcli(capfd, "plan", "-m", "base", "--settings-from", "webui.png", "--refiner", "none").code == 0
    plan = sdcli(capfd, "plan", "-m", "base", "--settings-from", "webui.png", "--refiner", "refiner", "--json").json
    assert plan["warnings"] == [one for one in plan["warnings"] if one["code"] != "settings-not-taken"]


def test_its_stages_are_planned(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for device in ("cpu", "cuda:8GiB"):
        plan = sdcli(capfd, "plan", *WORDS, "--refiner", "refiner", "--as-if", device, "--json").json
        names = [phase["name"] for phase in plan["footprint"]["phases"]]
        assert names == ["load", "encode", "encode-refiner", "denoise", "refine", "decode"]
        assert {"unet", "refiner_unet", "refiner_text_encoder_2"} <= plan["model"]["components"].keys()
        assert "refiner_vae" not in plan["model"]["components"]


def test_it_draws_another_image_for_real(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hashes = set()
    for more in (
        [], ["--refiner", "refiner"], ["--refiner", "refiner@0.3"], ["--refiner", "refiner", "--image", "photo.png"],
    ):  # fmt: skip
        report = sdcli(capfd, "generate", *WORDS, *more, "--no-show", "--json").json
        assert report["status"] == "done", report
        hashes.add(report["images"][0]["pixel_sha256"])
    assert len(hashes) == 4


def test_over_an_image_a_refiner_draws_alone(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("generate", *DRAWN, "-m", "refiner", "--image", "photo.png", "-s", "10")
    report = sdcli(capfd, *words, "--no-show", "--json").json
    assert report["status"] == "done", report
    assert report["plan"]["jobs"][0]["start"]["strength"] == 0.3 and report["plan"]["origins"]["strength"] == "family"
    assert report["images"][0]["unet_calls"] == 3


def test_lines_of_prompts_share_it(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "lines.jsonl").write_text('{"prompt": "a cat", "steps": 10}\n{"prompt": "a dog"}\n')
    plan = sdcli(
        capfd, "plan", "--prompts", "lines.jsonl", "--size", "64x64", "-s", "5", "-m", "base", "--refiner", "refiner",
        "--json",
    ).json  # fmt: skip
    assert [job["refined"]["steps"] for job in plan["jobs"]] == [2, 1]
    (here / "lines.jsonl").write_text('{"prompt": "a cat", "refiner": "refiner"}\n')
    done = sdcli(capfd, "plan", "--prompts", "lines.jsonl", "-m", "base")
    assert done.code == 9 and 'no column "refiner"' in done.err


def test_it_may_be_a_setting_that_stays(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCLI_REFINER", "refiner@0.5")
    assert sdcli(capfd, "plan", *WORDS, "--json").json["jobs"][0]["refined"]["steps"] == 2
    assert sdcli(capfd, "plan", *WORDS, "--refiner", "none", "--json").json["jobs"][0]["refined"] is None


REFUSED = [
    (["--refiner", "refiner@1.2"], 2, "--refiner: 1.2 is not a share of the steps, between 0 and 1"),
    (["--refiner", "refiner@0"], 2, "--refiner: 0 is not a share of the steps, between 0 and 1"),
    (["--refiner", " "], 2, "--refiner: the value is empty"),
    (["--refiner", "./nothing.safetensors"], 3, "there is no file or folder ./nothing.safetensors"),
    (["--refiner", "nothing"], 3, 'no model "nothing"'),
    (["--refiner", "someone/nothing"], 3, "someone/nothing is not in the Hugging Face cache of this machine"),
    (["--refiner", "base"], 9, "base is SDXL, not a refiner"),
    (["--refiner", "sd15"], 9, "sd15 is Stable Diffusion 1.5, not a refiner"),
    (["--refiner", "refiner", "-m", "small"], 9, "refiner refines what SDXL draws; small is Stable Diffusion 1.5"),
    (["--refiner", "refiner", "-m", "refiner", "--image", "photo.png", "-s", "9"], 9, "refiner is the SDXL refiner"),
    (["--refiner", "refiner", "-m", "repaints"], 9, "repaints was trained to repaint, and refiner sees no mask"),
    (["--refiner", "refiner", "-m", "other"], 9, "trained on different noise (v_prediction, epsilon)"),
    (["--refiner", "refiner", "--hires", "2"], 2, "of a whole image, and does not go with --hires"),
    (["--refiner", "refiner", "--image", "photo.png", "--outpaint", "8"], 2, "does not go with --outpaint"),
    (["--refiner", "refiner", "--image", "photo.png", "--mask", "mask.png"], 2, "does not go with --mask"),
    (["--refiner", "refiner", "--control", "net=photo.png"], 2, "does not go with --control"),
    (["--refiner", "refiner", "-s", "1"], 2, "--refiner shares two steps or more, and there is 1"),
    (["--refiner", "refiner", "--pin", "execution=compile"], 2, "execution=compile prepares one UNet"),
    (["-m", "refiner"], 2, "refiner is the SDXL refiner: it draws over an image, or another's last steps"),
]


@pytest.mark.parametrize(("flags", "code", "message"), REFUSED)
def test_refusals_come_before_anything_is_loaded(
    here: Path, capfd: pytest.CaptureFixture[str], flags: list[str], code: int, message: str
) -> None:
    done = sdcli(capfd, "plan", *(DRAWN if "-m" in flags else WORDS), *flags)
    assert message in " ".join(done.err.split()), done.err
    assert done.code == code and "try:" in done.err
    assert "--refiner sd15" not in done.err


def test_a_step_too_few_is_mended_by_the_hint(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ("--refiner", "refiner", "--image", "photo.png", "--strength", "0.3")
    done = sdcli(capfd, "plan", *WORDS, *flags)
    assert (done.code == 2 and "--steps 7" in done.err) or "-s 7" in done.err
    assert sdcli(capfd, "plan", *DRAWN[:-4], "-m", "base", "-s", "7", *flags).code == 0


def test_a_base_and_its_refiner_are_downloaded_one_after_the_other(
    server: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here it is another model: found out once its files say so."""
    server.repositories["someone/other"] = repository()
    done = sdcli(capfd, "generate", *DRAWN, "-m", "someone/tiny", "--refiner", "someone/other", "--no-show")
    assert done.code == 9 and "other is Stable Diffusion 1.5, not a refiner" in " ".join(done.err.split()), done.err
    assert sdcli(capfd, "plan", *DRAWN, "-m", "someone/tiny", "--offline").code == 0
