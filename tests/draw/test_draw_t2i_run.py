"""The engine steered by T2I-Adapters: among the components, in every placement, on a GPU, beside a ControlNet."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from draw_samples import out_of_memory_while_drawing
from test_draw_control_run import on_a_gpu, pixels, plan_for

from scripts import make_checkpoint
from sdcli.draw import local
from sdcli.errors import Usage
from sdcli.events import Decoded, Denoised, Encoded, Loaded, Step
from sdcli.images.read import InputImage
from sdcli.request.request import Control
from tests.pretend_gpu import device, pretend


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("nets")
    make_checkpoint.write_t2i_folder(root / "sketch", "sd15", tiny=True, channels=1)
    make_checkpoint.write_t2i_file(root / "light.safetensors", "sd15", layout="original", tiny=True, light=True, seed=2)
    make_checkpoint.write_t2i_folder(root / "large", "sdxl", tiny=True, seed=3)
    make_checkpoint.write_controlnet_folder(root / "lines", "sd15", tiny=True, seed=4)
    return {path.stem: str(path) for path in root.iterdir()}


STEERED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "one": (("sketch",), {}), "two": (("light", "sketch"), {}), "beside a ControlNet": (("lines", "sketch"), {}),
    "from an image": (("sketch",), {"strength": 0.75}), "twice": (("light",), {"hires": 1.5, "hires_steps": 2}),
    "guessing": (("lines", "light"), {"guess_mode": True}),
}  # fmt: skip


def asked(nets: dict[str, str], photo: InputImage, how: str) -> tuple[tuple[Control, ...], dict[str, Any]]:
    names, given = STEERED[how]
    steering = tuple(
        Control(net=nets[name], image=photo, weight=1.2 - number / 2, start=number / 4)
        for number, name in enumerate(names)
    )
    return steering, {**given, **({"image": (photo,)} if how == "from an image" else {})}


def test_adapters_are_components_and_part_of_the_setup(
    tiny_folders: dict[str, Path],
    nets: dict[str, str],
    photo: InputImage,
) -> None:
    steering, _ = asked(nets, photo, "beside a ControlNet")
    plan = plan_for(tiny_folders["sd15"], steering)
    assert [(one.kind, one.name) for one in plan.setup.adapters] == [("controlnet", "lines"), ("t2i-adapter", "sketch")]
    assert [one.part for one in plan.jobs[0].controls] == ["controlnet", "t2i_adapter"]
    loaded = {event.component: event.bytes for event in local.run(plan) if isinstance(event, Loaded)}
    assert loaded["t2i_adapter"] == 4 * plan.model.components["t2i_adapter"].parameters
    alone = plan_for(tiny_folders["sd15"], steering[:1])
    assert plan.footprint.device_peak > alone.footprint.device_peak


@pytest.mark.parametrize("how", STEERED)
def test_an_image_of_a_batch_is_the_one_drawn_alone(
    tiny_folders: dict[str, Path],
    nets: dict[str, str],
    photo: InputImage,
    how: str,
) -> None:
    steering, given = asked(nets, photo, how)
    given["sampler"] = "Euler a"
    path = tiny_folders["sd15"]
    together = pixels(plan_for(path, steering, seeds=(7, 8), batch_size=2, batch_invariant=True, **given))
    assert together == [pixels(plan_for(path, steering, seeds=(seed,), **given))[0] for seed in (7, 8)]
    fewer = tuple(one for one in steering if "lines" in one.net)
    plain = given | ({} if fewer else {"guess_mode": False})
    assert together[0] != pixels(plan_for(path, fewer, seeds=(7,), **plain))[0]


@pytest.mark.parametrize("choices", [
    {"placement": "disk"}, {"placement": "drop-encoders"}, {"guidance": "in-turn"}, {"execution": "packed"},
    {"attention": "sliced"},
])  # fmt: skip
def test_every_way_of_drawing_is_steered(
    tiny_folders: dict[str, Path],
    nets: dict[str, str],
    photo: InputImage,
    choices: dict[str, str],
) -> None:
    import numpy

    steering = (Control(net=nets["large"], image=photo),)
    plain, other = (pixels(plan_for(tiny_folders["sdxl"], steering, pins=pins))[0] for pins in (
        {"execution": "eager", "attention": "fused"}, {"execution": "eager", "attention": "fused", **choices}
    ))  # fmt: skip
    if "placement" in choices:
        assert other == plain
    difference = numpy.frombuffer(other, numpy.uint8).astype(int) - numpy.frombuffer(plain, numpy.uint8)
    assert numpy.abs(difference).max() <= 2
    assert plain != pixels(plan_for(tiny_folders["sdxl"], ()))[0]


@pytest.mark.parametrize(
    ("how", "placement"),
    [("beside a ControlNet", "group-offload"),
     *(pytest.param(how, "resident", marks=[pytest.mark.proof] * (how != "twice")) for how in STEERED),
     *(pytest.param("beside a ControlNet", where, marks=pytest.mark.proof)
       for where in ("drop-encoders", "model-offload", "disk"))],
)  # fmt: skip
def test_a_gpu_gives_the_pixels_of_the_cpu_waits_for_nothing_and_keeps_nothing(
    tiny_folders: dict[str, Path],
    nets: dict[str, str],
    photo: InputImage,
    how: str,
    placement: str,
) -> None:
    steering, given = asked(nets, photo, how)
    waits, drawn = [], []
    pins = {"placement": placement, "attention": "fused", "execution": "eager"}
    with pretend(device("8GiB", capability="8.6")) as gpu:
        for event in local.run(on_a_gpu(tiny_folders["sd15"], steering, pins=pins, **given)):
            if isinstance(event, (Encoded, Step, Denoised)):
                waits.append((type(event).__name__, gpu.restart().waits))
            drawn += [event.pixels] if isinstance(event, Decoded) else []
        gc.collect()
        assert gpu.held() == 0
    steps = [seen for kind, seen in waits if kind == "Step"]
    if placement in ("resident", "drop-encoders") and how != "twice":  # a second pass begins with a step of its own
        assert all(seen <= Counter(event=1) for seen in steps[1:])
    assert drawn == pixels(plan_for(tiny_folders["sd15"], steering, pins={**pins, "placement": "resident"}, **given))


def test_memory_may_run_out_while_steered(
    tiny_folders: dict[str, Path],
    nets: dict[str, str],
    photo: InputImage,
) -> None:
    steering, given = asked(nets, photo, "two")
    with pretend(device("8GiB")):
        plan = on_a_gpu(tiny_folders["sd15"], steering, **given)
    out_of_memory_while_drawing(plan)


def test_what_it_cannot_do_is_refused_before_anything_is_loaded(
    tiny_folders: dict[str, Path],
    nets: dict[str, str],
    photo: InputImage,
) -> None:
    steering = (Control(net=nets["large"], image=photo),)
    with pytest.raises(Usage, match="--guess-mode is for ControlNets; large is a T2I-Adapter"):
        plan_for(tiny_folders["sdxl"], steering, guess_mode=True)
    with pytest.raises(Usage, match="large steers sizes that are multiples of 16, not 72×64") as refused:
        plan_for(tiny_folders["sdxl"], steering, width=72)
    assert refused.value.hint == "--size 64x64"
    with pytest.raises(Usage, match="not 152×104") as refused:
        plan_for(tiny_folders["sdxl"], steering, width=96, hires=1.6)
    assert refused.value.hint == "--hires 2"


@pytest.mark.parametrize(("family", "names"), [("sdxl", ("large",)), ("sd15", ("lines", "sketch"))])
def test_a_captured_unet_is_steered_to_the_same_pixels(
    tiny_folders: dict[str, Path], nets: dict[str, str], photo: InputImage, family: str, names: tuple[str, ...]
) -> None:
    steering = tuple(
        Control(net=nets[name], image=photo, start=number / 4, end=0.75) for number, name in enumerate(names)
    )
    with pretend(device("8GiB", capability="8.6")) as gpu:
        drawn = [
            pixels(on_a_gpu(tiny_folders[family], steering, pins={"execution": execution}))
            for execution in ("eager", "graph")
        ]
        assert drawn[0] == drawn[1] and gpu.traffic.launches["replay"] == 4
        gc.collect()
        assert gpu.held() == 0
