"""Packed layers: what is drawn is what the setup says, diffusers' values within rounding, one layer twice at most."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from draw_samples import FAMILIES, HARDWARE, events_of, plan_for
from torch import Tensor, nn

from sdcli.draw import attention, load, packed, place
from sdcli.draw.packed import Packer
from sdcli.events import Decoded
from sdcli.models import resolve
from sdcli.models.model import Model
from sdcli.plan.plan import Plan, Setup
from sdcli.plan.techniques import execution

FUSED = attention.attend("fused", 1)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PACKS_BF16 = any(name in HARDWARE.isa for name in execution.PACKS_BF16)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def unet_of(model: Model, dtype: str, how: str) -> Any:
    part = model.components["unet"]
    attend = FUSED if how == "packed" else None
    return load.load("unet", part, dtype=DTYPES[dtype], device="cpu", channels_last=True, attend=attend).module


def called(unet: Any, model: Model) -> Tensor:
    """On a batch of two latents that are not square."""
    config, dtype = model.components["unet"].config, unet.dtype
    generator = torch.Generator().manual_seed(3)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    added: dict[str, Any] = {}
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added = {"text_embeds": values(2, pooled), "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]] * 2).to(dtype)}
    text = values(2, 77, config["cross_attention_dim"])
    sample = values(2, config["in_channels"], 16, 24)
    result: Tensor = unet(
        sample, torch.tensor(500), encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False
    )[0]
    return result.float()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_unet_computes_what_diffusers_does_within_rounding(family: str, tiny_folders: dict[str, Path]) -> None:
    model = resolve.at(tiny_folders[family])
    exact = called(unet_of(model, "fp32", "eager"), model)
    assert (called(unet_of(model, "fp32", "packed"), model) - exact).abs().max() <= 1e-5 * exact.abs().max()
    if not PACKS_BF16:
        with pytest.raises(RuntimeError, match="bf16"):
            unet_of(model, "bf16", "packed")
        return
    own, theirs = (called(unet_of(model, "bf16", how), model) for how in ("packed", "eager"))
    assert (own - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_vae_decodes_what_diffusers_does_within_rounding(family: str, tiny_folders: dict[str, Path]) -> None:
    part = resolve.at(tiny_folders[family]).components["vae"]
    latents = torch.randn(1, part.config["latent_channels"], 12, 8, generator=torch.Generator().manual_seed(3))

    def decoded(dtype: str, attend: attention.Attend | None) -> Tensor:
        vae = load.load("vae", part, dtype=DTYPES[dtype], device="cpu", channels_last=True, attend=attend).module
        result: Tensor = vae.decode(latents.to(DTYPES[dtype]), return_dict=False)[0]
        return result.float()

    exact = decoded("fp32", None)
    assert (decoded("fp32", FUSED) - exact).abs().max() <= 1e-5 * exact.abs().max()
    if not PACKS_BF16:
        with pytest.raises(RuntimeError, match="bf16"):
            decoded("bf16", FUSED)
        return
    own, theirs = (decoded("bf16", attend) for attend in (FUSED, None))
    assert (own - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_what_computes_is_what_the_setup_says(family: str, part: str, tiny_folders: dict[str, Path]) -> None:
    model = resolve.at(tiny_folders[family])
    for choice, missing in (("packed", (nn.Linear, nn.Conv2d)), ("eager", (packed.Linear, packed.Convolution))):
        components = place.Components(model, Setup(dtype="fp32", execution=choice))
        list(components.ready((part,)))
        with components.use(part) as module:
            found = [name for name, layer in module.named_modules() if isinstance(layer, missing)]
            blocks = [layer for layer in module.modules() if type(layer).__name__ == "BasicTransformerBlock"]
        assert not found
        assert bool(blocks) == (choice == "eager" and part == "unet")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_run_draws_the_eager_image_within_rounding_and_the_same_again(
    family: str, tiny_folders: dict[str, Path]
) -> None:
    def pixels(choice: str) -> Tensor:
        plan = plan_for(tiny_folders[family], pins={"execution": choice, "dtype": "fp32"})
        (image,) = events_of(plan, Decoded)
        assert image.setup.execution == choice
        return torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8).int()

    first, again, eager = pixels("packed"), pixels("packed"), pixels("eager")
    assert torch.equal(first, again)
    assert (first - eager).abs().max() <= 1


def test_an_image_of_another_size_is_computed_as_by_a_layer_that_met_no_other() -> None:
    """Layouts for 8 and for 64 pixels differ on some CPUs."""
    torch.manual_seed(1)
    source = nn.Conv2d(64, 320, 3, padding=1).to(memory_format=torch.channels_last)
    small, large = (torch.randn(2, 64, edge, edge).contiguous(memory_format=torch.channels_last) for edge in (8, 64))
    layer = packed.Convolution(source)
    results = [layer(small), layer(large), layer(small)]
    assert layer.weight.is_mkldnn  # nothing is kept of the plain weights
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], packed.Convolution(source)(large))
    for image, result in zip((small, large), results, strict=False):
        exact = source(image)
        assert (result - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_no_more_than_one_layer_is_in_memory_twice(tiny_folders: dict[str, Path]) -> None:
    model = resolve.at(tiny_folders["sdxl"])
    gc.collect()
    gc.freeze()  # the many collections below go through this UNet, not through all libraries each time
    plain = unet_of(model, "fp32", "eager")
    weights = {name: weakref.ref(weight) for name, weight in plain.named_parameters() if weight.ndim > 1}
    keys = list(plain.state_dict())
    packer, most = Packer(plain, FUSED), 0
    for number, key in enumerate(keys):
        packer(key)
        gc.collect()
        most = max(most, sum(weights[name]() is not None for name in keys[: number + 1] if name in weights))
    assert most <= 10  # a transformer block has ten matrices
    assert not any(weight() is not None for weight in weights.values())


class Unusual(nn.Module):
    """A ResnetBlock2D of a kind that is not drawn here differently than by diffusers."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers.models.resnet import ResnetBlock2D

        self.block = ResnetBlock2D(in_channels=32, temb_channels=32, time_embedding_norm="scale_shift")

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        result: Tensor = self.block(image, time)
        return result


