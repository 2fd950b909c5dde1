"""Reference images on the command line: what is asked, refused, said and recorded."""

import json
from pathlib import Path

import pytest
from cli_run import sdcli
from PIL import Image  # noqa: TID253

from scripts import make_checkpoint
from sdcli.record.metadata import read

FAKE = ("--engine", "fake", "--no-show")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1.5, its IP-Adapter with an encoder beside it, and one without."""
    root = tmp_path_factory.mktemp("models")
    make_checkpoint.write_folder(root / "tiny", "sd15", tiny=True)
    make_checkpoint.write_image_encoder(root / "ip" / "image_encoder")
    make_checkpoint.write_ip_adapter(root / "ip" / "looks.safetensors", "sd15", tiny=True)
    make_checkpoint.write_ip_adapter(root / "ip" / "large.safetensors", "sdxl", tiny=True)
    make_checkpoint.write_ip_adapter(root / "alone.safetensors", "sd15", "plus", tiny=True)
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "ip", "alone.safetensors"):
        (tmp_path / name).symlink_to(models / name)
    Image.new("RGB", (96, 64), (200, 180, 160)).save("face.png")
    Image.effect_noise((50, 80), 90).save("noise.png")
    Image.new("L", (64, 64), 255).save("white.png")
    Image.new("L", (64, 64), 0).save("black.png")
    return tmp_path


WORDS = ("a cat", "-m", "tiny", "--size", "64x64", "-s", "4", "--seed", "7")
LOOKS = ("--reference-model", "ip/looks.safetensors")


def test_a_reference_is_planned_said_and_recorded(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = (*WORDS, *LOOKS, "--reference", "face.png:0.8", "--reference", "noise.png", "--reference-mask", "white.png")
    done = sdcli(capfd, "generate", *words, *FAKE)
    assert done.code == 0, done.err
    assert "with IP-Adapter looks, image encoder unknown" in done.err
    with Image.open("sdcli-images/0001-a-cat-7.png") as image:
        parameters, chunk = image.info["parameters"], json.loads(image.info["sdcli"])
    assert 'ControlNet 0: "Module: ip-adapter-auto, Model: looks [' in parameters
    assert "Weight: 0.8" in parameters and "ControlNet 1:" in parameters
    first, second = chunk["job"]["references"]
    assert (first["weight"], first["image"]["name"], first["mask"]["name"]) == (0.8, "face.png", "white.png")
    assert (second["weight"], second["mask"], second["layers"]) == (0.6, None, "all")
    assert len(first["image"]["sha256"]) == 64 and first["image"]["width"] == 96
    assert [one["kind"] for one in chunk["setup"]["adapters"]] == ["ip-adapter", "image-encoder"]
    assert str(here) not in json.dumps(chunk)
    stored = read.read("sdcli-images/0001-a-cat-7.png")
    assert stored.unknown == {"Reference": "face.png:0.8 and noise.png:0.6"}
    assert (stored.values["reference_model"], stored.values["reference_layers"]) == ("looks", "all")


def test_other_readers_take_the_right_model_from_it(capfd: pytest.CaptureFixture[str]) -> None:
    from sd_parsers import ParserManager

    assert sdcli(capfd, "generate", *WORDS, *LOOKS, "--reference", "face.png", *FAKE).code == 0
    parsed = ParserManager().parse("sdcli-images/0001-a-cat-7.png")
    assert parsed is not None and [model.name for model in parsed.models] == ["tiny"]


def test_the_plan_counts_it(capfd: pytest.CaptureFixture[str]) -> None:
    words = (*WORDS, *LOOKS, "--reference", "face.png", "--as-if", "cuda:8GiB", "--json")
    plan = sdcli(capfd, "plan", *words).json
    assert {"image_encoder", "ip_adapter"} <= plan["model"]["components"].keys()
    phases = {phase["name"]: phase for phase in plan["footprint"]["phases"]}
    assert phases["encode-reference"]["weights"] > 0 and phases["encode-reference"]["work"] > 0


def test_settings_of_an_image_name_the_adapter_and_not_the_picture(capfd: pytest.CaptureFixture[str]) -> None:
    assert sdcli(capfd, "generate", *WORDS, *LOOKS, "--reference", "face.png", *FAKE).code == 0
    again = sdcli(capfd, "plan", "--settings-from", "sdcli-images/0001-a-cat-7.png", "-m", "tiny", "--json").json
    assert again["request"]["reference_model"] == "looks" and again["jobs"][0]["references"] == []
    assert any("Reference face.png:0.6 (--reference names one)" in one["message"] for one in again["warnings"])


def test_lines_have_references_of_their_own(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"prompt": "a cat", "reference": ["face.png:0.5", "noise.png"], "reference_mask": "white.png"},
        {"prompt": "a dog"},
    ]
    (here / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plan = sdcli(capfd, "plan", "--prompts", "lines.jsonl", *WORDS[1:], *LOOKS, "--json").json
    assert [[one["weight"] for one in job["references"]] for job in plan["jobs"]] == [[0.5, 0.6], []]


def test_a_saved_adapter_harms_nobody_who_draws_without(capfd: pytest.CaptureFixture[str]) -> None:
    plan = sdcli(capfd, "plan", *WORDS, *LOOKS, "--reference-layers", "style", "--json").json
    assert plan["setup"]["adapters"] == [] and "ip_adapter" not in plan["model"]["components"]


def test_from_files_to_a_file_it_draws_another_image(capfd: pytest.CaptureFixture[str]) -> None:
    """For real, with a tiny model."""
    hashes = set()
    for more in ([], ["face.png"], ["noise.png"], ["noise.png:1"]):
        flags = [*LOOKS, "--reference", *more] if more else []
        report = sdcli(capfd, "generate", *WORDS, *flags, "--no-show", "--json").json
        assert report["status"] == "done", report
        hashes.add(report["images"][0]["pixel_sha256"])
        phases = [phase["name"] for phase in report["phases"]]
        assert ("encode-reference" in phases) == bool(more)
    assert len(hashes) == 4


FACE = ["--reference", "face.png"]
REFUSED = [
    (FACE, 2, "--reference needs an IP-Adapter"),
    ([*LOOKS, "--reference", "nothing.png:0.5"], 2, "there is no file nothing.png"),
    (["--reference-mask", "white.png"], 2, "--reference-mask needs a reference"),
    ([*LOOKS, *FACE, "--reference-mask", "white.png", "--reference-mask", "white.png"], 2, "2 masks for 1 --reference"),
    ([*LOOKS, *FACE, "--reference-mask", "black.png"], 9, "nothing is white in the mask"),
    ([*FACE, "--reference-model", "nothing"], 3, 'no IP-Adapter "nothing"'),
    ([*FACE, "--reference-model", "nothing.safetensors"], 3, "there is no file nothing.safetensors"),
    ([*FACE, "--reference-model", "ip/large.safetensors"], 9, "large was made for another UNet than that of tiny"),
    ([*FACE, "--reference-model", "alone.safetensors"], 3, "no image encoder lies beside"),
    ([*FACE, *LOOKS, "--reference-encoder", "tiny"], 3, "config.json is missing"),
    ([*FACE, *LOOKS, "--reference-layers", "style"], 2, "is known for SDXL only; tiny is Stable Diffusion 1.5"),
    ([*FACE, *LOOKS, "--reference-layers", "colour"], 2, '--reference-layers: "colour" is not one of'),
    ([*FACE, *LOOKS, "--pin", "attention=sliced"], 2, "attention in slices knows no reference images"),
    ([*FACE, *LOOKS, "--compile", "on"], 2, "so each would be compiled by itself"),
]


@pytest.mark.parametrize(("flags", "code", "message"), REFUSED)
def test_refusals_come_before_anything_is_loaded(
    capfd: pytest.CaptureFixture[str], flags: list[str], code: int, message: str
) -> None:
    done = sdcli(capfd, "plan", *WORDS, *flags)
    assert message in " ".join(done.err.split()), done.err
    assert done.code == code


def test_an_encoder_is_taken_from_where_it_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--reference-model", "alone.safetensors", "--reference-encoder", "ip/image_encoder"]
    assert sdcli(capfd, "plan", *WORDS, *FACE, *flags).code == 0
