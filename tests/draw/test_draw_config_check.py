"""A config that a library refuses is a damaged file, even where no check of ours foresaw it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdcli import data
from sdcli.draw import load, schedulers
from sdcli.errors import BadFile
from sdcli.models.model import Component


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("unet", {"act_fn": "nonsense"}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"layers_per_block": None}),
        ("vae", {"in_channels": None}),
        ("text_encoder", {"hidden_act": "nonsense"}),
    ],
)
def test_a_component_that_cannot_be_made_is_a_bad_file(part: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadFile, match=f"cannot make the model's {part} from its config") as refused:
        load.build(part, data.component_config("sd15", part) | wrong)
    assert refused.value.hint


def test_a_file_with_an_incomplete_component_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "unet.safetensors")
    save_file({"conv_in.bias": torch.zeros(320)}, path)
    part = Component(parameters=0, stored_bytes=0, stored_dtype="fp32", files=(path,),
                     config=data.component_config("sd15", "unet"))  # fmt: skip
    with pytest.raises(BadFile) as refused:
        load.load("unet", part, dtype=torch.float32, device="cpu", channels_last=False)
    assert refused.value.message.startswith(f"{path} has no complete unet: conv_in.weight and ")
    assert refused.value.hint


@pytest.mark.parametrize(
    "wrong", [{"beta_start": "x"}, {"beta_schedule": "nonsense"}, {"use_exponential_sigmas": True}]
)
def test_a_scheduler_that_cannot_be_made_is_a_bad_file(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadFile, match="cannot make the model's scheduler from its config") as refused:
        schedulers.make("DPM++ 2M Karras", data.component_config("sd15", "scheduler") | wrong)
    assert refused.value.hint
