"""ControlNets in every form they come in, recognised by headers alone; what only goes by the name is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import model_files as make
import pytest

from scripts import make_checkpoint
from sdcli.errors import BadFile, ModelMissing, SdcliError, Unsafe
from sdcli.models import control_walk, controlnet, resolve
from sdcli.models.control_walk import config_of

SMALL: dict[str, Any] = {"down_block_types": ["DownBlock2D"] * 3, "mid_block_type": "UNetMidBlock2D"}
MID: dict[str, Any] = {"transformer_layers_per_block": [0, 0, 1]}
PARAMETERS = {"sd15": 361_279_120, "sd2": 364_228_240, "sdxl": 1_251_014_160}


def file_of(path: Path, family: str, layout: str = "diffusers", **changes: Any) -> Path:
    """Full size, with holes in place of weights."""
    return make_checkpoint.write_controlnet_file(path, family, layout=layout, dtype="fp16", seed=None, **changes)


@pytest.mark.parametrize("layout", ["diffusers", "original", "bare"])
@pytest.mark.parametrize("family", PARAMETERS)
def test_a_single_file_gives_its_family_its_config_and_its_size(tmp_path: Path, family: str, layout: str) -> None:
    found = controlnet.read(file_of(tmp_path / "edges.safetensors", family, layout))
    assert (found.name, found.family, found.pooled) == ("edges", family, False)
    assert found.component.parameters == PARAMETERS[family]
    assert (found.component.stored_bytes, found.component.stored_dtype) == (2 * PARAMETERS[family], "fp16")
    assert found.component.files == (str(tmp_path / "edges.safetensors"),)
    assert found.component.config == make_checkpoint.controlnet_config(family)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("changes", [SMALL, MID, {"conditioning_embedding_out_channels": [8, 16, 32, 64]}])
def test_one_with_fewer_attentions_is_told_by_its_tensors(tmp_path: Path, changes: dict[str, Any], layout: str) -> None:
    found = controlnet.read(file_of(tmp_path / "small.safetensors", "sdxl", layout, **changes))
    config = make_checkpoint.controlnet_config("sdxl", **changes)
    assert found.family == "sdxl"
    assert found.component.parameters == control_walk.analyse(config, height=64, width=64).parameters
    assert {name: found.component.config[name] for name in changes} == changes | (
        {} if changes is not MID else {"transformer_layers_per_block": [1, 0, 1]}  # the first level has none to count
    )


def test_a_folder_gives_what_its_config_says(tmp_path: Path) -> None:
    folder = make_checkpoint.write_controlnet_folder(
        tmp_path / "shuffle", "sd15", tiny=True, dtype="fp16", variant="fp16", global_pool_conditions=True
    )
    found = controlnet.read(folder)
    assert (found.name, found.family, found.pooled) == ("shuffle", "sd15", True)
    assert found.component.config == json.loads((folder / "config.json").read_text())
    assert found.component.files == (str(folder / "diffusion_pytorch_model.fp16.safetensors"),)
    assert found.component.stored_bytes == 2 * found.component.parameters


def test_a_single_file_is_pooled_where_its_name_says_shuffle(tmp_path: Path) -> None:
    assert controlnet.read(file_of(tmp_path / "control_v11e_sd15_shuffle.safetensors", "sd15")).pooled


def test_a_file_that_has_a_whole_model_beside_it_gives_the_controlnet_alone(tmp_path: Path) -> None:
    alone = controlnet.read(file_of(tmp_path / "alone.safetensors", "sd15", "original"))
    config = make_checkpoint.controlnet_config("sd15")
    planned = make_checkpoint.planned("controlnet", config, None)
    names = {
        f"control_model.{make_checkpoint.original_controlnet_name(name, config)}": p for name, p in planned.items()
    }
    model = {name: make_checkpoint.Planned(tuple(s), None) for name, s in make.original_unet(768).items()}
    make_checkpoint.write_safetensors(tmp_path / "both.safetensors", {**model, **names}, "fp16")
    both = controlnet.read(tmp_path / "both.safetensors")
    assert (both.component.parameters, both.component.stored_bytes) == (
        alone.component.parameters, alone.component.stored_bytes
    )  # fmt: skip


HINTED = {"input_hint_block.0.weight": [16, 3, 3, 3]}
EMBEDDING = {"controlnet_cond_embedding.conv_in.weight": [16, 3, 3, 3]}
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
REFUSED: dict[str, tuple[make.Shapes, str]] = {
    "Control-LoRA": (
        {**HINTED, "lora_controlnet": [1], "input_blocks.1.0.in_layers.2.up": [320, 128]},
        "a Control-LoRA",
    ),
    "ControlLLLite": ({"lllite_unet_input_blocks_4_1_x_attn1_to_q.down.0.weight": [16, 320]}, "a ControlLLLite"),
    "a difference": ({"control_model.input_hint_block.0.weight": [16, 3, 3, 3], "difference": [1]}, "a difference"),
    "XS": ({**EMBEDDING, "control_to_base_for_conv_in.weight": [320, 4, 1, 1]}, "a ControlNet-XS"),
    "a part of a Union": (
        {**EMBEDDING, "task_embedding": [6, 320], ATTENTION: [320, 2048]},
        "an incomplete ControlNet Union",
    ),
    "a part of a T2I": ({"adapter.body.0.resnets.0.block1.weight": [4, 4, 3, 3]}, "a T2I-Adapter, but none"),
    "SparseCtrl": ({**EMBEDDING, "down_blocks.0.motion_modules.0.norm.weight": [4]}, "a motion module"),
    "FLUX": ({"controlnet_x_embedder.weight": [3072, 64]}, "no model that sdcli draws with"),
    "a LoRA": ({"lora_unet_down_blocks_0_x_attn2_to_k.lora_down.weight": [4, 768]}, "not a ControlNet"),
    "a model": (make.original_unet(768), "not a ControlNet"),
    "a part": ({**EMBEDDING, ATTENTION: [320, 768]}, "an incomplete ControlNet"),
    "nothing": ({}, "not a ControlNet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_goes_by_the_name_is_refused_by_its_own(tmp_path: Path, name: str) -> None:
    shapes, said = REFUSED[name]
    with pytest.raises(BadFile) as refused:
        controlnet.read(make.file(tmp_path / "x.safetensors", shapes))
    assert said in refused.value.message
    assert refused.value.hint


def test_one_that_lacks_layers_is_refused(tmp_path: Path) -> None:
    config = make_checkpoint.controlnet_config("sd15")
    planned = make_checkpoint.planned("controlnet", config, None)
    kept = {name: tensor for name, tensor in planned.items() if "down_blocks.2.resnets" not in name}
    make_checkpoint.write_safetensors(tmp_path / "x.safetensors", kept, "fp16")
    with pytest.raises(BadFile, match="million parameters"):
        controlnet.read(tmp_path / "x.safetensors")


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04" + bytes(600))
    with pytest.raises(SdcliError):
        controlnet.read(tmp_path / "x.pth")
    folder = make_checkpoint.write_controlnet_folder(tmp_path / "net", "sd15", tiny=True)
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(Unsafe):
        controlnet.read(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "ControlNetUnionModel"}, "num_trans_channel should be 32"),
        ({"_class_name": "T2IAdapter"}, "in_channels should be 1 or 3"),
        ({"_class_name": ["my", "Code"]}, "which sdcli cannot draw with"),
        ({"conditioning_channels": 1}, "conditioning_channels should be 3"),
        ({"controlnet_conditioning_channel_order": "gbr"}, "one of rgb, bgr"),
        ({"conditioning_embedding_out_channels": [16, 32]}, "a list of four"),
        ({"class_embed_type": "timestep"}, "class_embed_type should be null"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "not supported"),
        ({"down_block_types": "all"}, "not supported"),
        ({"block_out_channels": [30, 60, 60, 60]}, "does not divide"),
        ({"block_out_channels": [32, 64, 64, 640]}, "not the same model"),
        ({"auto_map": {}}, "refused"),
    ],
)
def test_a_config_that_diffusers_could_not_use_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = make_checkpoint.write_controlnet_folder(tmp_path, "sd15", tiny=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(SdcliError) as refused:
        controlnet.read(folder)
    assert said in refused.value.message


def test_a_folder_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(make_checkpoint.controlnet_config("sd15")))
    with pytest.raises(ModelMissing, match=r"\.safetensors is missing"):
        controlnet.read(tmp_path)


def test_one_for_another_family_is_refused_with_both_names(tmp_path: Path) -> None:
    model = resolve.at(make_checkpoint.write_folder(tmp_path / "drawn", "sd15", tiny=True))
    controlnet.check_fits(
        controlnet.read(make_checkpoint.write_controlnet_folder(tmp_path / "own", "sd15", tiny=True)), model
    )
    other = controlnet.read(make_checkpoint.write_controlnet_folder(tmp_path / "edges", "sdxl", tiny=True))
    with pytest.raises(BadFile, match=r"edges is a ControlNet for SDXL; drawn is Stable Diffusion 1\.5"):
        controlnet.check_fits(other, model)
    with pytest.raises(BadFile, match="made for another UNet"):
        controlnet.check_fits(controlnet.read(file_of(tmp_path / "big.safetensors", "sd15")), model)


def test_one_fits_models_that_were_trained_to_repaint_too(tmp_path: Path) -> None:
    model = resolve.at(make_checkpoint.write_folder(tmp_path / "drawn", "sd15", tiny=True, channels=9))
    net = controlnet.read(make_checkpoint.write_controlnet_folder(tmp_path / "own", "sd15", tiny=True))
    controlnet.check_fits(net, model)
    assert net.component.config == config_of(
        model.components["unet"].config, conditioning_embedding_out_channels=[4, 8, 8, 16]
    )
