"""T2I-Adapters against diffusers' pipelines, on the same components: no difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import MultiAdapter, T2IAdapter
from draw_samples import drawn_by_diffusers
from test_draw_control import Used as Net
from test_draw_control import control_of, control_picture, given_texts, ours
from test_draw_load import component, same
from torch import Tensor

from scripts import make_checkpoint
from scripts.proofs.modes import start_of
from sdcli.draw import control, denoise, encode, load, schedulers
from sdcli.draw.control import Adapted
from sdcli.draw.denoise import Guidance
from sdcli.draw.encode import Text
from sdcli.request.samplers import SAMPLERS, find

STEPS, GUIDANCE = 4, 5.0
TEXT = {
    "sd15": diffusers.StableDiffusionAdapterPipeline,
    "sdxl": diffusers.StableDiffusionXLAdapterPipeline,
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"seed": 1},
    "grey": {"seed": 2, "channels": 1},
    "light": {"light": True},
}
Adapters = dict[tuple[str, str], Any]
Texts = dict[str, tuple[Text, Text]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        (family, name): make_checkpoint.write_t2i_folder(root / family / name, family, tiny=True, **about)
        for family in TEXT
        for name, about in ADAPTERS.items()
        if (family, name) != ("sdxl", "light")
    }


@pytest.fixture(scope="module")
def adapters(folders: dict[tuple[str, str], Path]) -> Adapters:
    return {key: loaded(folder) for key, folder in folders.items()}


def loaded(folder: Path, *files: str) -> Any:
    own = component(folder, *files)
    return load.load("t2i_adapter", own, dtype=torch.float32, device="cpu", channels_last=False).module


@dataclass(frozen=True)
class Used:
    """One adapter in one image, for both programs."""

    name: str = "full"
    seed: int = 1
    weight: float = 0.8
    start: float = 0.0
    end: float = 1.0

    @property
    def image(self) -> Any:
        made = control_picture(self.seed)
        return made.convert("L") if self.name == "grey" else made

    def adapted(self, adapters: Adapters, family: str) -> Adapted:
        net = adapters[family, self.name]
        rows = control.adapter_rows_of([control_picture(self.seed)], net.config.in_channels)
        return Adapted(net=net, image=rows, weight=self.weight, start=self.start, end=self.end)


def theirs(
    pipeline: Any, adapters: Adapters, family: str, sampler: str, used: Sequence[Used], images: int = 1, **given: Any
) -> Tensor:
    each, several = [adapters[family, one.name] for one in used], len(used) > 1
    return drawn_by_diffusers(
        TEXT[family], pipeline, {"adapter": MultiAdapter(each) if several else each[0]}, sampler, images,
        image=[one.image for one in used] if several else used[0].image,
        adapter_conditioning_scale=[one.weight for one in used] if several else used[0].weight,
        num_inference_steps=STEPS, **{"guidance_scale": GUIDANCE, **given},
    )  # fmt: skip


def drawn(
    pipeline: Any, text: tuple[Text, Text], steering: Sequence[control.Shown], sampler: str, images: int = 1,
    guidance: float = GUIDANCE, first: int = 7, **grouping: bool,
) -> Tensor:  # fmt: skip
    """What a run does between encoding texts and decoding, on the pipeline's components."""
    scheduler = schedulers.make(sampler, pipeline.scheduler.config)
    schedulers.set_steps(scheduler, STEPS)
    generators = [torch.Generator("cpu").manual_seed(first + number) for number in range(images)]
    sides = 2 if guidance > 1 else 1
    conditioning = encode.conditioning(
        [text[0]] * images, [text[1]] * images, guidance=Guidance(scale=guidance, sides=sides), size=(64, 64),
        unet=pipeline.unet.config, groups=denoise.groups(images, sides, **grouping),
    ).steered(steering, len(scheduler.timesteps))  # fmt: skip
    at = denoise.begin(scheduler, generators, shape=(4, 8, 8), dtype=torch.float32, device="cpu")
    *_, last = denoise.denoise(pipeline.unet, scheduler, conditioning, at, generators)
    return last.latents


def calls_of(sampler: str) -> int:
    return find(sampler).unet_calls(STEPS)


