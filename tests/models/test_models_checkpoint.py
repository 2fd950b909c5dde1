"""A single file is a whole checkpoint, or is named for what it is."""

from __future__ import annotations

import struct
from pathlib import Path

import model_files as make
import pytest

from sdcli import data
from sdcli.errors import BadFile
from sdcli.models import checkpoint, headers
from sdcli.models.shipped import parameters_of


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "refiner"])
def test_a_checkpoint_is_a_model_of_its_family_with_the_shipped_configs(tmp_path: Path, family: str) -> None:
    path = make.file(tmp_path / "dream.safetensors", make.checkpoint(family))
    model = checkpoint.read(path)
    assert (model.name, model.kind, model.family, model.source) == ("dream", family, family, "file")
    predicts = "v_prediction" if family == "sd2" else "epsilon"  # of SD2's the file says nothing; most are 768-v
    assert (model.layout, model.prediction, model.zero_snr) == ("original", predicts, False)
    assert model.disk_bytes == path.stat().st_size
    assert model.scheduler == data.component_config(family, "scheduler")
    for name, component in model.components.items():
        assert component.config == data.component_config(family, name)
        assert component.files == (str(path),)
        assert component.stored_bytes == 2 * component.parameters


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_a_checkpoint_that_was_trained_to_repaint_is_its_familys_with_more_channels(
    tmp_path: Path, family: str
) -> None:
    model = checkpoint.read(make.file(tmp_path / "x.safetensors", make.checkpoint(family, channels=9)))
    assert (model.kind, model.family, model.sees_mask) == (f"{family}-inpainting", family, True)
    usual = data.component_config(family, "unet")
    assert model.components["unet"].config == {**usual, "in_channels": 9}
    assert model.components["unet"].parameters == parameters_of("unet", usual) + 5 * 320 * 9


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_so_is_one_that_was_trained_to_edit(tmp_path: Path, family: str) -> None:
    model = checkpoint.read(make.file(tmp_path / "x.safetensors", make.checkpoint(family, channels=8)))
    assert (model.kind, model.edits, model.sees_mask) == (f"{family}-edit", True, False)
    assert model.components["unet"].config == {**data.component_config(family, "unet"), "in_channels": 8}


def test_v_prediction_and_zero_snr_reach_the_scheduler(tmp_path: Path) -> None:
    shapes = make.checkpoint("sdxl") | {"v_pred": [], "ztsnr": []}
    model = checkpoint.read(make.file(tmp_path / "v.safetensors", shapes))
    assert (model.prediction, model.zero_snr) == ("v_prediction", True)
    assert model.scheduler["prediction_type"] == "v_prediction"
    assert model.scheduler["rescale_betas_zero_snr"] is True
    assert model.scheduler["timestep_spacing"] == "trailing"
    assert data.component_config("sdxl", "scheduler")["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("family", "part", "words"),
    [
        ("sd15", "cond_stage_model.", "has no text encoder"),
        ("sd15", make.VAE, "has no VAE"),
        ("sdxl", "conditioner.embedders.1.", "has no second text encoder"),
        ("refiner", "conditioner.embedders.0.", "has no second text encoder"),
    ],
)
def test_a_checkpoint_without_one_of_its_parts_says_which(tmp_path: Path, family: str, part: str, words: str) -> None:
    shapes = {name: shape for name, shape in make.checkpoint(family).items() if not name.startswith(part)}
    with pytest.raises(BadFile) as caught:
        checkpoint.read(make.file(tmp_path / "x.safetensors", shapes))
    assert words in caught.value.message


def test_a_pruned_variant_is_not_taken_for_the_full_model(tmp_path: Path) -> None:
    shapes = make.checkpoint("sdxl")
    shapes[f"{make.UNET}rest"] = [1_330_000_000]
    with pytest.raises(BadFile, match=r"a variant of SDXL .* its UNet has 1,33\d\.\d of 2,567\.5 million"):
        checkpoint.read(make.file(tmp_path / "small.safetensors", shapes))


