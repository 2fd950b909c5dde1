"""ControlNets against diffusers' pipelines, on the same components: no difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
from diffusers import ControlNetModel
from draw_samples import diffusers_pipelines, drawn_by_diffusers, plan_for
from PIL import Image
from test_draw_load import component, same
from torch import Tensor

from scripts import make_checkpoint
from scripts.proofs.modes import mask_picture, picture, start_of
from sdcli.draw import control, decode, denoise, encode, load, schedulers
from sdcli.draw.control import Control
from sdcli.draw.denoise import Guidance
from sdcli.draw.encode import Text
from sdcli.draw.images import encoded as encoded_of
from sdcli.draw.place import Components
from sdcli.draw.start import begun
from sdcli.images.canvas import Canvas
from sdcli.models import controlnet
from sdcli.request.request import Repaint, Start, steps_taken
from sdcli.request.samplers import SAMPLERS

STEPS, GUIDANCE = 3, 5.0
THREE = ["Euler a", "DPM++ 2M Karras", "Heun"]
TEXT = {
    "sd15": diffusers.StableDiffusionControlNetPipeline,
    "sdxl": diffusers.StableDiffusionXLControlNetPipeline,
}
IMAGE = {
    "sd15": diffusers.StableDiffusionControlNetImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
}
MASK = {
    "sd15": diffusers.StableDiffusionControlNetInpaintPipeline,
    "sdxl": diffusers.StableDiffusionXLControlNetInpaintPipeline,
}


def control_picture(seed: int) -> Image.Image:
    """Smooth and noisy parts."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
    pixels[:32] = numpy.linspace(0, 255, 64, dtype=numpy.uint8)[None, :, None]
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class Used:
    """One net in one image, for both programs."""

    net: str = "one"
    seed: int = 1
    weight: float = 0.8
    start: float = 0.0
    end: float = 1.0
    guess: bool = False

    @property
    def image(self) -> Image.Image:
        return control_picture(self.seed)