@pytest.mark.parametrize("sampler", [sampler.name for sampler in SAMPLERS])
@pytest.mark.parametrize(("family", "images"), [("sd15", 2), ("sdxl", 1)])
def test_latents_equal_those_of_diffusers_bit_for_bit(
    pipelines: dict[str, Any],
    texts: Texts,
    adapters: Adapters,
    family: str,
    sampler: str,
    images: int,
) -> None:
    """diffusers lets SDXL's act in as many UNet calls as there are steps, though some samplers take twice as many."""
    end = STEPS / calls_of(sampler) if family == "sdxl" else 1.0
    used = Used(end=end)
    expected = theirs(pipelines[family], adapters, family, sampler, [used], images, **given_texts(texts, family))
    own = drawn(pipelines[family], texts[family], [used.adapted(adapters, family)], sampler, images)
    assert torch.isfinite(expected).all()
    assert (own - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M Karras"])
@pytest.mark.parametrize(
    ("family", "names"),
    [("sd15", ("grey",)), ("sd15", ("light",)), ("sd15", ("full", "full")), ("sdxl", ("grey",)),
     ("sdxl", ("full", "full"))],
)  # fmt: skip
def test_every_kind_and_several_equal_those_of_diffusers(
    pipelines: dict[str, Any],
    texts: Texts,
    adapters: Adapters,
    family: str,
    names: tuple[str, ...],
    sampler: str,
) -> None:
    used = [Used(name, seed=number + 1, weight=0.8 - number / 4) for number, name in enumerate(names)]
    expected = theirs(pipelines[family], adapters, family, sampler, used, 2, **given_texts(texts, family))
    own = drawn(pipelines[family], texts[family], [one.adapted(adapters, family) for one in used], sampler, 2)
    assert (own - expected).abs().max().item() == 0.0


@pytest.mark.parametrize(("factor", "guidance"), [(0.5, GUIDANCE), (0.75, GUIDANCE), (0.5, 1.0)])
def test_an_end_is_where_diffusers_has_one(
    pipelines: dict[str, Any],
    texts: Texts,
    adapters: Adapters,
    factor: float,
    guidance: float,
) -> None:
    given = {"adapter_conditioning_factor": factor, "guidance_scale": guidance, **given_texts(texts, "sdxl")}
    expected = theirs(pipelines["sdxl"], adapters, "sdxl", "Euler", [Used()], **given)
    own = Used(end=factor).adapted(adapters, "sdxl")
    assert torch.equal(drawn(pipelines["sdxl"], texts["sdxl"], [own], "Euler", guidance=guidance), expected)


def test_every_use_draws_another_image(pipelines: dict[str, Any], texts: Texts, adapters: Adapters) -> None:
    """Else the comparisons would compare nothing."""
    uses = [(), (Used(),), (Used("grey"),), (Used("light"),), (Used(end=0.5),), (Used(start=0.5),), (Used(weight=0.4),),
            (Used(), Used("grey", seed=2)), (Used(seed=3),)]  # fmt: skip
    seen = [
        drawn(pipelines["sd15"], texts["sd15"], [one.adapted(adapters, "sd15") for one in use], "Euler") for use in uses
    ]
    for number, one in enumerate(seen):
        assert all((one - other).abs().max() > 0.001 for other in seen[:number])


class Counted:
    """An adapter, and how many images it looked at."""

    def __init__(self, net: Any) -> None:
        self.net, self.config, self.looked = net, net.config, 0

    def __call__(self, image: Tensor) -> Any:
        self.looked += len(image)
        return self.net(image)


@pytest.mark.parametrize("grouping", [{}, {"in_turn": True}, {"alone": True}])
def test_an_image_is_looked_at_once_for_all_steps_and_images(
    pipelines: dict[str, Any],
    texts: Texts,
    adapters: Adapters,
    grouping: dict[str, bool],
) -> None:
    counted = Counted(adapters["sd15", "full"])
    used = Used().adapted({("sd15", "full"): counted}, "sd15")
    drawn(pipelines["sd15"], texts["sd15"], [used], "Euler", 2, **grouping)
    assert counted.looked == 1


def test_every_image_of_a_batch_can_be_steered_by_one_of_its_own(
    pipelines: dict[str, Any],
    texts: Texts,
    adapters: Adapters,
) -> None:
    """Drawn alone, each as with that image only."""
    rows = control.rows_of([control_picture(1), control_picture(2)])
    assert len(rows) == 2 and len(control.rows_of([control_picture(1)] * 2)) == 1

    def of(image: Tensor, images: int, first: int) -> Tensor:
        steering = [Adapted(net=adapters["sd15", "full"], image=image)]
        return drawn(pipelines["sd15"], texts["sd15"], steering, "Euler a", images, first=first, alone=True)

    assert torch.equal(of(rows, 2, 7), torch.cat([of(rows[:1], 1, 7), of(rows[1:], 1, 8)]))


def test_one_acts_beside_a_controlnet_and_an_image_to_start_from(
    tmp_path: Path,
    pipelines: dict[str, Any],
    texts: Texts,
    adapters: Adapters,
) -> None:
    """No pipeline of diffusers takes both; its UNet does: what each of them adds is added."""
    folder = make_checkpoint.write_controlnet_folder(tmp_path, "sd15", tiny=True)
    net = load.load("controlnet", component(folder), dtype=torch.float32, device="cpu", channels_last=False).module
    nets = {("sd15", "one"): control.embedded_once(net)}
    both = [control_of(Net(), nets, "sd15"), Used().adapted(adapters, "sd15")]
    pipeline, text = pipelines["sd15"], texts["sd15"]
    seen = [drawn(pipeline, text, steering, "Euler") for steering in (both, both[:1], both[1:], both[::-1])]
    assert torch.equal(seen[0], seen[3])
    assert all((seen[0] - one).abs().max() > 0.01 for one in seen[1:3])
    started = [ours(pipeline, text, nets, "sd15", "Euler", [], start=start_of(0.7), more=more) for more in ([], both)]
    assert (started[0] - started[1]).abs().max() > 0.01


# --- files


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_single_file_in_either_layout_loads_to_the_same_weights(tmp_path: Path, name: str, layout: str) -> None:
    folder = make_checkpoint.write_t2i_folder(tmp_path / "folder", "sd15", tiny=True, **ADAPTERS[name])
    file = tmp_path / "net.safetensors"
    make_checkpoint.write_t2i_file(file, "sd15", layout=layout, tiny=True, **ADAPTERS[name])
    expected = T2IAdapter.from_pretrained(folder, local_files_only=True)
    same(loaded(folder), expected)
    same(loaded(folder, str(file)), expected)
