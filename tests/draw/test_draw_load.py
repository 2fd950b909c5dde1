"""The loader against from_pretrained and from_single_file: the same tensors, without network or extra memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from draw_samples import FAMILIES

from scripts import make_checkpoint
from sdcli.draw import load, weights
from sdcli.errors import BadFile
from sdcli.models.model import Component


def component(folder: Path, *files: str) -> Component:
    """A component as the resolver makes it from a folder; `files` default to all weights in it."""
    found = sorted(str(path) for path in (folder.glob("*.safetensors") if not files else map(folder.joinpath, files)))
    config = json.loads((folder / "config.json").read_text())
    return Component(parameters=0, stored_bytes=0, stored_dtype="fp32", config=config, files=tuple(found))


def loaded(name: str, folder: Path, dtype: torch.dtype = torch.float32, *, channels_last: bool = False) -> Any:
    return load.load(name, component(folder), dtype=dtype, device="cpu", channels_last=channels_last).module


def same(own: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Parameters and every buffer, those that are in no file included."""
    mine, expected = dict(own.named_parameters()), dict(theirs.named_parameters())
    mine |= dict(own.named_buffers())
    expected |= dict(theirs.named_buffers())
    assert mine.keys() == expected.keys()
    for key, tensor in expected.items():
        assert mine[key].dtype == tensor.dtype, key
        assert torch.equal(mine[key], tensor), key


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_loads_as_from_pretrained_does(
    tiny_folders: dict[str, Path], pipelines: dict[str, Any], family: str
) -> None:
    for name in make_checkpoint.COMPONENTS[family]:
        same(loaded(name, tiny_folders[family] / name), getattr(pipelines[family], name))


