"""Predicted activation peaks against the live bytes of a real forward pass on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from unet_reference import build, inputs, live_peak, random_config

from sdcli import data
from sdcli.models import text, vae
from sdcli.models.unet import analyse

KNOWN = [("sd15", 64, 1), ("sd15", 64, 2), ("sdxl", 128, 2), ("sd2", 96, 1), ("refiner", 128, 1), ("sd15", 96, 1)]


@pytest.mark.parametrize(("name", "side", "batch"), KNOWN)
def test_the_peak_of_a_known_unet_is_within_a_hundredth(name: str, side: int, batch: int) -> None:
    config = data.component_config(name, "unet")
    size = {"height": side, "width": side, "batch": batch}
    model = build(config).half()
    given = inputs(config, **size, dtype=torch.float16)
    measured = live_peak(lambda: model(**given))
    assert analyse(config, **size).activation_peak(2) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("seed", range(40))
def test_the_peak_of_a_random_unet_is_within_a_twentieth(seed: int) -> None:
    config, size = random_config(seed)
    size |= {"height": size["height"] * 4, "width": size["width"] * 4, "tokens": 7}
    model = build(config)
    given = inputs(config, **size)
    measured = live_peak(lambda: model(**given))
    assert analyse(config, **size).activation_peak(4) == pytest.approx(measured, rel=0.05)


def _vae(config: Any) -> Any:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL.from_config(dict(config)).half().eval()


@pytest.mark.parametrize(("height", "width", "batch"), [(512, 512, 1), (512, 768, 2), (1024, 1024, 1)])
def test_the_peak_and_work_of_decoding_and_encoding(height: int, width: int, batch: int) -> None:
    config = data.component_config("sdxl", "vae")
    model = _vae(config)
    latents = torch.empty((batch, 4, height // 8, width // 8), device="meta", dtype=torch.float16)
    pixels = torch.empty((batch, 3, height, width), device="meta", dtype=torch.float16)
    decoding = vae.decode(config, height=height, width=width, batch=batch)
    encoding = vae.encode(config, height=height, width=width, batch=batch)
    assert decoding.activation_peak(2) == pytest.approx(live_peak(lambda: model.decode(latents)), rel=0.02)
    assert encoding.activation_peak(2) == pytest.approx(live_peak(lambda: model.encode(pixels)), rel=0.02)
    assert decoding.macs == _macs(lambda: model.decode(latents))
    assert encoding.macs == _macs(lambda: model.encode(pixels))


def _macs(call: Any) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("tile", "height", "width"), [(512, 1024, 1024), (256, 640, 896)])
def test_the_peak_of_decoding_in_tiles(tile: int, height: int, width: int) -> None:
    config = data.component_config("sdxl", "vae")
    model = _vae(config)
    model.enable_tiling()
    model.tile_sample_min_size, model.tile_latent_min_size = tile, tile // 8
    latents = torch.empty((1, 4, height // 8, width // 8), device="meta", dtype=torch.float16)
    found = vae.decode_tiled(config, height=height, width=width, tile=tile)
    assert found.activation_peak(2) == pytest.approx(live_peak(lambda: model.decode(latents)), rel=0.02)
    assert found.macs == _macs(lambda: model.decode(latents))


def test_a_small_vae_without_attention_or_quantisation_is_counted_exactly() -> None:
    config = dict(data.component_config("sd15", "vae"))
    config |= {"block_out_channels": [8, 16, 24], "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 16}
    config |= {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    config |= {"mid_block_add_attention": False, "use_quant_conv": False, "use_post_quant_conv": False}
    model = _vae(config)
    latents = torch.empty((1, 16, 10, 12), device="meta", dtype=torch.float16)
    assert vae.parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    assert vae.decode(config, height=40, width=48).macs == _macs(lambda: model.decode(latents))


@pytest.mark.parametrize(("family", "component"), [("sd15", "text_encoder"), ("sdxl", "text_encoder_2")])
def test_a_text_encoder_is_counted_exactly(family: str, component: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = data.component_config(family, component)
    found = text.analyse(config, batch=2)
    with torch.device("meta"):
        kind = CLIPTextModelWithProjection if found.projection else CLIPTextModel
        model = kind(CLIPTextConfig(**config)).half().eval()
    ids = torch.empty((2, 77), device="meta", dtype=torch.int64)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.macs == _macs(lambda: model(ids))
    measured = live_peak(lambda: model(ids, output_hidden_states=True))
    assert found.activation_peak(2) == pytest.approx(measured, rel=0.1)
    named = {leaf.name: leaf.parameters for leaf in found.leaves if leaf.parameters}
    assert named == {
        name: sum(p.numel() for p in module.parameters(recurse=False))
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False))
    }
