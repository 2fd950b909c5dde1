"""IP-Adapters against diffusers' pipelines, on the same components: no difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from test_draw_control import control_picture, loaded
from torch import Tensor
from torch.nn import functional
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from scripts import make_checkpoint
from scripts.proofs import references as proof
from scripts.proofs.modes import GUIDANCE
from scripts.proofs.references import FAMILIES, KINDS, Ours, drawn, theirs
from sdcli.draw import attention, control, load, reference
from sdcli.draw.control import Control
from sdcli.draw.encode import Text
from sdcli.images.read import InputImage, look
from sdcli.models.reference import cross_attentions, read, with_encoder
from sdcli.plan.techniques.attention import FEWEST_KEYS
from sdcli.request.request import Reference

THREE = ["Euler a", "DPM++ 2M Karras", "Heun"]
CONTROLLED = {
    "sd15": diffusers.StableDiffusionControlNetPipeline, "sdxl": diffusers.StableDiffusionXLControlNetPipeline
}  # fmt: skip

Adapters = dict[tuple[str, str], Path]
Theirs = dict[tuple[str, str], Any]
Texts = dict[str, tuple[Text, Text]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return proof.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    return proof.write_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[InputImage]:
    return proof.write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> list[InputImage]:
    """Of the size that is drawn: the left, and a part in the middle."""
    root, found = tmp_path_factory.mktemp("masks"), []
    for number, (rows, columns) in enumerate([(slice(None), slice(0, 30)), (slice(20, 50), slice(11, 64))]):
        pixels = numpy.zeros((64, 64), dtype=numpy.uint8)
        pixels[rows, columns] = 255
        Image.fromarray(pixels).save(root / f"{number}.png")
        found.append(look(root / f"{number}.png"))
    return found


@pytest.fixture(scope="module")
def own_pipelines(models: dict[str, Path], one_quiet_thread: None) -> dict[str, Any]:
    return {family: proof.own_pipeline(model) for family, model in models.items()}


@pytest.fixture(scope="module")
def their_pipelines(models: dict[str, Path], adapters: Adapters, one_quiet_thread: None) -> Theirs:
    return {key: proof.their_pipeline(models[key[0]], adapter) for key, adapter in adapters.items()}


@pytest.fixture(scope="module")
def texts(own_pipelines: dict[str, Any]) -> Texts:
    return {family: proof.texts_of(family, pipeline) for family, pipeline in own_pipelines.items()}


@pytest.mark.parametrize(
    ("kind", "sampler", "guidance"),
    [*[(kind, "Euler a", GUIDANCE) for kind in KINDS], *[("plus", sampler, GUIDANCE) for sampler in THREE[1:]],
     ("plain", "Euler a", 1.0), ("plus", "Euler a", 1.0)],
)  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
def test_latents_equal_those_of_diffusers_bit_for_bit(
    models: dict[str, Path], adapters: Adapters, own_pipelines: dict[str, Any], their_pipelines: Theirs, texts: Texts,
    photos: list[InputImage], family: str, kind: str, sampler: str, guidance: float,
) -> None:  # fmt: skip
    used = [Reference(image=photos[0], weight=0.5)]
    expected = theirs(their_pipelines[family, kind], kind, texts[family], used, sampler, guidance=guidance)
    referred = Ours(models[family], adapters[family, kind]).referred([used], guidance)
    own = drawn(own_pipelines[family], texts[family], referred, sampler, guidance=guidance)
    assert torch.isfinite(expected).all()
    assert (own - expected).abs().max().item() == 0.0
    plain = drawn(own_pipelines[family], texts[family], {}, sampler, guidance=guidance)
    assert (own - plain).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["plain", "plus"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_references_and_two_images_equal_diffusers_too(
    models: dict[str, Path], adapters: Adapters, own_pipelines: dict[str, Any], their_pipelines: Theirs, texts: Texts,
    photos: list[InputImage], family: str, kind: str,
) -> None:  # fmt: skip
    used = [Reference(image=photo, weight=0.5) for photo in photos[:2]]
    expected = theirs(their_pipelines[family, kind], kind, texts[family], used, "Euler a", images=2)
    referred = Ours(models[family], adapters[family, kind]).referred([used] * 2)
    own = drawn(own_pipelines[family], texts[family], referred, "Euler a", images=2)
    assert (own - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_masks_equal_those_of_diffusers(
    models: dict[str, Path], adapters: Adapters, own_pipelines: dict[str, Any], their_pipelines: Theirs, texts: Texts,
    photos: list[InputImage], masks: list[InputImage], kind: str,
) -> None:  # fmt: skip
    used = [
        Reference(image=photo, weight=weight, mask=mask)
        for photo, weight, mask in zip(photos, (0.7, 0.4), masks, strict=False)
    ]
    given = IPAdapterMaskProcessor().preprocess([Image.open(mask.path) for mask in masks], height=64, width=64)
    expected = theirs(
        their_pipelines["sd15", kind], kind, texts["sd15"], used, "Euler a", scale=[[0.7, 0.4]],
        cross_attention_kwargs={"ip_adapter_masks": [given.reshape(1, 2, 64, 64)]},
    )  # fmt: skip
    ours = Ours(models["sd15"], adapters["sd15", kind])
    own = drawn(own_pipelines["sd15"], texts["sd15"], ours.referred([used]), "Euler a")
    assert (own - expected).abs().max().item() == 0.0
    everywhere = ours.referred([[replace(one, mask=None) for one in used]])
    assert (own - drawn(own_pipelines["sd15"], texts["sd15"], everywhere, "Euler a")).abs().max() > 0.01


@pytest.mark.parametrize(
    ("layers", "scale"),
    [("style", {"up": {"block_0": [0.0, 0.5, 0.0]}}), ("layout", {"down": {"block_2": [0.0, 0.5]}})],
)
def test_style_and_layout_act_in_the_layers_that_diffusers_names(
    models: dict[str, Path], adapters: Adapters, own_pipelines: dict[str, Any], their_pipelines: Theirs, texts: Texts,
    photos: list[InputImage], layers: str, scale: dict[str, Any],
) -> None:  # fmt: skip
    used = [Reference(image=photos[0], weight=0.5, layers=layers)]
    expected = theirs(their_pipelines["sdxl", "plain"], "plain", texts["sdxl"], used, "Euler a", scale=scale)
    referred = Ours(models["sdxl"], adapters["sdxl", "plain"]).referred([used])
    own = drawn(own_pipelines["sdxl"], texts["sdxl"], referred, "Euler a")
    assert (own - expected).abs().max().item() == 0.0
    assert 0 < len(referred["0"]["keys"]) < len(cross_attentions(own_pipelines["sdxl"].unet.config))


@pytest.mark.parametrize("family", FAMILIES)
def test_beside_a_controlnet_they_equal_diffusers_too(
    tmp_path: Path, models: dict[str, Path], adapters: Adapters, own_pipelines: dict[str, Any], their_pipelines: Theirs,
    texts: Texts, photos: list[InputImage], family: str,
) -> None:  # fmt: skip
    with proof.as_many_attentions():
        folder = make_checkpoint.write_controlnet_folder(tmp_path / "net", family, tiny=True)
    used = [Reference(image=photos[0], weight=0.5)]
    pipeline = CONTROLLED[family].from_pipe(their_pipelines[family, "plus"], controlnet=loaded(folder))
    pipeline.set_progress_bar_config(disable=True)
    expected = theirs(pipeline, "plus", texts[family], used, "Euler a", image=control_picture(1))
    net = control.embedded_once(loaded(folder))
    controls = [Control(net=net, image=control.pixels(control_picture(1)))]
    referred = Ours(models[family], adapters[family, "plus"]).referred([used])
    own = drawn(own_pipelines[family], texts[family], referred, "Euler a", controls=controls)
    assert (own - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_images_drawn_alone_do_not_depend_on_their_batch(
    models: dict[str, Path], adapters: Adapters, own_pipelines: dict[str, Any], texts: Texts, photos: list[InputImage],
    masks: list[InputImage], kind: str, in_turn: bool,
) -> None:  # fmt: skip
    """Each has references of its own."""
    used = [
        [Reference(image=photos[0]), Reference(image=photos[1], weight=0.9, mask=masks[0])],
        [Reference(image=photos[2]), Reference(image=photos[0], weight=0.9, mask=masks[1])],
    ]
    ours, given = Ours(models["sd15"], adapters["sd15", kind]), (own_pipelines["sd15"], texts["sd15"])
    grouping = {"alone": True, "in_turn": in_turn}
    together = drawn(*given, ours.referred(used), "Euler a", images=2, **grouping)
    each = [
        drawn(*given, ours.referred([one]), "Euler a", first=number, alone=True, in_turn=in_turn)
        for number, one in enumerate(used)
    ]
    assert torch.equal(together, torch.cat(each))


def test_weights_that_differ_share_one_attention_and_meet_those_that_do_not(
    models: dict[str, Path], adapters: Adapters, own_pipelines: dict[str, Any], texts: Texts, photos: list[InputImage]
) -> None:
    ours = Ours(models["sd15"], adapters["sd15", "plain"])

    def of(*weights: float) -> Tensor:
        used = [Reference(image=photo, weight=weight) for photo, weight in zip(photos, weights, strict=False)]
        return drawn(own_pipelines["sd15"], texts["sd15"], ours.referred([used]), "Euler")

    assert (of(0.5, 0.5) - of(0.5, 0.500001)).abs().max() < 1e-3
    assert (of(0.5, 0.5) - of(0.5, 0.9)).abs().max() > 0.01
    assert torch.equal(of(0.0), drawn(own_pipelines["sd15"], texts["sd15"], {}, "Euler"))


@torch.no_grad()
def test_attention_in_blocks_sees_the_same_up_to_rounding(
    models: dict[str, Path], adapters: Adapters, own_pipelines: dict[str, Any], texts: Texts, photos: list[InputImage]
) -> None:
    """Sixteen images have so many tokens that these are attended to in blocks too."""
    unet = own_pipelines["sd15"].unet
    used = [Reference(image=photos[0])] * 16
    referred = Ours(models["sd15"], adapters["sd15", "full"]).referred([used])
    assert referred["0"]["keys"]["mid_block.attentions.0.transformer_blocks.0.attn2"].shape[1] >= FEWEST_KEYS
    sample = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    text = torch.cat([texts["sd15"][1].embeds, texts["sd15"][0].embeds])
    results = []
    try:
        for choice in ("fused", "blocked"):
            attention.set_attention(unet, choice, attention.attend(choice, 1), named=True)
            results.append(unet(sample, 500, text, cross_attention_kwargs={"references": referred}).sample)
    finally:
        attention.set_attention(unet, "fused", functional.scaled_dot_product_attention, named=True)
    fused, blocked = results
    assert 0 < (fused - blocked).abs().max() <= 1e-5 * fused.abs().max()


# --- pixels and weights


@pytest.mark.parametrize("size", [(83, 50), (50, 83), (32, 32), (33, 32), (31, 200), (7, 5), (640, 427), (1, 3)])
def test_pixels_are_those_of_clips_own_processor(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 80).convert("RGB")
    expected = CLIPImageProcessorPil(size=224, crop_size=224)(image, return_tensors="pt").pixel_values
    assert torch.equal(reference.pixels(image, 224), expected)


def test_the_ends_of_a_very_long_image_take_no_memory() -> None:
    found = reference.pixels(Image.new("RGB", (200_000, 2), (255, 0, 0)), 224)
    assert found.shape == (1, 3, 224, 224) and float(found[0, 0].min()) > 1.9


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_are_numbered_as_diffusers_numbers_them(own_pipelines: dict[str, Any], family: str) -> None:
    unet = own_pipelines[family].unet
    names = [name.removesuffix(".processor") for name in unet.attn_processors if ".attn2." in name]
    widths = [unet.get_submodule(name).to_k.out_features for name in names]
    assert cross_attentions(unet.config) == tuple(zip(names, widths, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_loads_to_the_weights_that_diffusers_takes_from_it(
    adapters: Adapters, their_pipelines: Theirs, kind: str
) -> None:
    adapter, _ = with_encoder(read(adapters["sd15", kind]), None)
    module = load.load("ip_adapter", adapter.component, dtype=torch.float32, device="cpu", channels_last=False).module
    unet = their_pipelines["sd15", kind].unet
    own, projection = module.image_proj.state_dict(), unet.encoder_hid_proj.image_projection_layers[0].state_dict()
    assert own.keys() == projection.keys()
    assert all(torch.equal(own[name], value) for name, value in projection.items())
    processors = [one for name, one in unet.attn_processors.items() if ".attn2." in name]
    for number, processor in enumerate(processors):
        assert torch.equal(module.to_k[number].weight, processor.to_k_ip[0].weight)
        assert torch.equal(module.to_v[number].weight, processor.to_v_ip[0].weight)
