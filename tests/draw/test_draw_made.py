"""A config that no check foresaw is a damaged file all the same, once a library refuses it."""

from __future__ import annotations

from typing import Any

import pytest

from sdcli import data
from sdcli.draw import load, schedulers
from sdcli.errors import BadFile


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
def test_a_module_that_cannot_be_made_is_a_bad_file(part: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadFile, match=f"the model's {part} cannot be made from its config") as refused:
        load.build(part, data.component_config("sd15", part) | wrong)
    assert refused.value.hint


@pytest.mark.parametrize(
    "wrong", [{"beta_start": "x"}, {"beta_schedule": "nonsense"}, {"use_exponential_sigmas": True}]
)
def test_a_scheduler_that_cannot_be_made_is_a_bad_file(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadFile, match="the model's scheduler cannot be made from its config") as refused:
        schedulers.make("DPM++ 2M Karras", data.component_config("sd15", "scheduler") | wrong)
    assert refused.value.hint
