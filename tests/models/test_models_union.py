"""ControlNet Unions: recognised by headers alone, in folders and single files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import make_checkpoint
from sdcli.errors import BadFile, SdcliError
from sdcli.models import controlnet, resolve

PARAMETERS = {6: 1_255_958_800, 8: 1_256_614_800}


@pytest.mark.parametrize("kinds", PARAMETERS)
def test_a_single_file_gives_its_kinds_and_its_size(tmp_path: Path, kinds: int) -> None:
    file = make_checkpoint.write_union_file(
        tmp_path / "diffusion_pytorch_model_promax.safetensors", dtype="fp16", seed=None, num_control_type=kinds
    )
    found = controlnet.read(file)
    assert (found.family, found.part, found.called) == ("sdxl", "controlnet_union", "ControlNet Union")
    assert found.component.parameters == PARAMETERS[kinds]
    assert found.component.config == make_checkpoint.union_config(num_control_type=kinds)


def test_a_folder_gives_what_its_config_says(tmp_path: Path) -> None:
    folder = make_checkpoint.write_union_folder(tmp_path / "union", tiny=True, num_control_type=8)
    found = controlnet.read(folder)
    assert (found.name, found.family, found.part) == ("union", "sdxl", "controlnet_union")
    assert found.component.config == json.loads((folder / "config.json").read_text())
    controlnet.check_fits(found, resolve.at(make_checkpoint.write_folder(tmp_path / "drawn", "sdxl", tiny=True)))
    with pytest.raises(BadFile, match=r"union is a ControlNet Union for SDXL; small is Stable Diffusion 1\.5"):
        controlnet.check_fits(found, resolve.at(make_checkpoint.write_folder(tmp_path / "small", "sd15", tiny=True)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_control_type": 0}, "num_control_type should be a whole number"),
        ({"num_trans_channel": 64}, "num_trans_channel should be 32, the first of block_out_channels, not 64"),
        ({"num_proj_channel": 64}, "num_proj_channel should be 32"),
        ({"num_trans_head": 5}, "num_trans_head 5 does not divide num_trans_channel 32"),
        ({"addition_embed_type": None}, "addition_embed_type should be one of text_time"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type should be one of UNetMidBlock2DCrossAttn"),
        ({"num_control_type": 9}, "not the same model"),
    ],
)
def test_a_config_that_diffusers_could_not_use_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = make_checkpoint.write_union_folder(tmp_path, tiny=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(SdcliError) as refused:
        controlnet.read(folder)
    assert said in refused.value.message


def test_one_that_lacks_what_makes_it_one_is_refused(tmp_path: Path) -> None:
    planned = make_checkpoint.planned("controlnet_union", make_checkpoint.union_config(), None)
    for lacking, said in (("spatial_ch_projs", "an incomplete ControlNet Union"), ("mid_block", "million parameters")):
        kept = {name: tensor for name, tensor in planned.items() if not name.startswith(f"{lacking}.")}
        make_checkpoint.write_safetensors(tmp_path / "x.safetensors", kept, "fp16")
        with pytest.raises(BadFile) as refused:
            controlnet.read(tmp_path / "x.safetensors")
        assert said in refused.value.message or "mid_block_type" in refused.value.message
