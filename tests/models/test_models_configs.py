"""The configs of a model: every value is usable, or refused with its file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import model_files as make
import pytest

from sdcli.errors import BadFile
from sdcli.models import folder

FILES = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.folder(tmp_path_factory.mktemp("configs") / "mine")


def read_with(whole: Path, part: str, key: str, text: str) -> Any:
    """The model with this JSON in place of the key's value."""
    file = whole / FILES[part]
    before = file.read_text()
    rest = json.loads(before)
    rest.pop(key, None)
    try:
        file.write_text(f'{{"{key}": {text}, {json.dumps(rest)[1:]}')
        return folder.read(whole)
    finally:
        file.write_text(before)


BAD = {
    ("unet", "act_fn"): ['"nonsense"', "1", "null", "[]", "{}"],
    ("unet", "norm_num_groups"): ["0", "-1", "32.0", "true", "null", "[32]", '"32"', "1000000000000", "7"],
    ("unet", "norm_eps"): ["0", "-1", "null", '"x"', "1e400"],
    ("unet", "mid_block_scale_factor"): ["0", "1e400", "[1]"],
    ("unet", "block_out_channels"): ["0", "[]", "[0, 0, 0, 0]", "[320]"],
    ("unet", "sample_size"): ["0", "-1"],
    ("unet", "class_embed_type"): ['"timestep"'],
    ("unet", "addition_embed_type"): ['"image"', "1"],
    ("vae", "scaling_factor"): ['"1"', "0", "-1", "1e400", "null", "true", "[1]"],
    ("vae", "norm_num_groups"): ["0", "true", "1000"],
    ("vae", "act_fn"): ['"nonsense"'],
    ("vae", "latents_mean"): ['"x"', "[]", '["x"]'],
    ("vae", "latents_std"): ["[0]"],
    ("text_encoder", "hidden_act"): ['"nonsense"', "0"],
    ("text_encoder", "max_position_embeddings"): ["0", "10", "true"],
    ("text_encoder", "num_attention_heads"): ["0", "true"],
    ("scheduler", "beta_start"): ['"x"', "0", "-1", "1", "true", "[0.1]", "null"],
    ("scheduler", "beta_end"): ['"x"', "2", "0.9999"],
    ("scheduler", "num_train_timesteps"): ["0", "-1", "1", "1000000000000", "1000.5", "true", '"1000"', "[1000]"],
    ("scheduler", "beta_schedule"): ['"nonsense"', "0"],
    ("scheduler", "trained_betas"): ["0", "[]", '["x"]', "[0.1]", json.dumps([2] * 1000), json.dumps([0.5] * 1000)],
    ("scheduler", "steps_offset"): ["-1", "1000000000000", '"1"'],
    ("scheduler", "timestep_spacing"): ['"nonsense"', "null"],
    ("scheduler", "use_dynamic_shifting"): ["true"],
    ("scheduler", "sigma_max"): ["1e-9", '"x"'],
    ("scheduler", "tau_func"): ["1", '"x"'],
    ("scheduler", "variance_type"): ['"learned_range"'],
}


@pytest.mark.parametrize(
    ("part", "key", "text"), [(part, key, text) for (part, key), texts in BAD.items() for text in texts]
)
def test_a_value_that_cannot_be_is_refused_by_file_and_key(whole: Path, part: str, key: str, text: str) -> None:
    with pytest.raises(BadFile) as refused:
        read_with(whole, part, key, text)
    assert refused.value.message.startswith(f"{whole / FILES[part]}: ") and key in refused.value.message
    assert refused.value.hint


def test_a_structure_that_no_size_fits_is_the_files_fault(whole: Path) -> None:
    with pytest.raises(BadFile, match="this UNet cannot run"):
        read_with(whole, "unet", "downsample_padding", "2")


@pytest.mark.parametrize(
    ("part", "key", "text"),
    [
        ("scheduler", "lambda_min_clipped", "-Infinity"),  # so diffusers writes it
        ("scheduler", "trained_betas", "null"),
        ("scheduler", "variance_type", '"fixed_small"'),
        ("scheduler", "beta_start", "1e-4"),
        ("scheduler", "something_new", "[1, 2]"),
        ("vae", "shift_factor", "0.1"),
        ("unet", "dropout", "0"),
        ("unet", "sample_size", "[64, 64]"),
    ],
)
def test_a_value_that_occurs_is_taken(whole: Path, part: str, key: str, text: str) -> None:
    read_with(whole, part, key, text)
