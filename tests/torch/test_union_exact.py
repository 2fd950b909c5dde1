"""The analytic ControlNet Union against diffusers' class on the meta device: parameters, multiply-adds, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ControlNetUnionModel
from test_control_exact import inputs
from torch.utils.flop_counter import FlopCounterMode
from unet_reference import live_peak

from scripts import make_checkpoint
from sdcli.draw import control
from sdcli.models import control_walk

CHANGES: dict[str, dict[str, Any]] = {"six kinds": {}, "eight": {"num_control_type": 8}}


def given_for(config: dict[str, Any], side: int) -> tuple[dict[str, Any], torch.Tensor]:
    given = inputs(config, side, side, 2)
    image = given.pop("controlnet_cond")
    kinds = torch.empty((2, config["num_control_type"]), device="meta")
    return {**given, "control_type": kinds, "control_type_idx": [3], "conditioning_scale": [0.8]}, image


@pytest.mark.parametrize("which", CHANGES)
def test_work_and_memory_are_those_of_diffusers(which: str) -> None:
    config = make_checkpoint.union_config(**CHANGES[which])
    with torch.device("meta"):
        net = ControlNetUnionModel.from_config(config).eval()
    work = control_walk.analyse(config, height=64, width=64, batch=2)
    assert work.parameters == sum(tensor.numel() for tensor in net.parameters())
    control.embedded_once(net)
    given, image = given_for(config, 64)
    with torch.no_grad():
        embedded = net.controlnet_cond_embedding.embed(image)
        with FlopCounterMode(display=False) as counter:
            down, mid = net(controlnet_cond=[embedded], **given)
    assert work.call.macs == counter.get_total_flops() // 2
    assert sum(tensor.numel() for tensor in (*down, mid)) == work.residual_elements
    assert abs(live_peak(lambda: net(controlnet_cond=[embedded], **given)) / work.call.activation_peak(4) - 1) < 0.02