@pytest.mark.parametrize(
    ("shapes", "words", "hint"),
    [
        (make.checkpoint("sd2", channels=5), "is Stable Diffusion 2 with depth, which", "-m sd15"),
        (make.checkpoint("sd15", channels=5), "which sdcli cannot draw with", "-m sd15"),
        ({"double_blocks.0.x": [1], "single_blocks.0.x": [1]}, "is FLUX", "-m sd15"),
        (
            {"a.attn2.to_k.lora_A.weight": [4, 2048]},
            "is a LoRA for SDXL, not a model",
            "the same command with -m sdxl --lora",
        ),
        ({"a.attn2.to_k.lora_A.weight": [4, 1024]}, "is a LoRA for Stable Diffusion 2,", "inspect-unet sd15 --lora"),
        ({"x.lora_A.weight": [4, 7]}, "is a LoRA, not a model", "inspect-unet sd15 --lora"),
        ({"emb_params": [4, 768]}, "is a textual-inversion embedding for Stable Diffusion 1.5", "-m sd15"),
        (make.original_vae(4, ""), "is a VAE with 4 latent channels", "-m sd15"),
        (make.original_unet(2048), "is a UNet alone for SDXL", "-m sd15"),
        ({"what.is.this": [3]}, "is of an unknown kind, which sdcli cannot draw with; it contains what.is.this", ""),
    ],
)
def test_what_cannot_be_drawn_with_is_named_with_its_base_and_a_way_out(
    tmp_path: Path, shapes: make.Shapes, words: str, hint: str
) -> None:
    with pytest.raises(BadFile) as caught:
        checkpoint.read(make.file(tmp_path / "x.safetensors", shapes))
    assert words in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint


def test_names_from_the_file_have_no_power_over_the_terminal(tmp_path: Path) -> None:
    path = make.file(tmp_path / "\x1b[31mred\u202e.safetensors", {"what": [3]})
    with pytest.raises(BadFile) as caught:
        checkpoint.read(path)
    assert "\\x1b[31mred\\u202e" in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_playgrounds_file_says_how_its_latents_are_scaled(tmp_path: Path, dtype: str) -> None:
    values = {"edm_mean": (-1.5, 1.75, -1.25, 2.5), "edm_std": (8.5, 6.0, 6.5, 5.25)}  # exact in every type
    path = tmp_path / "playground.safetensors"
    shapes = make.checkpoint("sdxl") | {name: [1, 4, 1, 1] for name in values}
    make.file(path, shapes, dtypes=dict.fromkeys(values, dtype))
    header = headers.read_header(path)
    with path.open("r+b") as file:
        for name, numbers in values.items():
            file.seek(header.data_start + header.tensors[name].begin)
            raw = [struct.pack("<e" if dtype == "F16" else "<f", number) for number in numbers]
            file.write(b"".join(one[2:] if dtype == "BF16" else one for one in raw))
    model = checkpoint.read(path)
    assert (model.kind, model.family, model.edm, model.prediction) == ("sdxl-edm", "sdxl", True, "epsilon")
    assert model.defaults == {"sampler": "EDM DPM++ 2M", "guidance": 3.0}
    assert model.scheduler["_class_name"] == "EDMDPMSolverMultistepScheduler"
    own = {"latents_mean": [*values["edm_mean"]], "latents_std": [*values["edm_std"]], "scaling_factor": 0.5}
    assert model.components["vae"].config == data.component_config("sdxl", "vae") | own
    assert "latents_mean" not in data.component_config("sdxl", "vae")


def test_playgrounds_file_with_senseless_numbers_is_refused(tmp_path: Path) -> None:
    shapes = make.checkpoint("sdxl") | {"edm_mean": [4], "edm_std": [4]}
    with pytest.raises(BadFile, match="latents_std should be"):
        checkpoint.read(make.file(tmp_path / "zeros.safetensors", shapes))
    with pytest.raises(BadFile, match="edm_std should be four numbers"):
        checkpoint.read(make.file(tmp_path / "three.safetensors", shapes | {"edm_std": [3]}))