NETS: dict[str, dict[str, Any]] = {
    "one": {"seed": 1},
    "two": {"seed": 2, "controlnet_conditioning_channel_order": "bgr"},
    "pooled": {"seed": 3, "global_pool_conditions": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("controlnets")
    return {
        (family, name): make_checkpoint.write_controlnet_folder(root / family / name, family, tiny=True, **changes)
        for family in TEXT
        for name, changes in NETS.items()
    }


@pytest.fixture(scope="module")
def their_nets(folders: dict[tuple[str, str], Path]) -> dict[tuple[str, str], Any]:
    """diffusers' class as it is. Its own loader leaves weights where they lie in the file, and torch multiplies in
    another order where their addresses are odd."""
    return {key: loaded(folder) for key, folder in folders.items()}


@pytest.fixture(scope="module")
def own_nets(folders: dict[tuple[str, str], Path]) -> dict[tuple[str, str], Any]:
    return {key: control.embedded_once(loaded(folder)) for key, folder in folders.items()}


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Models that were trained to repaint."""
    root = tmp_path_factory.mktemp("repainting")
    folder = make_checkpoint.write_folder(root / "sd15", "sd15", tiny=True, channels=9)
    return diffusers_pipelines({"sd15": folder}, torch.float32)


def given_texts(texts: dict[str, tuple[Text, Text]], family: str) -> dict[str, Any]:
    prompt, negative = texts[family]
    given: dict[str, Any] = {"prompt_embeds": prompt.embeds, "negative_prompt_embeds": negative.embeds}
    if family == "sdxl":
        given |= {"pooled_prompt_embeds": prompt.pooled, "negative_pooled_prompt_embeds": negative.pooled}
    return given


def loaded(folder: Path, *files: str) -> Any:
    own = component(folder, *files)
    return load.load("controlnet", own, dtype=torch.float32, device="cpu", channels_last=False).module


def theirs(
    pipeline: Any, kind: Any, nets: dict[tuple[str, str], Any], family: str, sampler: str, used: Sequence[Used],
    images: int = 1, guidance: float = GUIDANCE, **given: Any,
) -> Tensor:  # fmt: skip
    controlnets = [nets[family, one.net] for one in used]
    each: dict[str, Any] = {
        ("image" if kind in TEXT.values() else "control_image"): [one.image for one in used],
        "controlnet_conditioning_scale": [one.weight for one in used],
        "control_guidance_start": [one.start for one in used],
        "control_guidance_end": [one.end for one in used],
    }
    if len(used) == 1:
        each = {name: values[0] for name, values in each.items()}
    return drawn_by_diffusers(
        kind, pipeline, {"controlnet": controlnets[0] if len(used) == 1 else controlnets}, sampler, images,
        num_inference_steps=STEPS, guidance_scale=guidance, guess_mode=used[0].guess, **each, **given,
    )  # fmt: skip


def ours(
    pipeline: Any, text: tuple[Text, Text], nets: dict[tuple[str, str], Any], family: str, sampler: str,
    used: Sequence[Used], images: int = 1, guidance: float = GUIDANCE, start: Start | None = None,
    made: Canvas | None = None, first: int = 7, more: Sequence[control.Shown] = (), **grouping: bool,
) -> Tensor:  # fmt: skip
    """What a run does between encoding texts and decoding, on the pipeline's components."""
    scheduler = schedulers.make(sampler, pipeline.scheduler.config)
    schedulers.set_steps(scheduler, STEPS)
    generators = [torch.Generator("cpu").manual_seed(first + number) for number in range(images)]
    sides = 2 if guidance > 1 else 1
    conditioning = encode.conditioning(
        [text[0]] * images, [text[1]] * images, guidance=Guidance(scale=guidance, sides=sides), size=(64, 64),
        unet=pipeline.unet.config, groups=denoise.groups(images, sides, **grouping),
    )  # fmt: skip
    if start is None:
        timesteps = scheduler.timesteps
        at = denoise.begin(scheduler, generators, shape=(4, 8, 8), dtype=torch.float32, device="cpu")
    else:
        sees_mask = pipeline.unet.config.in_channels == 9
        encoded_start = encoded_of(pipeline.vae, start, made or Canvas(picture()), 8, sees_mask, decode.in_fp32)
        timesteps = schedulers.last_timesteps(scheduler, STEPS, steps_taken(STEPS, start.strength))
        all_begun = begun(
            [start] * images, [encoded_start] * images, generators, pipeline.vae.config, shape=(4, 8, 8),
            dtype=torch.float32, sees_mask=sees_mask,
        )  # fmt: skip
        conditioning = conditioning.starting(all_begun, torch.device("cpu"))
        at = denoise.begin_from(scheduler, timesteps, generators, all_begun, pure=False, device="cpu")
    conditioning = conditioning.steered([*(control_of(one, nets, family) for one in used), *more], len(timesteps))
    *_, last = denoise.denoise(pipeline.unet, scheduler, conditioning, at, generators, timesteps)
    return last.latents


def control_of(used: Used, nets: dict[tuple[str, str], Any], family: str) -> Control:
    return Control(
        net=nets[family, used.net], image=control.pixels(used.image), weight=used.weight, start=used.start,
        end=used.end, guess=used.guess,
    )  # fmt: skip


Nets = dict[tuple[str, str], Any]
TWO = (Used(end=0.6), Used("two", seed=2, weight=0.4, start=0.3, end=0.9))


@pytest.mark.parametrize("sampler", [sampler.name for sampler in SAMPLERS])
@pytest.mark.parametrize(("family", "images"), [("sd15", 2), ("sdxl", 1)])
def test_latents_equal_those_of_diffusers_bit_for_bit(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], their_nets: Nets, own_nets: Nets,
    family: str, sampler: str, images: int,
) -> None:  # fmt: skip
    used = [Used()]
    given = given_texts(texts, family)
    expected = theirs(pipelines[family], TEXT[family], their_nets, family, sampler, used, images, **given)
    own = ours(pipelines[family], texts[family], own_nets, family, sampler, used, images)
    assert torch.isfinite(expected).all()
    assert (own - expected).abs().max().item() == 0.0


USES: dict[str, tuple[Used, ...]] = {
    "two nets, each in its window": TWO,
    "two that act nowhere together": (Used(end=0.4), Used("two", seed=2, start=0.6)),
    "guessed": (Used(guess=True),),
    "two guessed": tuple(replace(one, guess=True) for one in TWO),
    "pooled": (Used("pooled"),),
    "pooled and another": (Used("pooled"), Used(weight=0.5)),
    "blue first": (Used("two", weight=1.0),),
}


def test_every_use_draws_another_image(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], own_nets: Nets
) -> None:
    """Else the comparisons below would compare nothing."""
    drawn = [ours(pipelines["sd15"], texts["sd15"], own_nets, "sd15", "Euler", used) for used in ((), *USES.values())]
    for number, one in enumerate(drawn):
        assert all((one - other).abs().max() > 0.01 for other in drawn[:number])


