"""The analytic T2I-Adapter against diffusers' class on the meta device: parameters, multiply-adds, memory, features;
and where a UNet takes these."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import T2IAdapter
from unet_reference import build, inputs, live_peak, run

from scripts import make_checkpoint
from sdcli import data
from sdcli.errors import Usage
from sdcli.models import t2i_walk

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("sd15", {}), "grey": ("sd15", {"channels": 1}), "light": ("sd15", {"light": True}), "large": ("sdxl", {}),
}  # fmt: skip


@pytest.mark.parametrize("which", CASES)
def test_work_features_and_memory_are_those_of_diffusers(which: str) -> None:
    family, about = CASES[which]
    config = make_checkpoint.t2i_config(family, **about)
    with torch.device("meta"):
        net = T2IAdapter.from_config(config).eval()
    image = torch.empty((1, config["in_channels"], 8 * 72, 8 * 58), device="meta")
    work = t2i_walk.analyse(config, height=72, width=58)
    _, _, macs = run(net, {"x": image})
    assert work.parameters == sum(tensor.numel() for tensor in net.parameters())
    assert work.macs == macs
    with torch.no_grad():
        features = net(image)
    assert [tuple(each.shape[1:]) for each in features] == [
        (one.channels, one.height, one.width) for one in work.features
    ]
    assert abs(live_peak(lambda: net(image)) / (4 * work.peak_elements) - 1) < 0.02


@pytest.mark.parametrize(("family", "height", "width"), [("sd15", 64, 64), ("sd15", 65, 58), ("sdxl", 128, 90)])
def test_features_are_taken_where_the_unet_adds_them(family: str, height: int, width: int) -> None:
    config = data.component_config(family, "unet")
    taken = t2i_walk.taken_by(config, height=height, width=width)
    maps = [torch.empty((2, one.channels, one.height, one.width), device="meta") for one in taken]
    last = -1 if family == "sd15" else None  # four levels, or three and the middle
    given = inputs(config, height=height, width=width, batch=2)
    rest = maps[:last]
    with torch.no_grad():
        build(config)(**given, down_intrablock_additional_residuals=rest)
    assert rest == []
    wrong = [torch.empty((2, 3, 5, 5), device="meta"), *maps[1:last]]
    with torch.no_grad(), pytest.raises(RuntimeError):
        build(config)(**given, down_intrablock_additional_residuals=wrong)


def test_a_size_that_does_not_divide_is_refused_with_one_that_does() -> None:
    with pytest.raises(Usage) as refused:
        t2i_walk.analyse(make_checkpoint.t2i_config("sdxl"), height=65, width=128)
    assert refused.value.hint == "--size 1024x512"