def test_layers_of_an_unusual_block_are_packed_and_its_steps_stay_diffusers() -> None:
    torch.manual_seed(1)
    module = Unusual().eval()
    image, time = torch.randn(1, 32, 8, 8).contiguous(memory_format=torch.channels_last), torch.randn(1, 32)
    expected = module(image, time)
    packer = Packer(module, FUSED)
    for key in list(module.state_dict()):
        packer(key)
    assert type(module.block).__name__ == "ResnetBlock2D" and isinstance(module.block.conv1, packed.Convolution)
    assert (module(image, time) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.skipif(not PACKS_BF16, reason="on this CPU only fp32 is packed, which does not overflow")
def test_a_packed_vae_that_overflows_is_replaced_by_one_in_fp32_for_that_image(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last convolution of a VAE in bf16 gives infinity; the image must be the one that fp32 gives."""
    whole = packed.Convolution.forward

    def overflowing(self: packed.Convolution, image: Tensor) -> Tensor:
        result = whole(self, image)
        return result * torch.inf if result.shape[1] == 3 else result

    plan = plan_for(tiny_folders["sd15"], pins={"execution": "packed", "dtype": "bf16", "vae-dtype": "same"})
    monkeypatch.setattr(packed.Convolution, "forward", overflowing)
    (image,) = events_of(plan, Decoded)
    assert image.retried == "not finite in bfloat16"
    monkeypatch.undo()
    (right,) = events_of(_with(plan, vae_dtype="fp32"), Decoded)
    both = [torch.frombuffer(bytearray(each.pixels), dtype=torch.uint8).int() for each in (image, right)]
    assert (both[0] - both[1]).abs().max() <= 1


def _with(plan: Plan, **choices: Any) -> Plan:
    return replace(plan, setup=replace(plan.setup, **choices))
