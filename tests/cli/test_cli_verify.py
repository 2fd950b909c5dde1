"""`sdcli verify`: an image is drawn again from its own settings, and what explains a difference is named."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_run import Outcome, sdcli
from PIL import Image  # noqa: TID253
from PIL.PngImagePlugin import PngInfo  # noqa: TID253

from scripts import make_checkpoint
from sdcli.asking.planning import plan_for
from sdcli.cli import searching
from sdcli.cli.verify import another_model
from sdcli.models.model import Component, Model
from sdcli.plan.otherwise import MOST
from sdcli.plan.plan import Plan
from sdcli.record.metadata.read import ImageSettings

TINY = ("-m", "tiny", "--size", "64x64", "--steps", "2", "--no-show", "-q", "-o")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shelf")
    make_checkpoint.write_folder(root / "tiny", "sd15", tiny=True)
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(shelf / "tiny")
    return tmp_path


def verdicts(done: Outcome) -> list[dict[str, Any]]:
    assert done.json["schema"] == "sdcli.verify/1"
    listed: list[dict[str, Any]] = done.json["images"]
    return listed


def named(verdict: dict[str, Any]) -> set[str]:
    return {one["field"] for one in verdict["explained"]}


def altered(file: str, change: Callable[[dict[str, Any]], None]) -> str:
    """The image with something else in its own chunk; pixels and the other text stay."""
    with Image.open(file) as image:
        texts, info = dict(image.info), PngInfo()
        record = json.loads(texts.pop("sdcli"))
        change(record)
        info.add_itxt("sdcli", json.dumps(record))
        info.add_text("parameters", texts["parameters"])
        image.save("altered.png", pnginfo=info)
    return "altered.png"


@pytest.mark.parametrize(
    "flags",
    [
        ("--sampler", "Euler a", "--seed", "3", "--format", "webp"),
        ("-n", "3", "--batch-size", "2", "--negative-prompt", "dogs", "--guidance", "4.5"),
        ("--clip-skip", "2", "--sampler", "DPM++ 2M Karras", "--hires", "1.5"),
        ("--guidance", "1", "--sampler", "LCM", "--format", "jpg", "--pin", "guidance=in-turn", "--dtype", "fp32"),
    ],
    ids=["noise in every step", "a batch", "a second pass", "unguided"],
)
def test_an_image_is_what_its_settings_draw(capfd: pytest.CaptureFixture[str], flags: tuple[str, ...]) -> None:
    assert sdcli(capfd, "generate", "a (cat:1.2)", *flags, *TINY, "out").code == 0
    done = sdcli(capfd, "verify", "out", "-m", "tiny", "-q", "--json")
    assert done.code == 0, done.err
    assert {(one["verdict"], one["edited"], len(one["explained"])) for one in verdicts(done)} == {
        ("identical", False, 0)
    }
    assert len(verdicts(done)) == len([file for file in Path("out").iterdir() if file.is_file()])


def set_job(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["job"].update(values)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("seed", set_job(seed=8)),
        ("steps", set_job(steps=3, unet_calls=3)),
        ("guidance", set_job(guidance=3.0)),
        ("prompt", set_job(prompt="a dog")),
        ("negative_prompt", set_job(negative_prompt="dogs")),
        ("sampler", set_job(sampler="Euler")),
        ("clip_skip", set_job(clip_skip=2)),
        ("rng", set_job(rng="nv")),
        ("setup.isa", lambda record: record["setup"].update(isa="amx_tile")),
        ("setup.device", lambda record: record["setup"].update(device="cuda:0")),
        ("model.hash", lambda record: record["model"].update(hash="0123456789")),
        ("model.vae", lambda record: record["model"]["weights"].update(vae="0123456789abcdef")),
        ("version", lambda record: record.update(version="0.0.9")),
        ("environment.torch", lambda record: record["environment"].update(torch="1.9")),
        ("setup.threads", lambda record: record["setup"].update(device="cuda:0", threads=64)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_was_altered_is_named(
    capfd: pytest.CaptureFixture[str], field: str, change: Callable[[dict[str, Any]], None]
) -> None:
    model = "builtin" if field == "model.hash" else "tiny"
    sdcli(capfd, "generate", "a cat", "--seed", "7", *TINY, "cat.png", "-m", model)
    done = sdcli(capfd, "verify", altered("cat.png", change), "-m", model, "-q", "--json")
    (verdict,) = verdicts(done)
    assert field in named(verdict), verdict
    assert done.code == (0 if verdict["verdict"] == "identical" else 10)
    moves = "." not in field and field != "version"
    assert (verdict["verdict"] == "different") is moves or field.startswith("setup.")
    assert verdict["searched"] == 0


def test_pixels_that_were_edited_are_told_apart_from_settings(capfd: pytest.CaptureFixture[str]) -> None:
    sdcli(capfd, "generate", "a cat", "--seed", "7", *TINY, "cat.png")
    with Image.open("cat.png") as image:
        info = PngInfo()
        for name in ("sdcli", "parameters"):
            info.add_itxt(name, image.info[name])
        image.putpixel((5, 5), (1, 2, 3))
        image.save("edited.png", pnginfo=info)
    done = sdcli(capfd, "verify", "edited.png", "cat.png", "-m", "tiny", "-q")
    assert done.code == 10 and "1 of 2 images differs" in done.err
    first, second = [line for line in done.out.splitlines() if not line.startswith(" ")]
    assert first.startswith("edited.png: changed since it was drawn") and second == "cat.png: identical"


@pytest.mark.parametrize("drawn_in", ["fp32", "bf16"])
def test_a_number_type_that_was_altered_is_found_by_drawing_in_the_other(
    capfd: pytest.CaptureFixture[str], drawn_in: str
) -> None:
    recorded = "bf16" if drawn_in == "fp32" else "fp32"
    flags = ("--dtype", drawn_in, "--pin", "attention=fused", "--pin", "execution=eager")
    sdcli(capfd, "generate", "a cat", "--seed", "7", *flags, *TINY, "cat.png")
    image = altered("cat.png", lambda record: record["setup"].update(dtype=recorded))
    done = sdcli(capfd, "verify", image, "-m", "tiny", "--search")
    assert done.code == 10 and f"identical with setup.dtype {drawn_in}: the image says {recorded}" in done.out
    assert "looking for what explains it, 1 of " in done.err
    (verdict,) = verdicts(sdcli(capfd, "verify", image, "-m", "tiny", "-q", "--json", "--search"))
    (found,) = verdict["explained"]
    assert found == {"field": "setup.dtype", "then": recorded, "now": drawn_in, "confirmed": True}
    (verdict,) = verdicts(sdcli(capfd, "verify", image, "-m", "tiny", "-q", "--json", "--no-search"))
    assert (verdict["explained"], verdict["searched"], verdict["verdict"]) == ([], 0, "different")


def test_what_only_the_web_ui_s_text_says_is_searched_too(capfd: pytest.CaptureFixture[str]) -> None:
    sdcli(capfd, "generate", "a (cat:1.4)", "--rng", "nv", "--seed", "7", "--metadata", "a1111", *TINY, "cat.png")
    with Image.open("cat.png") as image:
        info = PngInfo()
        info.add_text("parameters", image.info["parameters"].replace("RNG: NV", "RNG: CPU"))
        image.save("altered.png", pnginfo=info)
    done = sdcli(capfd, "verify", "altered.png", "-m", "tiny", "-q", "--search")
    assert done.code == 10 and "identical with rng nv: the image says cpu" in done.out


def test_pixels_that_nothing_draws_are_explained_by_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    sdcli(capfd, "generate", "a (cat:1.4)", "--seed", "7", *TINY, "cat.png", "--engine", "fake")
    with Image.open("cat.png") as image:
        info, record = PngInfo(), json.loads(image.info["sdcli"])
    record["pixel_sha256"] = hashlib.sha256(noise.tobytes()).hexdigest()
    info.add_itxt("sdcli", json.dumps(record))
    noise.save("other.png", pnginfo=info)
    done = sdcli(capfd, "verify", "other.png", "-m", "tiny", "-q", "--search", "--engine", "fake")
    (count,) = re.findall(r"nothing explains it: (\d+) drawings with one thing otherwise also differed", done.out)
    assert done.code == 10 and 5 <= int(count) <= MOST


@pytest.mark.parametrize(
    ("asked", "seconds", "drawn"), [(None, 10_000.0, 1), (None, 20.0, 3), (None, 0.0, None), (True, 10_000.0, None)]
)
def test_unasked_number_types_are_tried_and_the_rest_as_far_as_it_takes_a_minute(
    asked: bool | None, seconds: float, drawn: int | None
) -> None:
    plan = plan_for({"words": ("a cat",), "model": "tiny", "dtype": "fp32", "size": "64x64", "seeds": "1"}, "plan").plan
    tried: list[Plan] = []
    found = searching.search(
        plan, lambda other: bool(tried.append(other)), seconds=seconds, asked=asked, quiet=True
    )  # fmt: skip
    every = len(tried) + int(found.left.split()[0] if found.left else 0)
    assert len(tried) == (drawn or every) and every > 3
    assert found.drawn == len(tried) and tried[0].setup.dtype == "bf16"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_component_of_a_model_folder_that_was_exchanged_is_named(
    capfd: pytest.CaptureFixture[str], here: Path, part: str
) -> None:
    sdcli(capfd, "generate", "a cat", "--seed", "7", *TINY, "cat.png")
    shutil.copytree(here / "tiny", here / "other" / "tiny")
    shutil.copytree(
        make_checkpoint.write_folder(here / "third", "sd15", tiny=True, seed=9) / part, here / "other" / "tiny" / part,
        dirs_exist_ok=True,
    )  # fmt: skip
    done = sdcli(capfd, "verify", "cat.png", "-m", "other/tiny", "-q", "--json")
    (verdict,) = verdicts(done)
    assert done.code == 10 and named(verdict) == {f"model.{part}"} and verdict["searched"] == 0


def test_an_image_that_began_with_another_needs_it(capfd: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save("photo.png")
    Image.effect_noise((64, 64), 70).convert("RGB").save("other.png")
    sdcli(capfd, "generate", "a cat", "--image", "photo.png", "--seed", "7", *TINY, "cat.png")
    alone = sdcli(capfd, "verify", "cat.png", "-m", "tiny", "-q")
    assert alone.code == 2 and "try: sdcli verify cat.png -m tiny -q --image photo.png" in alone.err
    assert sdcli(capfd, "verify", "cat.png", "-m", "tiny", "-q", "--image", "photo.png").code == 0
    other = sdcli(capfd, "verify", "cat.png", "-m", "tiny", "-q", "--image", "other.png", "--json")
    assert other.code == 10 and named(verdicts(other)[0]) == {"image.sha256"}


def test_an_image_with_nothing_but_the_web_ui_s_text_is_drawn_too(capfd: pytest.CaptureFixture[str]) -> None:
    sdcli(capfd, "generate", "a cat", "--seed", "7", "--metadata", "a1111", *TINY, "cat.png")
    (verdict,) = verdicts(sdcli(capfd, "verify", "cat.png", "-m", "tiny", "-q", "--json"))
    assert (verdict["dialect"], verdict["verdict"]) == ("a1111", "identical")


def another_programs(name: str, text: str) -> str:
    """As the web UI leaves it; pixels of its own."""
    info = PngInfo()
    info.add_text("parameters", text)
    Image.effect_noise((64, 64), 90).convert("RGB").save(name, pnginfo=info)
    return name


def test_another_checkpoint_than_the_web_ui_drew_with_is_named(here: Path) -> None:
    file = here / "one.safetensors"
    file.write_bytes(b"weights")
    part = Component(parameters=1, stored_bytes=1, stored_dtype="fp16", files=(str(file),))
    model = Model(name="one", kind="sd15", family="sd15", source="file", components={"unet": part, "vae": part})
    own = hashlib.sha256(b"weights").hexdigest()[:10]
    for said, named in (("0123456789", ["model.hash"]), (own, []), ("81761151", []), ("", [])):  # 8 letters: a CRC
        settings = ImageSettings(dialect="a1111", values={}, unknown={"Model hash": said})
        assert [found.field for found in another_model(settings, model)] == named
    in_a_folder = replace(model, components={"unet": part, "vae": replace(part, files=("vae.safetensors",))})
    assert list(another_model(replace(settings, unknown={"Model hash": "0123456789"}), in_a_folder)) == []


@pytest.mark.parametrize(("sampler", "matters"), [("Euler a", True), ("Euler", False)])
def test_seeds_of_each_steps_noise_are_said_not_to_be_followed(
    capfd: pytest.CaptureFixture[str], sampler: str, matters: bool
) -> None:
    text = f"a cat\nSteps: 2, Sampler: {sampler}, Seed: 5, Size: 64x64, ENSD: 31337, Model: tiny, Version: v1.9.4"
    done = sdcli(capfd, "verify", another_programs("cat.png", text), "-m", "tiny", "-q")
    assert done.code == 10
    assert ("not followed: ENSD 31337 (seeds the noise of each step)" in done.out) is matters


def test_an_image_without_settings_or_none_at_all_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    assert sdcli(capfd, "verify", "plain.png").code == 9
    assert sdcli(capfd, "verify").code == 2
    assert sdcli(capfd, "verify", "nowhere.png").code == 2
