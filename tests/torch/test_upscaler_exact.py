"""The analytic upscaler against the net on the meta device: every layer, every multiply-add, and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from unet_reference import live_peak, own_parameters, run

from scripts import make_checkpoint
from sdcli.draw.upscale import Upscaler
from sdcli.models import upscaler_walk

CASES: dict[str, dict[str, Any]] = {
    "×4": {}, "×2, folded": {"scale": 2, "unshuffle": 2}, "×1": {"scale": 1, "doublings": 0},
    "×8": {"scale": 8, "doublings": 3, "blocks": 2}, "of 6 blocks": {"blocks": 6}, "compact": {"compact": True},
    "compact, ×2": {"compact": True, "scale": 2, "convolutions": 16},
}  # fmt: skip


def made(case: str) -> tuple[dict[str, Any], Any]:
    config = make_checkpoint.upscaler_config(**CASES[case])
    with torch.device("meta"):
        return config, Upscaler.from_config(config).eval()


@pytest.mark.parametrize("case", CASES)
def test_layers_and_work_are_those_of_the_net(case: str) -> None:
    config, net = made(case)
    work = upscaler_walk.analyse(config, height=32, width=24)
    shapes, order, macs = run(net, {"image": torch.empty((1, 3, 32, 24), device="meta")})
    assert (work.parameters, work.macs) == (sum(tensor.numel() for tensor in net.parameters()), macs)
    leaves = {leaf.name: leaf for leaf in work.leaves}
    assert list(leaves) == order
    assert {name: leaf.output_shape for name, leaf in leaves.items()} == shapes
    assert {name: leaf.parameters for name, leaf in leaves.items()} == own_parameters(net)
    result = net(torch.empty((1, 3, 32, 24), device="meta"))
    assert tuple(result.shape) == (1, 3, 32 * net.scale, 24 * net.scale) and result.numel() == work.result_elements


@pytest.mark.parametrize("case", CASES)
def test_memory_is_that_of_the_net(case: str) -> None:
    config, net = made(case)
    work = upscaler_walk.analyse(config, height=64, width=48)
    given = torch.empty((1, 3, 64, 48), device="meta")
    assert live_peak(lambda: net(given)) == 4 * work.peak_elements
