"""Playground v2.5 on the command line: its own samplers, and what does not go with it."""

import json
from pathlib import Path

import pytest
from cli_run import sdcli
from PIL import Image  # noqa: TID253

from scripts import make_checkpoint
from sdcli.models import edm
from sdcli.request.samplers import EDM, SAMPLERS


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one, a tiny CosXL, an SDXL and its refiner."""
    root = tmp_path_factory.mktemp("models")
    for name, family in (("playground", "sdxl"), ("cosxl", "sdxl"), ("base", "sdxl"), ("refiner", "refiner")):
        make_checkpoint.write_folder(root / name, family, tiny=True)
    for name, changes in (("playground", {}), ("cosxl", {"prediction_type": "v_prediction"})):
        scheduler = {**edm.SCHEDULER, **changes}
        (root / name / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    Image.new("RGB", (64, 64), (200, 90, 40)).save("photo.png")
    Image.new("L", (64, 64), 255).save("mask.png")


WORDS = ("a cat", "-m", "playground", "--size", "64x64", "-s", "4", "--seed", "7")


def test_it_comes_with_its_sampler_and_guidance(capfd: pytest.CaptureFixture[str]) -> None:
    plan = sdcli(capfd, "plan", *WORDS, "--json").json
    assert (plan["model"]["kind"], plan["model"]["family"]) == ("sdxl-edm", "sdxl")
    assert (plan["request"]["sampler"], plan["request"]["guidance"]) == ("EDM DPM++ 2M", 3.0)
    assert plan["origins"]["sampler"] == plan["origins"]["guidance"] == "model"


def test_it_draws_and_is_drawn_again(capfd: pytest.CaptureFixture[str]) -> None:
    hashes = set()
    for more in ([], ["--sampler", "EDM Euler"], ["--image", "photo.png"]):
        report = sdcli(capfd, "generate", *WORDS, *more, "--no-show", "--json").json
        assert report["status"] == "done", report
        hashes.add(report["images"][0]["pixel_sha256"])
    assert len(hashes) == 3
    for metadata in ("full", "a1111"):
        name = f"{metadata}.png"
        words = [*WORDS, "--sampler", "EDM Euler", "--metadata", metadata, "-o", name, "--engine", "fake", "--no-show"]
        assert sdcli(capfd, "generate", *words).code == 0
        again = sdcli(capfd, "plan", "--settings-from", name, "--json").json
        assert again["request"]["sampler"] == "EDM Euler"


@pytest.mark.parametrize("sampler", [sampler.name for sampler in SAMPLERS])
def test_every_other_sampler_is_refused_by_name(capfd: pytest.CaptureFixture[str], sampler: str) -> None:
    done = sdcli(capfd, "plan", *WORDS, "--sampler", sampler)
    said = " ".join(done.err.split())
    assert done.code == 2 and f"{sampler} does not support models trained with EDM's noise" in said
    assert "use one of: EDM DPM++ 2M, EDM Euler" in said and "--sampler 'EDM DPM++ 2M'" in said.replace('"', "'")


@pytest.mark.parametrize("sampler", [sampler.name for sampler in EDM])
@pytest.mark.parametrize("model", ["base", "builtin", "sd15"])
def test_and_its_own_for_every_other_model(capfd: pytest.CaptureFixture[str], sampler: str, model: str) -> None:
    done = sdcli(capfd, "plan", "a cat", "-m", model, "--sampler", sampler)
    assert done.code == 2 and f"{sampler} is for models trained with EDM's noise" in " ".join(done.err.split())


@pytest.mark.parametrize(("flags", "code", "message"), [
    (["--image", "photo.png", "--mask", "mask.png"], 2, "trained with EDM's noise, and repaints no part of an image"),
    (["--image", "photo.png", "--outpaint", "32", "--size", "128x128"], 2, "and repaints no part of an image"),
    (["--refiner", "refiner"], 9, "trained on different noise (epsilon with EDM's noise, epsilon)"),
    (["-m", "cosxl"], 9, "was trained with EDM's noise, predicts v_prediction and is like no model"),
])  # fmt: skip
def test_what_does_not_go_with_it(capfd: pytest.CaptureFixture[str], flags: list[str], code: int, message: str) -> None:
    done = sdcli(capfd, "plan", *WORDS, *flags)
    assert message in " ".join(done.err.split()), done.err
    assert done.code == code


def test_the_list_of_samplers_has_them(capfd: pytest.CaptureFixture[str]) -> None:
    listed = [sampler["name"] for sampler in sdcli(capfd, "samplers", "--json").json["samplers"]]
    assert listed == [sampler.name for sampler in (*SAMPLERS, *EDM)]
    assert "EDM Euler" in sdcli(capfd, "samplers").out
