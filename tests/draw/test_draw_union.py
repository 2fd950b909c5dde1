"""ControlNet Unions against diffusers' pipelines, on the same components: no difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
from draw_samples import drawn_by_diffusers
from test_draw_control import Used as Net
from test_draw_control import control_of, control_picture, given_texts, ours
from test_draw_control_run import on_a_gpu, pixels, plan_for
from test_draw_load import component, same
from torch import Tensor

from scripts import make_checkpoint
from scripts.proofs.modes import mask_picture, picture, start_of
from sdcli.draw import control, load
from sdcli.draw.control import Told, United
from sdcli.draw.encode import Text
from sdcli.errors import Usage
from sdcli.images.canvas import Canvas
from sdcli.images.control import SHOWN
from sdcli.images.read import InputImage
from sdcli.request.request import Control, Repaint
from sdcli.request.samplers import SAMPLERS
from tests.pretend_gpu import device, pretend

STEPS, GUIDANCE = 3, 5.0
PLAIN = diffusers.StableDiffusionXLControlNetUnionPipeline
IMAGE = diffusers.StableDiffusionXLControlNetUnionImg2ImgPipeline
MASK = diffusers.StableDiffusionXLControlNetUnionInpaintPipeline
Texts = dict[str, tuple[Text, Text]]
NETS: dict[str, dict[str, Any]] = {"six": {"seed": 1}, "pro": {"seed": 2, "num_control_type": 8}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("unions")
    return {name: make_checkpoint.write_union_folder(root / name, tiny=True, **about) for name, about in NETS.items()}


@pytest.fixture(scope="module")
def theirs_of(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: loaded(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def ours_of(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: control.embedded_once(loaded(folder)) for name, folder in folders.items()}


def loaded(folder: Path, *files: str) -> Any:
    own = component(folder, *files)
    return load.load("controlnet_union", own, dtype=torch.float32, device="cpu", channels_last=False).module


@dataclass(frozen=True)
class Used:
    """One image of a Union, for both programs."""

    shows: str = "canny"
    seed: int = 1
    weight: float = 0.8
    start: float = 0.0
    end: float = 1.0


def united(net: Any, used: Sequence[Used], guess: bool = False) -> United:
    told = tuple(
        Told(image=control.pixels(control_picture(one.seed)), weight=one.weight, start=one.start, end=one.end,
             shows=SHOWN[one.shows])
        for one in used
    )  # fmt: skip
    return United(net=net, told=told, guess=guess)


def theirs(
    pipeline: Any, kind: Any, net: Any, sampler: str, used: Sequence[Used], images: int = 1, **given: Any
) -> Tensor:
    return drawn_by_diffusers(
        kind, pipeline, {"controlnet": net}, sampler, images,
        control_image=[control_picture(one.seed) for one in used], control_mode=[SHOWN[one.shows] for one in used],
        controlnet_conditioning_scale=[one.weight for one in used],
        control_guidance_start=[one.start for one in used], control_guidance_end=[one.end for one in used],
        num_inference_steps=STEPS, **{"guidance_scale": GUIDANCE, **given},
    )  # fmt: skip


TWO = (Used("canny", end=0.7), Used("depth", seed=2, weight=0.5))


@pytest.mark.parametrize("used", [(Used(),), TWO], ids=["one image", "two"])
@pytest.mark.parametrize("sampler", [sampler.name for sampler in SAMPLERS])
def test_latents_equal_those_of_diffusers_bit_for_bit(
    pipelines: dict[str, Any], texts: Texts, theirs_of: dict[str, Any], ours_of: dict[str, Any],
    sampler: str, used: Sequence[Used],
) -> None:  # fmt: skip
    pipeline, text = pipelines["sdxl"], texts["sdxl"]
    expected = theirs(pipeline, PLAIN, theirs_of["six"], sampler, used, **given_texts(texts, "sdxl"))
    own = ours(pipeline, text, {}, "sdxl", sampler, [], more=[united(ours_of["six"], used)])
    assert torch.isfinite(expected).all()
    assert (own - expected).abs().max().item() == 0.0


USES: dict[str, tuple[str, tuple[Used, ...]]] = {
    "three": ("pro", (*TWO, Used("tile", seed=3, weight=0.3))), "a part": ("pro", (Used("repaint", end=0.4),)),
    "alike": ("six", (Used(), Used(seed=2))), "from the middle": ("six", (Used("normal", start=0.3),)),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_several_images_windows_and_kinds_equal_those_of_diffusers(
    pipelines: dict[str, Any],
    texts: Texts,
    theirs_of: dict[str, Any],
    ours_of: dict[str, Any],
    use: str,
) -> None:
    net, used = USES[use]
    pipeline, text = pipelines["sdxl"], texts["sdxl"]
    for guidance in (GUIDANCE, 1.0):
        given = {"guidance_scale": guidance, **given_texts(texts, "sdxl")}
        expected = theirs(pipeline, PLAIN, theirs_of[net], "Euler a", used, **given)
        own = ours(pipeline, text, {}, "sdxl", "Euler a", [], guidance=guidance, more=[united(ours_of[net], used)])
        assert (own - expected).abs().max().item() == 0.0


def test_two_unions_equal_those_of_diffusers(
    pipelines: dict[str, Any],
    texts: Texts,
    theirs_of: dict[str, Any],
    ours_of: dict[str, Any],
) -> None:
    used = (Used(end=0.7), Used("depth", seed=2, weight=0.4))
    both = [theirs_of["six"], theirs_of["pro"]]
    expected = theirs(pipelines["sdxl"], PLAIN, both, "Euler a", used, **given_texts(texts, "sdxl"))
    more = [united(ours_of[name], [one]) for name, one in zip(("six", "pro"), used, strict=True)]
    own = ours(pipelines["sdxl"], texts["sdxl"], {}, "sdxl", "Euler a", [], more=more)
    assert (own - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M Karras", "Heun"])
@pytest.mark.parametrize("masked", [False, True])
def test_beside_an_image_or_a_mask_they_equal_diffusers_too(
    pipelines: dict[str, Any], texts: Texts, theirs_of: dict[str, Any], ours_of: dict[str, Any],
    masked: bool, sampler: str,
) -> None:  # fmt: skip
    made = Canvas(picture(), mask_picture() if masked else None)
    given = {"image": made.image, "strength": 0.7, **given_texts(texts, "sdxl")}
    given |= {"mask_image": made.mask} if masked else {}
    expected = theirs(pipelines["sdxl"], MASK if masked else IMAGE, theirs_of["six"], sampler, TWO, **given)
    start = start_of(0.7, Repaint() if masked else None)
    own = ours(
        pipelines["sdxl"], texts["sdxl"], {}, "sdxl", sampler, [], start=start, made=made,
        more=[united(ours_of["six"], TWO)],
    )  # fmt: skip
    assert (own - expected).abs().max().item() == 0.0


def test_every_use_draws_another_image(
    pipelines: dict[str, Any],
    texts: Texts,
    ours_of: dict[str, Any],
) -> None:
    """Else the comparisons would compare nothing."""
    uses = [(), (Used(),), (Used("depth"),), TWO, (Used(weight=0.4),), (Used(), Used(seed=2))]
    drawn = [
        ours(
            pipelines["sdxl"], texts["sdxl"], {}, "sdxl", "Euler", [], more=[united(ours_of["six"], used)] * bool(used)
        )
        for used in uses
    ]
    guessed = united(ours_of["six"], (Used(),), guess=True)
    drawn.append(ours(pipelines["sdxl"], texts["sdxl"], {}, "sdxl", "Euler", [], more=[guessed]))
    for number, one in enumerate(drawn):
        assert all((one - other).abs().max() > 0.001 for other in drawn[:number])


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("guess", [False, True])
def test_images_drawn_alone_do_not_depend_on_their_batch(
    pipelines: dict[str, Any],
    texts: Texts,
    ours_of: dict[str, Any],
    guess: bool,
    in_turn: bool,
) -> None:
    def drawn(images: int, first: int) -> Tensor:
        return ours(
            pipelines["sdxl"], texts["sdxl"], {}, "sdxl", "Euler a", [], images, first=first, alone=True,
            in_turn=in_turn, more=[united(ours_of["six"], TWO, guess)],
        )  # fmt: skip

    assert torch.equal(drawn(2, 7), torch.cat([drawn(1, 7), drawn(1, 8)]))


def test_images_of_a_batch_with_control_images_of_their_own_do_not_change_each_other(
    pipelines: dict[str, Any], texts: Texts, ours_of: dict[str, Any]
) -> None:
    """As diffusers has it, its net attends across the rows of a batch."""
    rows = torch.cat([control.pixels(control_picture(seed)) for seed in (1, 2)])

    def drawn(net: Any, image: Tensor, images: int, first: int) -> Tensor:
        more = [United(net=net, told=(Told(image=image, shows=3),))]
        return ours(pipelines["sdxl"], texts["sdxl"], {}, "sdxl", "Euler", [], images, first=first, more=more)

    net = ours_of["six"]
    each = torch.cat([drawn(net, rows[:1], 1, 7), drawn(net, rows[1:], 1, 8)])
    assert (drawn(net, rows, 2, 7) - each).abs().max() < 1e-4
    attending = [(layer, layer.attn) for layer in net.transformer_layes]
    try:
        for layer, alone in attending:
            width = alone.outward.in_features
            layer.attn = torch.nn.MultiheadAttention(width, 8)
            layer.attn.load_state_dict({
                "in_proj_weight": alone.inward.weight, "in_proj_bias": alone.inward.bias,
                "out_proj.weight": alone.outward.weight, "out_proj.bias": alone.outward.bias,
            })  # fmt: skip
        assert torch.equal(drawn(net, rows[:1], 1, 7), each[:1])
        assert (drawn(net, rows, 2, 7) - each).abs().max() > 1e-3
    finally:
        for layer, alone in attending:
            layer.attn = alone


def test_one_call_serves_all_images_and_none_is_made_where_none_acts(
    pipelines: dict[str, Any],
    texts: Texts,
    ours_of: dict[str, Any],
) -> None:
    calls: list[list[float]] = []
    net = ours_of["six"]
    forward = net.forward

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(named["conditioning_scale"])
        return forward(*given, **named)

    net.forward = counted
    try:
        used = (Used(start=0.3, end=0.7), Used("depth", weight=0.5, start=0.3))
        ours(pipelines["sdxl"], texts["sdxl"], {}, "sdxl", "Euler", [], more=[united(net, used)])
    finally:
        net.forward = forward
    assert calls == [[0.8, 0.5], [0.0, 0.5]]


def test_one_acts_beside_other_nets(
    tmp_path: Path,
    pipelines: dict[str, Any],
    texts: Texts,
    ours_of: dict[str, Any],
) -> None:
    folder = make_checkpoint.write_controlnet_folder(tmp_path, "sdxl", tiny=True)
    net = load.load("controlnet", component(folder), dtype=torch.float32, device="cpu", channels_last=False).module
    nets, more = {("sdxl", "one"): control.embedded_once(net)}, [united(ours_of["six"], TWO)]
    seen = [
        ours(pipelines["sdxl"], texts["sdxl"], nets, "sdxl", "Euler", used, more=also)
        for used, also in (([Net()], more), ([Net()], []), ([], more))
    ]
    assert all((seen[0] - one).abs().max() > 0.01 for one in seen[1:])
    assert control_of(Net(), nets, "sdxl").weight == 0.8


# --- as components


@pytest.fixture(scope="module")
def paths(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    other = make_checkpoint.write_t2i_folder(tmp_path_factory.mktemp("large"), "sdxl", tiny=True)
    return {**{name: str(folder) for name, folder in folders.items()}, "adapter": str(other)}


def steering_of(paths: dict[str, str], image: InputImage, *nets: str) -> tuple[Control, ...]:
    """`six:canny`, or the name of another net."""
    asked = [name.partition(":") for name in nets]
    return tuple(
        Control(net=paths[net], image=image, shows=shows, weight=1.0 - number / 4)
        for number, (net, _, shows) in enumerate(asked)
    )


def test_several_images_of_one_union_are_one_component(
    tiny_folders: dict[str, Path],
    paths: dict[str, str],
    photo: InputImage,
) -> None:
    steering = steering_of(paths, photo, "six:canny", "adapter", "six:depth", "pro:tile")
    plan = plan_for(tiny_folders["sdxl"], steering)
    assert [one.part for one in plan.jobs[0].controls] == [
        "controlnet_union", "t2i_adapter", "controlnet_union", "controlnet_union_2"
    ]  # fmt: skip
    assert [(one.kind, one.name) for one in plan.setup.adapters] == [
        ("controlnet", "six"), ("t2i-adapter", Path(paths["adapter"]).name), ("controlnet", "pro")
    ]  # fmt: skip
    drawn = pixels(plan)[0]
    assert all(drawn != pixels(plan_for(tiny_folders["sdxl"], steering[:count]))[0] for count in range(4))


def test_what_was_made_of_an_image_tells_what_it_shows(
    tiny_folders: dict[str, Path],
    paths: dict[str, str],
    photo: InputImage,
) -> None:
    for made, shows in (("canny", "canny"), ("scribble", "scribble"), ("tile", "tile")):
        plan = plan_for(tiny_folders["sdxl"], steering_of(paths, photo, "pro"), control_from=made)
        assert plan.jobs[0].controls[0].shows == shows
    told = plan_for(tiny_folders["sdxl"], steering_of(paths, photo, "pro:depth"), control_from="invert")
    assert told.jobs[0].controls[0].shows == "depth"


def test_what_it_cannot_be_told_is_refused(
    tiny_folders: dict[str, Path],
    paths: dict[str, str],
    photo: InputImage,
) -> None:
    path = tiny_folders["sdxl"]
    with pytest.raises(
        Usage, match=r"six is a ControlNet Union and has to be told what photo.png shows: openpose,"
    ) as no:
        plan_for(path, steering_of(paths, photo, "six"))
    assert no.value.hint.endswith("six:depth=photo.png")
    with pytest.raises(Usage, match=r"six was trained for openpose, depth, .*, not for tile"):
        plan_for(path, steering_of(paths, photo, "six"), control_from="tile")
    with pytest.raises(Usage, match="is no ControlNet Union: nothing tells it what an image shows"):
        plan_for(path, steering_of(paths, photo, "adapter:canny"))


@pytest.mark.parametrize("choices", [
    {"placement": "disk"}, {"placement": "drop-encoders"}, {"guidance": "in-turn"}, {"execution": "packed"},
    {"attention": "sliced"},
])  # fmt: skip
def test_every_way_of_drawing_is_steered(
    tiny_folders: dict[str, Path],
    paths: dict[str, str],
    photo: InputImage,
    choices: dict[str, str],
) -> None:
    steering, usual = steering_of(paths, photo, "six:canny", "six:depth"), {"execution": "eager", "attention": "fused"}
    plain, other = (
        pixels(plan_for(tiny_folders["sdxl"], steering, pins=pins))[0] for pins in (usual, {**usual, **choices})
    )
    if "placement" in choices:
        assert other == plain
    difference = numpy.frombuffer(other, numpy.uint8).astype(int) - numpy.frombuffer(plain, numpy.uint8)
    assert numpy.abs(difference).max() <= 2


@pytest.mark.parametrize("placement", ["resident", "drop-encoders", "model-offload", "group-offload", "disk"])
def test_a_gpu_gives_the_pixels_of_the_cpu(
    tiny_folders: dict[str, Path],
    paths: dict[str, str],
    photo: InputImage,
    placement: str,
) -> None:
    steering = steering_of(paths, photo, "six:canny", "six:depth")
    steering = (replace(steering[0], end=0.5), steering[1])
    pins = {"placement": placement, "attention": "fused", "execution": "eager"}
    with pretend(device("8GiB", capability="8.6")):
        drawn = pixels(on_a_gpu(tiny_folders["sdxl"], steering, pins=pins, guess_mode=placement == "disk"))
    pins["placement"] = "resident"
    assert drawn == pixels(plan_for(tiny_folders["sdxl"], steering, pins=pins, guess_mode=placement == "disk"))


# --- files


def test_a_single_file_loads_to_the_same_weights(tmp_path: Path) -> None:
    from diffusers import ControlNetUnionModel

    folder = make_checkpoint.write_union_folder(tmp_path / "folder", tiny=True)
    file = make_checkpoint.write_union_file(tmp_path / "net.safetensors", tiny=True)
    expected = ControlNetUnionModel.from_pretrained(folder, local_files_only=True)
    same(loaded(folder), expected)
    same(loaded(folder, str(file)), expected)