@pytest.mark.parametrize(
    ("family", "sampler", "guidance"),
    [*[("sd15", sampler, GUIDANCE) for sampler in THREE], ("sdxl", "Euler a", GUIDANCE), ("sd15", "Euler a", 1.0)],
)
# diffusers asks the first net alone whether it is pooled
@pytest.mark.parametrize("use", [use for use in USES if use != "pooled and another"])
def test_windows_weights_and_guessing_equal_those_of_diffusers(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], their_nets: Nets, own_nets: Nets,
    family: str, use: str, sampler: str, guidance: float,
) -> None:  # fmt: skip
    used, given = USES[use], given_texts(texts, family)
    images = 2 if sampler == "Euler a" else 1
    expected = theirs(pipelines[family], TEXT[family], their_nets, family, sampler, used, images, guidance, **given)
    own = ours(pipelines[family], texts[family], own_nets, family, sampler, used, images, guidance)
    assert (own - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("sampler", THREE)
@pytest.mark.parametrize("use", [(Used(),), TWO])
@pytest.mark.parametrize("family", IMAGE)
def test_beside_an_image_to_start_from_they_equal_diffusers_too(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], their_nets: Nets, own_nets: Nets,
    family: str, use: tuple[Used, ...], sampler: str,
) -> None:  # fmt: skip
    given = {"image": picture(), "strength": 0.7, **given_texts(texts, family)}
    expected = theirs(pipelines[family], IMAGE[family], their_nets, family, sampler, use, **given)
    own = ours(pipelines[family], texts[family], own_nets, family, sampler, use, start=start_of(0.7))
    assert (own - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("sampler", THREE)
@pytest.mark.parametrize(
    ("which", "use"),
    [("sd15", TWO), ("sdxl", (Used(guess=True),)), ("sd15 that sees the mask", (Used(),)),
     ("sd15 that sees the mask", (Used(guess=True),))],
)  # fmt: skip
def test_beside_a_mask_they_equal_diffusers_too(
    pipelines: dict[str, Any], looking: dict[str, Any], texts: dict[str, tuple[Text, Text]], their_nets: Nets,
    own_nets: Nets, which: str, use: tuple[Used, ...], sampler: str,
) -> None:  # fmt: skip
    family = which.split()[0]
    pipeline = (looking if "sees" in which else pipelines)[family]
    made = Canvas(picture(), mask_picture())
    given = {"image": made.image, "mask_image": made.mask, "strength": 0.7, **given_texts(texts, family)}
    expected = theirs(pipeline, MASK[family], their_nets, family, sampler, use, **given)
    start = start_of(0.7, Repaint())
    own = ours(pipeline, texts[family], own_nets, family, sampler, use, start=start, made=made)
    assert (own - expected).abs().max().item() == 0.0


@pytest.mark.parametrize(
    ("family", "use", "in_turn"),
    [*[("sd15", use, False) for use in USES], ("sd15", "two guessed", True), ("sdxl", "two guessed", False)],
)
def test_images_drawn_alone_do_not_depend_on_their_batch(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], own_nets: Nets,
    family: str, use: str, in_turn: bool,
) -> None:  # fmt: skip
    def drawn(images: int, first: int) -> Tensor:
        return ours(
            pipelines[family], texts[family], own_nets, family, "Euler a", USES[use], images, first=first,
            alone=True, in_turn=in_turn,
        )  # fmt: skip

    assert torch.equal(drawn(2, 7), torch.cat([drawn(1, 7), drawn(1, 8)]))


@pytest.mark.parametrize(
    ("family", "use"), [("sd15", "two nets, each in its window"), ("sd15", "pooled and another"), ("sdxl", "guessed")]
)
def test_guidance_in_turn_draws_the_same_up_to_rounding(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], own_nets: Nets, family: str, use: str
) -> None:
    together, apart = (
        ours(pipelines[family], texts[family], own_nets, family, "Euler", USES[use], 2, in_turn=in_turn)
        for in_turn in (False, True)
    )
    assert torch.allclose(together, apart, atol=1e-3)


class Counted:
    """A net, and how many rows it and its embedding were called with."""

    def __init__(self, net: Any) -> None:
        self.net, self.config, self.calls, self.embedded = net, net.config, list[int](), list[int]()
        self.controlnet_cond_embedding = self

    def embed(self, image: Tensor) -> Tensor:
        self.embedded.append(len(image))
        embedded: Tensor = self.net.controlnet_cond_embedding.embed(image)
        return embedded

    def __call__(self, sample: Tensor, *given: Any, **named: Any) -> Any:
        self.calls.append(len(sample))
        return self.net(sample, *given, **named)


