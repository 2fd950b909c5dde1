"""The engine starting from images: alone or in a batch, in every placement, on a GPU, and out of memory."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from draw_samples import out_of_memory_at, plan_for
from PIL import Image

from scripts import make_checkpoint
from scripts.gpu import inside
from sdcli.draw import local
from sdcli.events import Decoded, Denoised, Encoded, EncodedImage, Step
from sdcli.images.read import InputImage, look
from sdcli.plan.plan import Plan
from sdcli.request.samplers import SAMPLERS
from tests.pretend_gpu import Pretended, device, pretend

MODES: dict[str, dict[str, Any]] = {
    "image": {"strength": 0.75},
    "mask": {"strength": 0.75, "mask": True},
    "only masked": {"strength": 0.75, "mask": True, "only_masked": True, "mask_padding": 0},
    "around": {"strength": 1.0, "outpaint": True},
}
TWICE: dict[str, dict[str, Any]] = {
    "latents twice": {"hires": 1.5, "hires_steps": 3},
    "image twice": {"hires": 1.5, "hires_steps": 3, "upscaler": "lanczos"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, InputImage]:
    """Two images of 96×64 and a mask of their size."""
    folder = tmp_path_factory.mktemp("photos")
    for number in (1, 2):
        values = numpy.random.default_rng(number).integers(0, 256, (64, 96, 3), dtype=numpy.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
    mask = Image.new("L", (96, 64))
    mask.paste(255, (24, 16, 64, 48))
    mask.save(folder / "mask.png")
    return {name: look(folder / f"{name}.png") for name in ("1", "2", "mask")}


def asked(photos: dict[str, InputImage], mode: str, *images: str, **more: Any) -> dict[str, Any]:
    from sdcli.request.request import Sides

    if mode in TWICE:
        return {"width": 96, "height": 64, **TWICE[mode], **more}
    given = MODES[mode] | more
    if given.pop("mask", False):
        given["mask"] = photos["mask"]
    if given.pop("outpaint", False):
        given["outpaint"] = Sides(left=32)
    return {"image": tuple(photos[name] for name in images or ("1",)), "width": 96, "height": 64, **given}


def pixels(plan: Plan) -> list[bytes]:
    return [event.pixels for event in local.run(plan) if isinstance(event, Decoded)]


def test_two_passes_of_a_batch_are_those_drawn_alone(tiny_folders: dict[str, Path]) -> None:
    for mode in TWICE:
        given = TWICE[mode] | {"sampler": "Euler a"}
        together = plan_for(tiny_folders["sd15"], seeds=(7, 8), batch_size=2, batch_invariant=True, **given)
        alone = [pixels(plan_for(tiny_folders["sd15"], seeds=(seed,), **given))[0] for seed in (7, 8)]
        assert pixels(together) == alone


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_a_batch_is_the_one_drawn_alone(
    tiny_folders: dict[str, Path], photos: dict[str, InputImage], mode: str
) -> None:
    """Two images and two seeds: with --batch-invariant to the bit, each from its own image."""
    together = asked(photos, mode, "1", "2", seeds=(7, 8), sampler="Euler a", batch_size=4, batch_invariant=True)
    drawn = pixels(plan_for(tiny_folders["sd15"], **together))
    alone = [
        pixels(plan_for(tiny_folders["sd15"], **asked(photos, mode, name, seeds=(seed,), sampler="Euler a")))[0]
        for name in ("1", "2")
        for seed in (7, 8)
    ]
    assert drawn == alone and len(set(drawn)) == 4


def test_an_image_is_encoded_once_whatever_the_number_of_seeds(
    tiny_folders: dict[str, Path], photos: dict[str, InputImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdcli.draw import encode_image

    calls: list[int] = []
    real = encode_image.encode
    monkeypatch.setattr(encode_image, "encode", lambda *given: calls.append(1) or real(*given))
    plan = plan_for(tiny_folders["sd15"], **asked(photos, "image", "1", "2", seeds=(1, 2, 3)))
    assert len(pixels(plan)) == 6 and len(calls) == 2


def test_steps_are_a_share_and_the_stages_are_those_planned(
    tiny_folders: dict[str, Path], photos: dict[str, InputImage]
) -> None:
    plan = plan_for(tiny_folders["sd15"], **asked(photos, "image", sampler="Heun", steps=8, strength=0.5))
    events = list(local.run(plan))
    steps = [event for event in events if isinstance(event, Step)]
    assert [event.step for event in steps] == list(range(1, 8)) and {event.of for event in steps} == {7}
    assert [event.stage for event in events if isinstance(event, EncodedImage)] == ["encode-image"]
    assert [phase.name for phase in plan.footprint.phases] == ["load", "encode", "encode-image", "denoise", "decode"]


@pytest.mark.parametrize("choices", [
    {"placement": "disk"}, {"placement": "drop-encoders"}, {"guidance": "in-turn"}, {"execution": "packed"},
    {"vae": "tile-256"}, {"attention": "sliced"},
])  # fmt: skip
def test_every_way_of_drawing_starts_from_images(
    tiny_folders: dict[str, Path], photos: dict[str, InputImage], choices: dict[str, str]
) -> None:
    plan = plan_for(tiny_folders["sdxl"], **asked(photos, "mask"))
    plain = pixels(plan)[0]
    other = pixels(replace(plan, setup=replace(plan.setup, **choices)))[0]  # type: ignore[arg-type]
    if "placement" in choices or "vae" in choices:  # neither moves a pixel at this size
        assert other == plain
    difference = numpy.frombuffer(other, numpy.uint8).astype(int) - numpy.frombuffer(plain, numpy.uint8)
    assert numpy.abs(difference).max() <= 2


@pytest.fixture(scope="module")
def repainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repainting")
    return make_checkpoint.write_folder(folder / "sd15", "sd15", tiny=True, channels=9)


@pytest.mark.parametrize("execution", ["eager", "packed"])
def test_a_model_that_was_trained_to_repaint_draws_in_every_mode(
    repainting: Path, photos: dict[str, InputImage], execution: str
) -> None:
    """Without a mask everything is new, without an image too."""
    pins = {"execution": execution}
    plans = [plan_for(repainting, pins=pins, width=96, height=64)]
    plans += [plan_for(repainting, **asked(photos, mode, pins=pins)) for mode in MODES]
    assert all(plan.model.kind == "sd15-inpainting" for plan in plans)
    assert all("encode-image" in [phase.name for phase in plan.footprint.phases] for plan in plans)
    drawn = [pixels(plan)[0] for plan in plans]
    assert len(set(drawn)) == len(plans)
    with Image.open(photos["1"].path) as photo:
        assert Image.frombytes("RGB", (96, 64), drawn[2]).crop((0, 0, 96, 16)) == photo.crop((0, 0, 96, 16))


@pytest.fixture(scope="module")
def editing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("editing")
    return {
        family: make_checkpoint.write_folder(folder / family, family, tiny=True, channels=8)
        for family in ("sd15", "sdxl")
    }


def edit_of(photos: dict[str, InputImage], *images: str, **more: Any) -> dict[str, Any]:
    given = {"image": tuple(photos[name] for name in images or ("1",)), "edits": True, "width": 96, "height": 64}
    return {**given, "image_guidance": 1.5, **more}


@pytest.mark.parametrize(
    ("family", "choices"),
    [
        ("sd15", {}), ("sd15", {"placement": "disk"}), ("sdxl", {"placement": "drop-encoders"}),
        ("sd15", {"guidance": "in-turn"}), ("sdxl", {"execution": "packed"}), ("sdxl", {"attention": "sliced"}),
        pytest.param("sdxl", {}, marks=pytest.mark.proof),
        pytest.param("sdxl", {"placement": "disk"}, marks=pytest.mark.proof),
        pytest.param("sd15", {"placement": "drop-encoders"}, marks=pytest.mark.proof),
        pytest.param("sdxl", {"guidance": "in-turn"}, marks=pytest.mark.proof),
        pytest.param("sd15", {"execution": "packed"}, marks=pytest.mark.proof),
        pytest.param("sd15", {"attention": "sliced"}, marks=pytest.mark.proof),
    ],
)  # fmt: skip
def test_a_model_that_was_trained_to_edit_draws_in_every_way(
    editing: dict[str, Path], photos: dict[str, InputImage], family: str, choices: dict[str, str]
) -> None:
    plan = plan_for(editing[family], **edit_of(photos, steps=6))
    assert plan.model.kind == f"{family}-edit" and plan.jobs[0].unet_calls == 6
    stages = [phase.name for phase in plan.footprint.phases]
    assert stages == ["load", "encode", "encode-image", "denoise", "decode"]
    plain = pixels(plan)[0]
    other = pixels(replace(plan, setup=replace(plan.setup, **choices)))[0]  # type: ignore[arg-type]
    if "placement" in choices:
        assert other == plain
    difference = numpy.frombuffer(other, numpy.uint8).astype(int) - numpy.frombuffer(plain, numpy.uint8)
    assert numpy.abs(difference).max() <= 2


def test_image_guidance_and_the_image_matter(editing: dict[str, Path], photos: dict[str, InputImage]) -> None:
    drawn = [
        pixels(plan_for(editing["sd15"], **edit_of(photos, *given, **more)))[0]
        for given, more in [(("1",), {}), (("2",), {}), (("1",), {"image_guidance": 3.0}), (("1",), {"guidance": 1.0})]
    ]
    assert len(set(drawn)) == 4


def test_an_edited_image_of_a_batch_is_the_one_drawn_alone(
    editing: dict[str, Path], photos: dict[str, InputImage]
) -> None:
    given = {"sampler": "Euler a", "batch_size": 4, "batch_invariant": True}
    together = pixels(plan_for(editing["sd15"], **edit_of(photos, "1", "2", seeds=(7, 8), **given)))
    alone = [
        pixels(plan_for(editing["sd15"], **edit_of(photos, name, seeds=(seed,), sampler="Euler a")))[0]
        for name in ("1", "2")
        for seed in (7, 8)
    ]
    assert together == alone and len(set(alone)) == 4


# --- on a GPU


@pytest.fixture
def gpu() -> Iterator[Pretended]:
    with pretend(device("8GiB", capability="8.6")) as made:
        yield made


@pytest.mark.parametrize(
    ("mode", "placement"),
    [
        ("around", "resident"),
        ("mask", "group-offload"),
        ("image twice", "disk"),
        *(
            pytest.param(mode, "resident", marks=pytest.mark.proof)
            for mode in ("image", "image twice", "mask", "only masked", "latents twice")
        ),
        *(pytest.param("mask", where, marks=pytest.mark.proof) for where in ("drop-encoders", "model-offload", "disk")),
    ],
)
def test_a_gpu_gives_the_pixels_of_the_cpu_and_keeps_nothing(
    tiny_folders: dict[str, Path], photos: dict[str, InputImage], gpu: Pretended, mode: str, placement: str
) -> None:
    given = asked(photos, mode, pins={"dtype": "fp32", "placement": placement, "attention": "fused"})
    drawn = pixels(inside.plan_for(tiny_folders["sd15"], **given))
    gc.collect()
    assert gpu.held() == 0
    given = asked(photos, mode, pins={"dtype": "fp32", "execution": "eager", "attention": "fused"})
    assert drawn == pixels(plan_for(tiny_folders["sd15"], **given))


# Of every kind one; each sampler alone is in test_draw_on_a_gpu.py.
WAITED = ("Euler a", "Heun", "UniPC")


@pytest.mark.parametrize(
    "sampler", [pytest.param(one.name, marks=[pytest.mark.proof] * (one.name not in WAITED)) for one in SAMPLERS]
)
def test_no_step_waits_for_the_gpu(
    tiny_folders: dict[str, Path], photos: dict[str, InputImage], gpu: Pretended, sampler: str
) -> None:
    """Also where the unmasked part is put back after every step."""
    plan = inside.plan_for(tiny_folders["sd15"], **asked(photos, "mask", sampler=sampler, steps=5))
    waits = []
    for event in local.run(plan):
        if isinstance(event, (EncodedImage, Step, Denoised)):
            waits.append((type(event).__name__, gpu.restart().waits))
    steps = [seen for kind, seen in waits if kind == "Step"]
    assert len(steps) == plan.jobs[0].unet_calls
    assert all(seen <= Counter(event=1) for seen in steps[1:])


@pytest.mark.parametrize(
    "placement",
    ["group-offload", *(pytest.param(where, marks=pytest.mark.proof) for where in ("resident", "model-offload"))],
)
def test_a_gpu_edits_with_the_pixels_of_the_cpu(
    editing: dict[str, Path], photos: dict[str, InputImage], gpu: Pretended, placement: str
) -> None:
    """And with the memory that was counted for three rows of each image."""
    given = edit_of(photos, pins={"dtype": "fp32", "placement": placement, "attention": "fused"})
    drawn = pixels(inside.plan_for(editing["sd15"], **given))
    gc.collect()
    assert gpu.held() == 0
    given = edit_of(photos, pins={"dtype": "fp32", "execution": "eager", "attention": "fused"})
    assert drawn == pixels(plan_for(editing["sd15"], **given))


@pytest.mark.parametrize(
    "mode", ["image twice", *(pytest.param(mode, marks=pytest.mark.proof) for mode in ("image", "mask"))]
)
def test_memory_may_run_out_at_any_allocation(
    tiny_folders: dict[str, Path], photos: dict[str, InputImage], mode: str
) -> None:
    """Once in every stage: the right pixels where the fallback moves none."""
    given = asked(photos, mode, sampler="Euler a", pins={"dtype": "fp32"})
    reached = {"load": 1}
    with pretend(device("8GiB")) as gpu:
        plan, plain = inside.plan_for(tiny_folders["sd15"], **given), []
        names = [phase.name for phase in plan.footprint.phases]
        for event in local.run(plan):
            if isinstance(event, (Encoded, EncodedImage, Denoised)):
                at = names.index(event.stage) + 1
                reached[names[at]] = gpu.allocator().requests + 5
            plain += [event.pixels] if isinstance(event, Decoded) else []
    for phase, number in reached.items():
        assert out_of_memory_at(plan, number, *plain) == phase