@pytest.mark.parametrize("stored", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_stored_dtype_becomes_any_wanted_one_as_in_from_pretrained(
    tmp_path: Path, stored: str, dtype: torch.dtype
) -> None:
    from diffusers import AutoencoderKL

    make_checkpoint.write_folder(tmp_path, "sd15", tiny=True, dtype=stored)
    same(
        loaded("vae", tmp_path / "vae", dtype, channels_last=True),
        AutoencoderKL.from_pretrained(tmp_path / "vae", dtype=dtype, local_files_only=True),
    )


def test_shards_and_a_variant_load_like_one_file(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    folder = make_checkpoint.write_folder(tmp_path, "sdxl", tiny=True, variant="fp16", dtype="fp32", shards=3)
    for name in make_checkpoint.COMPONENTS["sdxl"]:
        assert len(component(folder / name).files) == 3
        same(loaded(name, folder / name), loaded(name, tiny_folders["sdxl"] / name))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_in_the_original_layout_equals_the_folder_and_diffusers_own_conversion(
    tmp_path: Path, tiny_folders: dict[str, Path], family: str
) -> None:
    import diffusers

    file = make_checkpoint.write_file(tmp_path / "model.safetensors", family, tiny=True)
    kind = diffusers.StableDiffusionXLPipeline if family == "sdxl" else diffusers.StableDiffusionPipeline
    theirs = kind.from_single_file(str(file), config=str(tiny_folders[family]), local_files_only=True)
    for name in make_checkpoint.COMPONENTS[family]:
        config = make_checkpoint.configs(family, tiny=True)[name]
        single = Component(parameters=0, stored_bytes=0, stored_dtype="fp32", config=config, files=(str(file),))
        own = load.load(name, single, dtype=torch.float32, device="cpu", channels_last=False).module
        same(own, loaded(name, tiny_folders[family] / name))
        same(own, getattr(theirs, name))


def few_words(family: str) -> dict[str, dict[str, Any]]:
    """Tiny configs whose encoders know few tokens, so that many files can be written."""
    found = {name: made for name, made in make_checkpoint.configs(family, tiny=True).items() if name != "scheduler"}
    return {name: made | ({"vocab_size": 200} if "text" in name else {}) for name, made in found.items()}


def of_file(name: str, config: dict[str, Any], file: Path, dtype: torch.dtype) -> Any:
    single = Component(parameters=0, stored_bytes=0, stored_dtype="fp32", config=config, files=(str(file),))
    return load.load(name, single, dtype=dtype, device="cpu", channels_last=False).module


def bits(module: torch.nn.Module) -> dict[str, bytes]:
    return {
        key: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for key, tensor in module.state_dict().items()
    }


def averaged(planned: dict[str, make_checkpoint.Planned]) -> dict[str, make_checkpoint.Planned]:
    """The averaged weights that training leaves beside a UNet: the same names without dots, other values."""
    flat = {f"model_ema.diffusion_model{name.replace('.', '')}": made for name, made in planned.items()}
    counters = {name: make_checkpoint.Planned((), lambda: torch.tensor(1.0)) for name in ("decay", "num_updates")}
    return flat | {f"model_ema.{name}": made for name, made in counters.items()}


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("stored", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_component_of_a_single_checkpoint_is_bit_equal_to_its_folder(
    tmp_path: Path, family: str, stored: str, ema: bool
) -> None:
    """UNet, VAE and text encoders, as they are stored, with and without averaged weights beside them."""
    configs = few_words(family)
    single: dict[str, make_checkpoint.Planned] = {}
    for name, config in configs.items():
        planned = make_checkpoint.planned(name, config, 4)
        make_checkpoint.write_safetensors(tmp_path / f"{name}.safetensors", planned, stored)
        single |= dict(make_checkpoint.original(family, name, config, planned))
    if ema:
        config = configs["unet"]
        other = make_checkpoint.planned("unet", config, 5)
        single |= averaged({make_checkpoint.original_unet_name(name, config): made for name, made in other.items()})
    file = tmp_path / "single.safetensors"
    make_checkpoint.write_safetensors(file, single, stored)
    dtype = make_checkpoint.DTYPES[stored][0]
    for name, config in configs.items():
        expected = bits(of_file(name, config, tmp_path / f"{name}.safetensors", dtype))
        assert expected and bits(of_file(name, config, file, dtype)) == expected, name


def test_a_merged_checkpoint_with_mixed_dtypes_and_unknown_tensors_loads(tmp_path: Path) -> None:
    """As merging tools write them: half a UNet beside a full VAE, schedules, whole numbers, CLIP without its prefix."""
    from safetensors.torch import save_file

    configs = few_words("sd15")
    held: dict[str, torch.Tensor] = {name: torch.linspace(0, 1, 1000) for name in ("betas", "sqrt_alphas_cumprod")}
    held |= {"model.diffusion_model_stray": torch.zeros(3), "lora_te_alpha": torch.zeros(())}
    dtypes = {"unet": torch.float16, "vae": torch.float32, "text_encoder": torch.float32}
    expected: dict[str, dict[str, torch.Tensor]] = {}
    for name, config in configs.items():
        planned = make_checkpoint.planned(name, config, 6)
        expected[name] = {
            key.removeprefix("text_model."): made.make().to(dtypes[name]) for key, made in planned.items()
        }
        for key, made in make_checkpoint.original("sd15", name, config, planned):
            held[key.replace(".text_model.", ".")] = made.make().to(dtypes[name]).contiguous()
    held["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    file = tmp_path / "merged.safetensors"
    save_file(held, file)
    for name, config in configs.items():
        found = {
            k.removeprefix("text_model."): t for k, t in of_file(name, config, file, torch.float32).state_dict().items()
        }
        assert all(torch.equal(found[key], tensor.float()) for key, tensor in expected[name].items()), name


def test_an_old_vae_with_its_old_attention_names_loads(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    """The VAE of stable-diffusion-v1-5 on the Hub is such a file."""
    from safetensors.torch import load_file, save_file

    new = load_file(tiny_folders["sd15"] / "vae" / "diffusion_pytorch_model.safetensors")
    old = {}
    for key, tensor in new.items():
        for ours, theirs in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value.")):
            key = key.replace(ours, theirs)
        old[key.replace(".to_out.0.", ".proj_attn.")] = tensor
    assert old.keys() != new.keys()
    (tmp_path / "config.json").write_text((tiny_folders["sd15"] / "vae" / "config.json").read_text())
    save_file(old, tmp_path / "old.safetensors")
    same(loaded("vae", tmp_path), loaded("vae", tiny_folders["sd15"] / "vae"))


def test_text_encoders_load_under_both_spellings_and_with_stray_position_ids(
    tmp_path: Path, tiny_folders: dict[str, Path]
) -> None:
    from safetensors.torch import load_file, save_file

    source = tiny_folders["sd15"] / "text_encoder"
    flat = {key.removeprefix("text_model."): t for key, t in load_file(source / "model.safetensors").items()}
    flat["embeddings.position_ids"] = torch.arange(77)[None]
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    save_file(flat, tmp_path / "model.safetensors")
    same(loaded("text_encoder", tmp_path), loaded("text_encoder", source))


def test_convolutions_lie_channels_last_only_when_asked(tiny_folders: dict[str, Path]) -> None:
    for channels_last in (False, True):
        vae = loaded("vae", tiny_folders["sd15"] / "vae", channels_last=channels_last)
        weight = vae.decoder.up_blocks[0].resnets[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        assert weight.is_contiguous() is not channels_last


def test_other_classes_are_refused(tiny_folders: dict[str, Path]) -> None:
    config = json.loads((tiny_folders["sd15"] / "unet" / "config.json").read_text())
    with pytest.raises(BadFile, match="only UNet2DConditionModel"):
        load.build("unet", config | {"_class_name": "UNet3DConditionModel"})
    with pytest.raises(BadFile, match="only CLIPTextModel "):
        load.build("text_encoder", {"architectures": ["T5EncoderModel "], "x": 1} | {"_class_name": None})
    with pytest.raises(BadFile, match="not supported"):
        load.build("safety_checker", {})


def test_a_missing_tensor_and_a_wrong_shape_are_named(tiny_folders: dict[str, Path]) -> None:
    folder = tiny_folders["sd15"] / "vae"
    whole = component(folder)
    config = dict(whole.config)
    broken = Component(parameters=0, stored_bytes=0, stored_dtype="fp32", files=whole.files,
                       config=config | {"latent_channels": 8})  # fmt: skip
    with pytest.raises(BadFile, match="has the shape"):
        load.load("vae", broken, dtype=torch.float32, device="cpu", channels_last=False)
    encoder = tiny_folders["sd15"] / "text_encoder" / "model.safetensors"
    other = Component(parameters=0, stored_bytes=0, stored_dtype="fp32", files=(str(encoder),), config=config)
    with pytest.raises(BadFile, match="no complete vae"):
        load.load("vae", other, dtype=torch.float32, device="cpu", channels_last=False)


def test_a_file_that_shrinks_after_its_header_was_read_is_a_bad_file(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    make_checkpoint.write_safetensors(file, {"a": make_checkpoint.Planned((3, 5), lambda: torch.ones(3, 5))}, "fp32")
    piece = weights.pieces([str(file)])["a"]
    file.write_bytes(file.read_bytes()[:-8])
    for dtype in (torch.float32, torch.bfloat16):  # read in place, and through the buffer
        with weights.Reader() as reader, pytest.raises(BadFile, match="ends too early"):
            reader.read(piece, torch.empty(3, 5, dtype=dtype))


def test_large_tensors_are_read_through_a_small_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(6000, dtype=torch.float32).reshape(100, 60)
    file = tmp_path / "a.safetensors"
    make_checkpoint.write_safetensors(file, {"a": make_checkpoint.Planned((100, 60), lambda: values)}, "fp32")
    monkeypatch.setattr(weights, "BUFFER", 1000)
    target = torch.empty((100, 60), dtype=torch.bfloat16)
    with weights.Reader() as reader:
        reader.read(weights.pieces([str(file)])["a"], target)
        assert len(reader._buffer) <= 1000
    assert torch.equal(target, values.to(torch.bfloat16))
