"""--control with a Hub id: fetched as a LoRA is, with its config, refused before its weights where it does not fit."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_run import Outcome, sdcli
from PIL import Image  # noqa: TID253

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import model_files as make
from fake_hub import FakeHub, repository

from scripts import make_checkpoint
from sdcli import schema
from sdcli.asking import adapters
from sdcli.errors import BadFile, ModelMissing
from sdcli.models import resolve
from sdcli.plan.plan import Setup
from sdcli.record.metadata import read

ID, COMMIT = "someone/lines", "d" * 40
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
DRAW = ("--size", "64x64", "-s", "2", "--seed", "1", "--device", "cpu", "--no-show")
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shelf")
    make_checkpoint.write_folder(root / "tiny", "sd15", tiny=True)
    make_checkpoint.write_controlnet_folder(root / "lines", "sd15", tiny=True)
    make_checkpoint.write_t2i_folder(root / "sketch", "sd15", tiny=True)
    return root


@pytest.fixture
def lines(server: FakeHub, shelf: Path) -> FakeHub:
    files = held(shelf / "lines")
    pickle = {"diffusion_pytorch_model.bin": b"x", "README.md": b"x"}
    halves = {"diffusion_pytorch_model.fp16.safetensors": files[WEIGHTS]}
    server.repositories[ID] = repository({**files, **halves, **pickle}, commit=COMMIT, card={"license": "mit"})
    server.repositories["someone/sketch"] = repository(held(shelf / "sketch"))
    Path("tiny").symlink_to(shelf / "tiny")
    Image.new("RGB", (64, 64), (200, 180, 160)).save("room.png")
    return server


@pytest.fixture
def place(own_folders: Path) -> Path:
    return own_folders / "huggingface/hub/models--someone--lines"


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def generate(capfd: pytest.CaptureFixture[str], *words: str, engine: str = "fake") -> Outcome:
    return sdcli(capfd, "generate", "a cat", "-m", "tiny", *DRAW, "--engine", engine, *words)


def adapter(done: Outcome) -> dict[str, Any]:
    assert done.code == 0, done.err
    (found,) = done.json["plan"]["setup"]["adapters"]
    return dict(found)


def test_one_is_fetched_with_its_config_shown_first_and_recorded_with_its_commit(
    lines: FakeHub, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = generate(capfd, "--control", f"{ID}=room.png:0.8", "--json")
    found = adapter(done)
    half = "diffusion_pytorch_model.fp16.safetensors"
    assert (found["name"], found["kind"], found["hub"]) == ("lines", "controlnet", f"{ID}@{COMMIT}/{half}")
    first, second = done.err.splitlines()[:2]
    assert first == f"{ID}/{half} @ddddddd, a ControlNet" and second.startswith("  licence mit, open to all · ")
    assert {path.name for path in (place / "snapshots" / COMMIT).rglob("*")} == {half, CONFIG}
    assert done.json["images"][0]["controls"][0]["net"] == "lines"


def test_a_second_time_nothing_is_asked_and_the_pixels_are_those_of_the_folder(
    lines: FakeHub, shelf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert generate(capfd, "--control", f"{ID}=room.png").code == 0
    lines.log.clear()
    names = (f"{ID}", f"{ID}@{COMMIT}/diffusion_pytorch_model.fp16.safetensors", str(shelf / "lines"))
    drawn = {
        generate(capfd, "--control", f"{name}=room.png", "--json", "--offline", engine="local").json["images"][0][
            "pixel_sha256"
        ]
        for name in names
    }
    assert len(drawn) == 1 and not lines.log


def test_a_t2i_adapter_and_a_named_file_are_fetched_alike(lines: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    found = adapter(generate(capfd, "--control", "someone/sketch=room.png", "--json"))
    assert (found["name"], found["kind"]) == ("sketch", "t2i-adapter")
    named = adapter(generate(capfd, "--control", f"{ID}/{WEIGHTS}=room.png", "--json"))
    assert named["hub"] == f"{ID}@{COMMIT}/{WEIGHTS}"


@pytest.mark.parametrize("words", [("plan", "a cat", "-m", "tiny"), ("generate", "a cat", "-m", "tiny", "--offline")])
def test_a_plan_and_offline_never_connect_and_say_what_to_pull(
    lines: FakeHub, place: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    more = ("--control", f"{ID}=room.png", *DRAW[:-1], *(("--engine", "fake") if words[0] == "generate" else ()))
    done = sdcli(capfd, *words, *more)
    assert done.code == 3 and f'sdcli pull "{ID}"' in done.err and not lines.log
    assert sdcli(capfd, "pull", ID).code == 0
    assert {path.name for path in (place / "snapshots" / COMMIT).rglob("*")} >= {CONFIG}
    assert sdcli(capfd, *words, *more).code == 0


REFUSED: dict[str, tuple[dict[str, bytes], int, str]] = {
    "pickles": ({"diffusion_pytorch_model.bin": b"x", CONFIG: b"{}"}, 6, "only pickles"),
    "a model": ({"model_index.json": b"{}", WEIGHTS: b"x"}, 9, "a whole model"),
    "a page": ({WEIGHTS: b"<html>" * 100}, 9, "web page"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_none_is_refused_before_its_weights(
    lines: FakeHub, place: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    files, code, told = REFUSED[name]
    lines.repositories[ID] = repository(files, commit=COMMIT)
    done = generate(capfd, "--control", f"{ID}=room.png")
    assert (done.code, done.out) == (code, "") and told in done.err, done.err
    assert not place.exists()


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"controlnet_cond_embedding.conv_in.weight": [16, 3, 3, 3], ATTENTION: [4, 2048]},
         "is a ControlNet for SDXL; tiny is Stable Diffusion 1.5"),
        ({"adapter.conv_in.weight": [4, 768, 3, 3], "adapter.body.0.resnets.0.block1.weight": [4, 4, 3, 3]},
         "is a T2I-Adapter for SDXL; tiny is Stable Diffusion 1.5"),
        ({"lllite_unet_x.down.0.weight": [16, 320]}, "is a ControlLLLite"),
        ({"lora_unet_down_blocks_0_x_attn2_to_k.lora_down.weight": [4, 768]}, "is a LoRA, not a ControlNet"),
    ],
)  # fmt: skip
def test_one_for_another_family_or_of_another_kind_is_refused_before_its_weights(
    lines: FakeHub, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], shapes: make.Shapes, told: str
) -> None:
    content = make.file(tmp_path / "x.safetensors", shapes).read_bytes()
    lines.repositories[ID] = repository({"net.safetensors": content}, commit=COMMIT)
    done = generate(capfd, "--control", f"{ID}=room.png")
    assert done.code == 9 and told in " ".join(done.err.split()), done.err
    assert not place.exists()


def test_of_several_files_one_is_named(lines: FakeHub, shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = held(shelf / "lines")[WEIGHTS]
    lines.repositories[ID] = repository({"a.safetensors": content, "b.safetensors": content}, commit=COMMIT)
    done = generate(capfd, "--control", f"{ID}=room.png")
    assert done.code == 2 and f"--control {ID}/a.safetensors=FILE" in done.err, done.err


def test_other_bytes_under_its_name_in_the_cache_are_not_loaded(
    lines: FakeHub, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert generate(capfd, "--control", f"{ID}=room.png").code == 0
    (blob,) = [path for path in (place / "blobs").iterdir() if path.stat().st_size > 10_000]
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x01")
    done = generate(capfd, "--control", f"{ID}=room.png")
    assert done.code == 9 and "differs from the Hub's file" in done.err


def test_a_recorded_one_is_found_again_by_its_commit_or_its_name(
    lines: FakeHub, shelf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = resolve.at(shelf / "tiny")
    done = generate(capfd, "--control", f"{ID}=room.png", "--json")
    recorded = schema.from_json(Setup, done.json["plan"]["setup"], "a plan").adapters
    (found,) = adapters.located(recorded, model, ())
    assert found.hub == recorded[0].hub and Path(str(found.path)).is_file()
    assert read.read(done.json["images"][0]["path"]).unknown == {"Control": f"{found.hub}=room.png"}
    done = generate(
        capfd, "--control", f"{shelf / 'lines'}=room.png", "--control", f"{shelf / 'sketch'}=room.png", "--json"
    )
    recorded = schema.from_json(Setup, done.json["plan"]["setup"], "a plan").adapters
    located = adapters.located(recorded, model, (shelf,))
    assert [(one.kind, one.path) for one in located] == [
        ("controlnet", str(shelf / "lines")), ("t2i-adapter", str(shelf / "sketch"))
    ]  # fmt: skip
    with pytest.raises(ModelMissing):
        adapters.located(recorded, model, ())
    with pytest.raises(BadFile, match="is not the T2I-Adapter recorded"):
        adapters.located([replace(recorded[1], sha256="0" * 64)], model, (shelf,))


def test_a_net_in_a_folder_is_called_as_that_is(
    lines: FakeHub, shelf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "controlnet").mkdir()
    real = tmp_path / "controlnet" / "Whole"
    real.mkdir()
    for name, content in held(shelf / "lines").items():
        (real / name).write_bytes(content)
    found = adapter(generate(capfd, "--control", "whole=room.png", "--json"))
    assert (found["name"], found["hub"]) == ("Whole", "")
    assert json.loads((real / CONFIG).read_text())["_class_name"] == "ControlNetModel"
