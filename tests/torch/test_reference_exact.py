"""The analytic image encoder and IP-Adapter against the real modules on the meta device: layers, work and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from unet_reference import live_peak

from scripts import make_checkpoint
from sdcli.draw.ip_adapter import IPAdapter
from sdcli.models import reference_walk, vision
from sdcli.models.reference import read, with_encoder

ADAPTERS = [("sd15", "plain", "ViT-H"), ("sd15", "plus", "ViT-H"), ("sd15", "full", "ViT-H"),
            ("sdxl", "plain", "ViT-bigG"), ("sdxl", "plus", "ViT-H")]  # fmt: skip


def macs_of(call: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def own_parameters(module: torch.nn.Module) -> dict[str, int]:
    return {
        name: sum(p.numel() for p in part.parameters(recurse=False))
        for name, part in module.named_modules()
        if list(part.parameters(recurse=False))
    }


@pytest.mark.parametrize("name", ["ViT-H", "ViT-bigG", "tiny"])
def test_an_image_encoder_is_counted_exactly(name: str) -> None:
    config = make_checkpoint.image_encoder_config(name)
    with torch.device("meta"):
        module = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(dict(config))).half().eval()
    given = torch.empty((1, 3, config["image_size"], config["image_size"]), device="meta", dtype=torch.float16)
    found = vision.analyse(config)
    assert found.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert found.macs == macs_of(lambda: module(given))
    counted = {leaf.name: leaf.parameters for leaf in found.leaves if leaf.parameters}
    own = counted.pop("vision_model.embeddings.class_embedding")
    assert counted | {"vision_model.embeddings": own} == own_parameters(module)
    with torch.no_grad():
        shape = module(given, output_hidden_states=True).hidden_states[-2].shape
    assert shape == (1, found.positions, found.hidden)
    assert found.activation_peak(2) == pytest.approx(live_peak(lambda: module(given)), rel=0.05)
    kept = vision.analyse(config, states=True)
    measured = live_peak(lambda: module(given, output_hidden_states=True))
    assert kept.activation_peak(2) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("family", "kind", "encoder"), ADAPTERS)
@pytest.mark.parametrize("images", [1, 3])
def test_an_ip_adapter_is_counted_exactly(tmp_path: Any, family: str, kind: str, encoder: str, images: int) -> None:
    file = make_checkpoint.write_ip_adapter(tmp_path / "ip.safetensors", family, kind, encoder=encoder, seed=None)
    folder = make_checkpoint.write_image_encoder(tmp_path / "image_encoder", encoder, seed=None)
    adapter, _ = with_encoder(read(file), folder)
    config = adapter.component.config
    with torch.device("meta"):
        module = IPAdapter.from_config(config).half().eval()
    shape = (2, images, *((config.get("positions", 257),) if kind != "plain" else ()), config["embedding"])
    given = torch.empty(shape, device="meta", dtype=torch.float16)
    found = reference_walk.analyse(config, images=images)
    assert found.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert found.macs == macs_of(lambda: module(given))
    with torch.no_grad():
        result = module(given)
    assert found.kept_elements == sum(tensor.numel() for pair in result for tensor in pair)
    del result
    assert found.activation_peak(2) == pytest.approx(live_peak(lambda: module(given)), rel=0.1)
    counted = {leaf.name: leaf.parameters for leaf in found.leaves if leaf.parameters}
    if kind == "plus":
        counted["image_proj"] = counted.pop("image_proj.latents")
    assert counted == own_parameters(module)
