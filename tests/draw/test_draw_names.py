"""Tensors under diffusers' names: which of them, which numbers and in which shape, held against its own conversion."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from draw_samples import FAMILIES

from scripts import make_checkpoint
from sdcli.draw import load, weights
from sdcli.models.families import find

Tensors = dict[str, torch.Tensor]
ALL = (*FAMILIES, "refiner")


def converted(family: str, name: str, config: dict[str, Any], stored: Tensors) -> Tensors:
    """What diffusers makes of a single file's tensors for one component, as transformers 5 calls a text encoder's."""
    stored = dict(stored)
    if name == "unet":
        return dict(single_file_utils.convert_ldm_unet_checkpoint(stored, config))
    if name == "vae":
        return dict(single_file_utils.convert_ldm_vae_checkpoint(stored, config))
    prefix = next(encoder.original for encoder in find(family).encoders if encoder.part == name)
    if prefix.endswith(".model."):
        like = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
        made = single_file_utils.convert_open_clip_checkpoint(like, stored, prefix=prefix)
    else:
        made = single_file_utils.convert_ldm_clip_checkpoint(stored)
    return {key.removeprefix("text_model."): tensor for key, tensor in made.items()}


def wanted_by(name: str, config: dict[str, Any]) -> set[str]:
    return {key.removeprefix("text_model.") for key in load.build(name, config).state_dict()}


@pytest.mark.parametrize("family", ALL)
def test_every_tensor_of_the_full_size_original_layout_has_the_name_and_shape_that_diffusers_gives_it(
    family: str,
) -> None:
    """Names and shapes only: nothing of full size is read or written."""
    configs = make_checkpoint.configs(family)
    planned = {
        key: tensor.shape
        for name in make_checkpoint.COMPONENTS[family]
        for key, tensor in make_checkpoint.original(
            family, name, configs[name], make_checkpoint.planned(name, configs[name], seed=0)
        )
    }
    pieces = {key: weights.Piece("", 0, shape, torch.float32) for key, shape in planned.items()}
    stored = {key: torch.empty(shape, device="meta") for key, shape in planned.items()}
    for name in make_checkpoint.COMPONENTS[family]:
        theirs = {key: tuple(made.shape) for key, made in converted(family, name, configs[name], stored).items()}
        ours = {key: piece.shape for key, piece in load.named(name, pieces).items()}
        assert {key: ours.get(key) for key in theirs} == theirs
        assert wanted_by(name, configs[name]) <= theirs.keys()
        assert not (ours.keys() - theirs.keys()) & wanted_by(name, configs[name])


@pytest.mark.parametrize("family", ALL)
def test_every_tensor_of_a_single_file_has_the_numbers_that_diffusers_gives_it(family: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    file = make_checkpoint.write_file(tmp_path / "model.safetensors", family, tiny=True)
    stored = load_file(file)
    pieces = weights.pieces([str(file)])
    with weights.Reader() as reader:
        for name, config in make_checkpoint.configs(family, tiny=True).items():
            if name == "scheduler":
                continue
            ours = load.named(name, pieces)
            theirs = converted(family, name, config, stored)
            assert wanted_by(name, config) <= theirs.keys()
            for key, tensor in theirs.items():
                for dtype in (tensor.dtype, torch.bfloat16):  # read in place, and through the buffer
                    read = torch.empty(ours[key].shape, dtype=dtype)
                    reader.read(ours[key], read)
                    assert torch.equal(read, tensor.to(dtype)), key