@pytest.mark.parametrize(
    ("used", "grouping", "calls", "embedded"),
    [
        (Used(), {}, [4] * 3, [4]),
        (Used(start=0.25, end=0.75), {}, [4], [4]),
        (Used(weight=0.0), {}, [], []),
        (Used(guess=True), {}, [2] * 3, [2]),
        (Used(guess=True), {"in_turn": True}, [2] * 3, [2]),
        (Used(), {"in_turn": True}, [2] * 6, [2]),
        (Used(), {"alone": True}, [2] * 6, [2]),
        (Used(guess=True), {"alone": True, "in_turn": True}, [1] * 6, [1]),
    ],
)
def test_a_net_is_called_where_it_acts_and_its_image_is_embedded_once(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], own_nets: Nets,
    used: Used, grouping: dict[str, bool], calls: list[int], embedded: list[int],
) -> None:  # fmt: skip
    counted = Counted(own_nets["sd15", "one"])
    ours(pipelines["sd15"], texts["sd15"], {("sd15", "one"): counted}, "sd15", "Euler", [used], 2, **grouping)
    assert (counted.calls, counted.embedded) == (calls, embedded)


def test_every_image_of_a_batch_can_have_a_control_image_of_its_own(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], own_nets: Nets
) -> None:
    """Drawn alone, each as with that image only."""
    pipeline, prompt = pipelines["sd15"], texts["sd15"]
    images = torch.cat([control.pixels(control_picture(seed)) for seed in (1, 2)])

    def drawn(image: Tensor, count: int, first: int) -> Tensor:
        scheduler = schedulers.make("Euler", pipeline.scheduler.config)
        schedulers.set_steps(scheduler, STEPS)
        generators = [torch.Generator("cpu").manual_seed(first + number) for number in range(count)]
        conditioning = encode.conditioning(
            [prompt[0]] * count, [prompt[1]] * count, guidance=Guidance(scale=5.0), size=(64, 64),
            unet=pipeline.unet.config, groups=denoise.groups(count, 2, alone=True),
        ).steered([Control(net=own_nets["sd15", "one"], image=image)], STEPS)  # fmt: skip
        at = denoise.begin(scheduler, generators, shape=(4, 8, 8), dtype=torch.float32, device="cpu")
        *_, last = denoise.denoise(pipeline.unet, scheduler, conditioning, at, generators)
        return last.latents

    each = torch.cat([drawn(images[:1], 1, 7), drawn(images[1:], 1, 8)])
    assert torch.equal(drawn(images, 2, 7), each)
    assert not torch.equal(drawn(images[:1], 2, 7), each)


# --- as components


@pytest.mark.parametrize("pins", [{"execution": "eager"}, {"execution": "packed"}, {"attention": "sliced"}])
@pytest.mark.parametrize("family", TEXT)
def test_a_component_steers_as_the_net_itself_up_to_rounding(
    tiny_folders: dict[str, Path], folders: dict[tuple[str, str], Path], pipelines: dict[str, Any],
    texts: dict[str, tuple[Text, Text]], own_nets: Nets, family: str, pins: dict[str, str],
) -> None:  # fmt: skip
    """Loaded as the model's own components are."""
    plan = plan_for(tiny_folders[family], pins=pins)
    model = replace(
        plan.model,
        components={**plan.model.components, "controlnet": controlnet.read(folders[family, "one"]).component},
    )
    components = Components(model, plan.setup)
    (event,) = components.ready(["controlnet"])
    assert event.bytes == 4 * model.components["controlnet"].parameters
    with components.use("controlnet") as net:
        given = pipelines[family], texts[family], {(family, "one"): net}, family, "Euler", [Used()]
        own = ours(*given)
    expected = ours(pipelines[family], texts[family], own_nets, family, "Euler", [Used()])
    assert (own - expected).abs().max() < 2e-3 * expected.abs().max()


# --- files


@pytest.mark.parametrize("layout", ["diffusers", "original", "bare"])
@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_a_single_file_in_any_layout_loads_to_the_same_weights(tmp_path: Path, family: str, layout: str) -> None:
    folder = make_checkpoint.write_controlnet_folder(tmp_path / "folder", family, tiny=True)
    file = make_checkpoint.write_controlnet_file(tmp_path / "net.safetensors", family, layout=layout, tiny=True)
    expected = ControlNetModel.from_pretrained(folder, local_files_only=True)
    same(loaded(folder), expected)
    same(loaded(folder, str(file)), expected)


@pytest.mark.parametrize("prefix", ["", "control_model."])
def test_diffusers_renames_a_file_of_the_original_layout_alike(tmp_path: Path, prefix: str) -> None:
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    from sdcli.models import keys

    config = make_checkpoint.controlnet_config("sd15", tiny=True)
    names = [
        prefix + make_checkpoint.original_controlnet_name(name, config)
        for name in make_checkpoint.shapes("controlnet", config)
    ]
    own = {name: origin.name for name, origin in keys.rename("controlnet", names).items()}
    assert own == {
        name: prefix + stored.removeprefix(prefix)
        for name, stored in convert_controlnet_checkpoint({name: name for name in names}, config).items()
    }
    assert own.keys() == make_checkpoint.shapes("controlnet", config).keys()
