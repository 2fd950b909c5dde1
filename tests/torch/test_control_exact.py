"""The analytic ControlNet against diffusers' class on the meta device: every layer, every multiply-add, and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from unet_reference import live_peak, own_parameters, run

from sdcli import data
from sdcli.models import control_walk

CHANGES: dict[str, dict[str, Any]] = {
    "as trained": {},
    "small": {"down_block_types": ["DownBlock2D"] * 3, "mid_block_type": "UNetMidBlock2D"},
    "mid": {"transformer_layers_per_block": [0, 0, 1]},
    "pooled": {"global_pool_conditions": True},
}
CASES = [("sd15", "as trained"), ("sd15", "pooled"), ("sd2", "as trained"), *[("sdxl", which) for which in CHANGES]]


def config_of(family: str, which: str) -> dict[str, Any]:
    return control_walk.config_of(data.component_config(family, "unet"), **CHANGES[which])


def made(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return ControlNetModel.from_config(config).eval()


def inputs(config: dict[str, Any], height: int, width: int, batch: int) -> dict[str, Any]:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    sized = config.get("addition_embed_type") == "text_time"
    return {
        "sample": empty(batch, 4, height, width), "timestep": empty(),
        "encoder_hidden_states": empty(batch, 77, config["cross_attention_dim"]),
        "controlnet_cond": empty(batch, 3, 8 * height, 8 * width), "return_dict": False,
        "added_cond_kwargs": {"text_embeds": empty(batch, 1280), "time_ids": empty(batch, 6)} if sized else None,
    }  # fmt: skip


@pytest.mark.parametrize(("family", "which"), CASES)
def test_layers_and_work_are_those_of_diffusers(family: str, which: str) -> None:
    config = config_of(family, which)
    net, work = made(config), control_walk.analyse(config, height=32, width=24, batch=2)
    shapes, order, macs = run(net, inputs(config, 32, 24, 2))
    assert work.parameters == sum(tensor.numel() for tensor in net.parameters())
    assert work.call.macs + work.hint.macs == macs
    weighted = {leaf.name: leaf for leaf in work.call.leaves if leaf.parameters}
    hint = {name for name in order if name.startswith("controlnet_cond_embedding")}
    assert weighted.keys() == set(order) - hint
    assert {name: leaf.output_shape for name, leaf in weighted.items()} == {
        name: shape for name, shape in shapes.items() if name not in hint
    }
    assert {name: leaf.parameters for name, leaf in weighted.items()} == {
        name: count for name, count in own_parameters(net).items() if name not in hint
    }


@pytest.mark.parametrize(("family", "which"), CASES)
def test_memory_is_that_of_diffusers(family: str, which: str) -> None:
    config = config_of(family, which)
    net, work = made(config), control_walk.analyse(config, height=64, width=64, batch=2)
    given = inputs(config, 64, 64, 2)
    image = given.pop("controlnet_cond")
    embed = net.controlnet_cond_embedding
    with torch.no_grad():
        embedded = embed(image)
    assert embedded.numel() == work.hint.elements
    assert abs(live_peak(lambda: embed(image)) / (4 * work.hint.peak_elements) - 1) < 0.01
    net.controlnet_cond_embedding = torch.nn.Identity()
    assert abs(live_peak(lambda: net(controlnet_cond=embedded, **given)) / work.call.activation_peak(4) - 1) < 0.02
    with torch.no_grad():
        down, mid = net(controlnet_cond=embedded, **given)
    if which != "pooled":
        assert sum(tensor.numel() for tensor in (*down, mid)) == work.residual_elements


def test_published_sizes_come_out() -> None:
    """Millions of parameters, and the share of the UNet's multiply-adds."""
    from sdcli.models import unet

    seen = {}
    for family in ("sd15", "sd2", "sdxl"):
        shape = data.component_config(family, "unet")
        work = control_walk.analyse(config_of(family, "as trained"), height=64, width=64, batch=2)
        share = (work.call.macs + work.hint.macs) / unet.analyse(shape, height=64, width=64, batch=2).macs
        seen[family] = work.parameters, round(share, 2)
    assert seen == {"sd15": (361_279_120, 0.35), "sd2": (364_228_240, 0.35), "sdxl": (1_251_014_160, 0.45)}
