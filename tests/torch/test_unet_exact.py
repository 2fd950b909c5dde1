"""The analytic UNet against the real one on the meta device: every leaf, every shape, every multiply-add."""

from __future__ import annotations

import pytest
from unet_reference import build, inputs, own_parameters, random_config, run

from sdcli import data
from sdcli.models.unet import analyse

CONFIGS, EVERY_DAY = 200, 40


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.proof] * (seed >= EVERY_DAY)) for seed in range(CONFIGS)]
)
def test_a_random_unet_is_counted_exactly(seed: int) -> None:
    config, size = random_config(seed)
    model = build(config)
    shapes, order, macs = run(model, inputs(config, **size))
    found = analyse(config, **size)
    leaves = {leaf.name: leaf for leaf in found.leaves if leaf.kind != "attention"}
    assert len(leaves) == len([leaf for leaf in found.leaves if leaf.kind != "attention"]), "names are unique"
    assert {name: leaf.parameters for name, leaf in leaves.items()} == own_parameters(model)
    assert {name: leaf.output_shape for name, leaf in leaves.items()} == shapes
    assert list(leaves) == list(dict.fromkeys(order))
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.macs == macs
    assert sum(leaf.macs for leaf in found.leaves) == macs
    assert sum(block.macs for block in found.blocks) == macs
    assert sum(block.parameters for block in found.blocks) == found.parameters


KNOWN = [("sd15", 64), ("sdxl", 128), ("sd2", 96), ("refiner", 128)]


@pytest.mark.parametrize(("name", "side"), KNOWN)
def test_a_known_unet_is_counted_exactly(name: str, side: int) -> None:
    config = data.component_config(name, "unet")
    model = build(config)
    size = {"height": side, "width": side - 8, "batch": 2, "tokens": 77}
    shapes, order, macs = run(model, inputs(config, **size))
    found = analyse(config, **size)
    leaves = {leaf.name: leaf for leaf in found.leaves if leaf.kind != "attention"}
    assert list(leaves) == order
    assert {name: leaf.parameters for name, leaf in leaves.items()} == own_parameters(model)
    assert {name: leaf.output_shape for name, leaf in leaves.items()} == shapes
    assert found.macs == macs


def test_parameters_of_every_leaf_agree_with_torchinfo() -> None:
    from torchinfo import summary

    config = data.component_config("sd15", "unet")
    size = {"height": 64, "width": 64, "batch": 1, "tokens": 77}
    given = {name: value for name, value in inputs(config, **size).items() if value is not None}
    rows = summary(build(config), input_data=given, verbose=0, depth=12).summary_list
    theirs = sorted(row.trainable_params for row in rows if row.is_leaf_layer and row.trainable_params)
    found = analyse(config, **size)
    assert sorted(leaf.parameters for leaf in found.leaves if leaf.parameters) == theirs
