"""Random Stable Diffusion weights, full size or tiny, as diffusers folders or single files in the original layout;
ControlNets and T2I-Adapters; IP-Adapters with their image encoders; upscalers.

They draw noise, but load, run and take memory as real ones do; equal seeds give equal weights in every form.
Written tensor by tensor, so that a full-size SDXL needs little RAM. Without a seed all weights are zero and the files
have holes in their place: made at once, and they take no disk where the file system knows holes.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdcli import data
from sdcli.models import control_walk
from sdcli.models.families import find
from sdcli.models.reference import cross_attentions

DTYPES = {"fp32": (torch.float32, "F32"), "fp16": (torch.float16, "F16"), "bf16": (torch.bfloat16, "BF16")}
COMPONENTS = {
    "sd15": ("unet", "text_encoder", "vae"),
    "sd2": ("unet", "text_encoder", "vae"),
    "sdxl": ("unet", "text_encoder", "text_encoder_2", "vae"),
    "refiner": ("unet", "text_encoder_2", "vae"),
}
TINY_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
TINY: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": {
            "block_out_channels": [32, 64, 64, 64],
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "cross_attention_dim": 32,
            "sample_size": 8,
        },
        "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "sample_size": 64},
        "text_encoder": TINY_CLIP,
    },
    "sd2": {
        "unet": {
            "block_out_channels": [32, 64, 64, 64],
            "layers_per_block": 1,
            "attention_head_dim": [2, 4, 4, 4],
            "cross_attention_dim": 32,
            "sample_size": 8,
        },
        "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "sample_size": 64},
        "text_encoder": TINY_CLIP,
    },
    "sdxl": {
        "unet": {
            "block_out_channels": [32, 64, 64],
            "layers_per_block": 1,
            "attention_head_dim": [2, 4, 4],
            "transformer_layers_per_block": [1, 1, 2],
            "cross_attention_dim": 96,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64 + 6 * 8,
            "sample_size": 8,
        },
        "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "sample_size": 64},
        "text_encoder": TINY_CLIP,
        # not as wide as the first: in a single file the two encoders are told apart by width alone
        "text_encoder_2": TINY_CLIP | {"hidden_size": 64, "intermediate_size": 128, "projection_dim": 64},
    },
    "refiner": {
        "unet": {
            "block_out_channels": [32, 64, 64, 64],
            "layers_per_block": 1,
            "attention_head_dim": [2, 4, 4, 4],
            "transformer_layers_per_block": 2,
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64 + 5 * 8,
            "sample_size": 8,
        },
        "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "sample_size": 64},
        "text_encoder_2": TINY_CLIP | {"hidden_size": 64, "intermediate_size": 128, "projection_dim": 64},
    },
}


@dataclass(frozen=True)
class Planned:
    """One tensor of a file to be written: its shape, and how its values are made when its turn comes, if at all."""

    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor] | None


def configs(family: str, *, tiny: bool = False, channels: int = 4) -> dict[str, dict[str, Any]]:
    """Every component's config, `scheduler` included; the tiny ones keep the real topology. `channels` go into the
    UNet: 9 of one that repaints."""
    result = {name: dict(data.component_config(family, name)) for name in (*COMPONENTS[family], "scheduler")}
    if tiny:
        for name, changes in TINY[family].items():
            result[name] |= changes
    result["unet"]["in_channels"] = channels
    return copy.deepcopy(result)


def shapes(component: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as they stand in files on the Hub: CLIP's with the `text_model.` in front."""
    from diffusers import AutoencoderKL, ControlNetModel, ControlNetUnionModel, T2IAdapter, UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    from sdcli.draw.upscale import Upscaler

    with torch.device("meta"):
        if component == "unet":
            module = UNet2DConditionModel.from_config(config)
        elif component == "vae":
            module = AutoencoderKL.from_config(config)
        elif component == "controlnet":
            module = ControlNetModel.from_config(config)
        elif component == "image_encoder":
            module = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(config))
        elif component == "controlnet_union":
            module = ControlNetUnionModel.from_config(config)
        elif component == "t2i_adapter":
            module = T2IAdapter.from_config(config)
        elif component == "upscaler":
            module = Upscaler.from_config(config)
        else:
            kind = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
            module = kind(CLIPTextConfig.from_dict(config))
    named = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if component == "text_encoder":
        named = {name if name.startswith("text_model.") else f"text_model.{name}": s for name, s in named.items()}
    return named


def values(component: str, name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """fp32 values whose products stay of order one, so that half precisions neither overflow nor vanish."""
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(f"{seed} {component} {name}".encode()))
    if name.endswith("bias"):
        return torch.randn(shape, generator=generator).mul_(0.02)
    if len(shape) == 1:
        return torch.randn(shape, generator=generator).mul_(0.1).add_(1.0)
    if "embedding" in name and component.startswith("text_encoder"):
        return torch.randn(shape, generator=generator).mul_(0.1)
    fan_in = shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1)
    return torch.randn(shape, generator=generator).mul_(fan_in**-0.5)


def planned(component: str, config: dict[str, Any], seed: int | None) -> dict[str, Planned]:
    if seed is None:
        return {name: Planned(shape, None) for name, shape in shapes(component, config).items()}
    return {
        name: Planned(shape, lambda name=name, shape=shape: values(component, name, shape, seed))
        for name, shape in shapes(component, config).items()
    }


# Writing


def write_safetensors(path: Path, tensors: dict[str, Planned], dtype: str) -> None:
    """The safetensors format itself: 8 bytes of length, a JSON header, then the values one after the other."""
    torch_dtype, stored_dtype = DTYPES[dtype]
    size = torch.empty((), dtype=torch_dtype).element_size()
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        length = size * torch.Size(tensor.shape).numel()
        header[name] = {"dtype": stored_dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + length]}
        offset += length
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            if tensor.make is None:
                continue
            made = tensor.make().to(torch_dtype).contiguous()
            assert tuple(made.shape) == tensor.shape
            file.write(memoryview(made.reshape(-1).view(torch.uint8).numpy()))
        file.truncate(8 + len(encoded) + offset)


def write_sharded(folder: Path, stem: str, suffix: str, tensors: dict[str, Planned], dtype: str, shards: int) -> None:
    """`shards` files and the index that diffusers and transformers read."""
    middle = f".{suffix}" if suffix else ""
    names = list(tensors)
    per_shard = -(-len(names) // shards)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        part = {name: tensors[name] for name in names[number * per_shard : (number + 1) * per_shard]}
        file = f"{stem}{middle}-{number + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / file, part, dtype)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    name = f"{stem}.safetensors.index{middle}.json"
    (folder / name).write_text(json.dumps(index), encoding="utf-8")


def write_folder(
    folder: Path,
    family: str,
    *,
    tiny: bool = False,
    dtype: str = "fp32",
    variant: str = "",
    shards: int = 1,
    seed: int | None = 0,
    scheduler: dict[str, Any] | None = None,
    channels: int = 4,
) -> Path:
    """A diffusers folder that diffusers itself can load. `variant` goes into the weight files' names."""
    shipped = data.component_folder(family)
    for name, config in configs(family, tiny=tiny, channels=channels).items():
        if name == "scheduler":
            _write_json(folder / name / "scheduler_config.json", config | (scheduler or {}))
            continue
        _write_json(folder / name / "config.json", config)
        stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
        tensors = planned(name, config, seed)
        if shards > 1:
            write_sharded(folder / name, stem, variant, tensors, dtype, shards)
        else:
            file = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
            write_safetensors(folder / name / file, tensors, dtype)
    for tokenizer in shipped.glob("tokenizer*"):
        shutil.copytree(tokenizer, folder / tokenizer.name, dirs_exist_ok=True)
        shutil.copytree(data.component_folder("clip"), folder / tokenizer.name, dirs_exist_ok=True)
    index = json.loads((shipped / "model_index.json").read_text(encoding="utf-8"))
    if channels != 4:
        index["_class_name"] = {8: find(family).editing, 9: find(family).repainting}[channels]
    _write_json(folder / "model_index.json", index)
    return folder


def write_file(
    path: Path, family: str, *, tiny: bool = False, dtype: str = "fp32", seed: int = 0, channels: int = 4
) -> Path:
    """One checkpoint in the layout of the original Stable Diffusion code."""
    tensors: dict[str, Planned] = {}
    for name, config in configs(family, tiny=tiny, channels=channels).items():
        if name != "scheduler":
            tensors |= dict(original(family, name, config, planned(name, config, seed)))
    write_safetensors(path, tensors, dtype)
    return path


# ControlNets


def controlnet_config(family: str, *, tiny: bool = False, **changes: Any) -> dict[str, Any]:
    """Of one for the family's models; the tiny ones embed their image in few channels too."""
    widths = {"conditioning_embedding_out_channels": [4, 8, 8, 16]} if tiny else {}
    return control_walk.config_of(configs(family, tiny=tiny)["unet"], **widths, **changes)


def write_controlnet_folder(
    folder: Path, family: str, *, tiny: bool = False, dtype: str = "fp32", variant: str = "", seed: int | None = 0,
    **changes: Any,
) -> Path:  # fmt: skip
    """A diffusers folder. Its zero convolutions are as random as the rest, else it would change nothing. `changes` are
    to its config."""
    return _write_net(folder, "controlnet", controlnet_config(family, tiny=tiny, **changes), dtype, variant, seed)


def _write_net(
    folder: Path, component: str, config: dict[str, Any], dtype: str, variant: str, seed: int | None
) -> Path:  # fmt: skip
    _write_json(folder / "config.json", config)
    name = f"diffusion_pytorch_model.{variant}.safetensors" if variant else "diffusion_pytorch_model.safetensors"
    write_safetensors(folder / name, planned(component, config, seed), dtype)
    return folder


def write_controlnet_file(
    path: Path, family: str, *, layout: str, tiny: bool = False, dtype: str = "fp32", seed: int | None = 0,
    **changes: Any,
) -> Path:  # fmt: skip
    """One file, as `diffusers` names its tensors, as the `original` code does, or so but `bare` of its prefix."""
    config = controlnet_config(family, tiny=tiny, **changes)
    tensors = planned("controlnet", config, seed)
    if layout != "diffusers":
        prefix = "control_model." if layout == "original" else ""
        tensors = {prefix + original_controlnet_name(name, config): tensor for name, tensor in tensors.items()}
    write_safetensors(path, tensors, dtype)
    return path


def union_config(*, tiny: bool = False, **changes: Any) -> dict[str, Any]:
    """Of a ControlNet Union for SDXL."""
    widths = {"conditioning_embedding_out_channels": [4, 8, 8, 16]} if tiny else {}
    return control_walk.union_config_of(configs("sdxl", tiny=tiny)["unet"], **widths, **changes)


def write_union_folder(
    folder: Path, *, tiny: bool = False, dtype: str = "fp32", variant: str = "", seed: int | None = 0, **changes: Any
) -> Path:
    return _write_net(folder, "controlnet_union", union_config(tiny=tiny, **changes), dtype, variant, seed)


def write_union_file(path: Path, *, dtype: str = "fp32", seed: int | None = 0, **about: Any) -> Path:
    """One file. `about`: what union_config takes."""
    write_safetensors(path, planned("controlnet_union", union_config(**about), seed), dtype)
    return path


def original_controlnet_name(name: str, config: dict[str, Any]) -> str:
    stem, kind = name.rsplit(".", 1)
    part, _, rest = stem.partition(".")
    if part == "controlnet_down_blocks":
        return f"zero_convs.{rest}.0.{kind}"
    if part == "controlnet_mid_block":
        return f"middle_block_out.0.{kind}"
    if part != "controlnet_cond_embedding":
        return original_unet_name(name, config)
    last = 2 * len(config["conditioning_embedding_out_channels"]) - 1  # convolutions, an activation after each
    number = {"conv_in": 0, "conv_out": last}.get(rest)
    return f"input_hint_block.{2 * (1 + int(rest.split('.')[1]) if number is None else number)}.{kind}"


# T2I-Adapters


def t2i_config(family: str, *, tiny: bool = False, light: bool = False, channels: int = 3) -> dict[str, Any]:
    """Of one for the family's models; `channels` of its image."""
    widths = configs(family, tiny=tiny)["unet"]["block_out_channels"]
    large = family == "sdxl"
    kind = "full_adapter_xl" if large else "light_adapter" if light else "full_adapter"
    return {
        "_class_name": "T2IAdapter", "adapter_type": kind, "in_channels": channels,
        "channels": [*widths, widths[-1]] if large else widths[:-1] if light else widths,
        "num_res_blocks": 4 if light else 2, "downscale_factor": 16 if large else 8,
    }  # fmt: skip


def write_t2i_folder(
    folder: Path, family: str, *, dtype: str = "fp32", variant: str = "", seed: int | None = 0, **about: Any
) -> Path:
    """A diffusers folder. `about`: what t2i_config takes."""
    return _write_net(folder, "t2i_adapter", t2i_config(family, **about), dtype, variant, seed)


def write_t2i_file(
    path: Path, family: str, *, layout: str, dtype: str = "fp32", seed: int | None = 0, **about: Any
) -> Path:
    """One file, as `diffusers` names its tensors or as the `original` code does."""
    tensors = planned("t2i_adapter", t2i_config(family, **about), seed)
    if layout == "original":
        tensors = {original_t2i_name(name, about.get("light", False)): tensor for name, tensor in tensors.items()}
    write_safetensors(path, tensors, dtype)
    return path


def original_t2i_name(name: str, light: bool) -> str:
    name = name.removeprefix("adapter.")
    if light:
        return name.replace(".resnets.", ".body.")
    parts = name.split(".")
    if parts[0] != "body":
        return name
    level, inside = int(parts[1]), parts[2:]
    layer, rest = (0, inside) if inside[0] == "in_conv" else (int(inside[1]), inside[2:])
    return ".".join(["body", str(2 * level + layer), *rest])


# IP-Adapters

VISION: dict[str, dict[str, Any]] = {
    "ViT-H": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1024},
    "ViT-bigG": {"hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "projection_dim": 1280},
    "tiny": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "projection_dim": 24, "image_size": 32,
        "patch_size": 8, "num_attention_heads": 4,
    },
}  # fmt: skip


def image_encoder_config(name: str) -> dict[str, Any]:
    usual = {"image_size": 224, "patch_size": 14, "num_attention_heads": 16, "hidden_act": "gelu", "num_channels": 3}
    return {"architectures": ["CLIPVisionModelWithProjection"], "layer_norm_eps": 1e-5, **usual, **VISION[name]}


def write_image_encoder(folder: Path, name: str = "tiny", *, dtype: str = "fp32", seed: int | None = 0) -> Path:
    config = image_encoder_config(name)
    _write_json(folder / "config.json", config)
    write_safetensors(folder / "model.safetensors", planned("image_encoder", config, seed), dtype)
    return folder


def write_ip_adapter(
    path: Path, family: str, kind: str = "plain", *, encoder: str = "ViT-H", tiny: bool = False, dtype: str = "fp32",
    seed: int | None = 0,
) -> Path:  # fmt: skip
    """One file for the family's models and an encoder: `plain`, `plus`, or `full` as the one for whole faces is."""
    tensors = {
        name: Planned(
            shape,
            None if seed is None else lambda name=name, shape=shape: values("ip_adapter", name, shape, seed),
        )
        for name, shape in _ip_adapter_shapes(family, kind, "tiny" if tiny else encoder, tiny).items()
    }
    write_safetensors(path, tensors, dtype)
    return path


def _ip_adapter_shapes(family: str, kind: str, encoder: str, tiny: bool) -> dict[str, tuple[int, ...]]:
    unet, seen = configs(family, tiny=tiny)["unet"], image_encoder_config(encoder)
    width = unet["cross_attention_dim"]
    projection = {
        "plain": lambda: _plain(seen["projection_dim"], width),
        "plus": lambda: _plus(seen["hidden_size"], width, 32 if tiny else 1280 if family == "sdxl" else 768),
        "full": lambda: _full(seen["hidden_size"], width),
    }[kind]()
    shapes = {f"image_proj.{name}": shape for name, shape in projection.items()}
    for number, (_, outward) in enumerate(cross_attentions(unet)):
        for part in "kv":
            shapes[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = (outward, width)
    return shapes


def _plain(inward: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        "proj.weight": (4 * width, inward), "proj.bias": (4 * width,), "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip


def _full(inward: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        "proj.0.weight": (inward, inward), "proj.0.bias": (inward,), "proj.2.weight": (width, inward),
        "proj.2.bias": (width,), "proj.3.weight": (width,), "proj.3.bias": (width,),
    }  # fmt: skip


def _plus(inward: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    inner = max(64, hidden)
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, 16, hidden), "proj_in.weight": (hidden, inward), "proj_in.bias": (hidden,),
        "proj_out.weight": (width, hidden), "proj_out.bias": (width,), "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }  # fmt: skip
    for layer in range(4):
        start = f"layers.{layer}."
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"{start}{norm}.weight": (hidden,), f"{start}{norm}.bias": (hidden,)}
        shapes |= {
            f"{start}0.to_q.weight": (inner, hidden), f"{start}0.to_kv.weight": (2 * inner, hidden),
            f"{start}0.to_out.weight": (hidden, inner), f"{start}1.1.weight": (4 * hidden, hidden),
            f"{start}1.3.weight": (hidden, 4 * hidden),
        }  # fmt: skip
    return shapes


# Upscalers

RRDB = {
    "architecture": "RRDBNet", "scale": 4, "features": 64, "growth": 32, "blocks": 23, "doublings": 2, "unshuffle": 1,
}  # fmt: skip
COMPACT = {"architecture": "SRVGGNetCompact", "scale": 4, "features": 64, "convolutions": 32}
TINY_RRDB, TINY_COMPACT = {"features": 8, "growth": 4, "blocks": 1}, {"features": 8, "convolutions": 2}


def upscaler_config(*, compact: bool = False, tiny: bool = False, **changes: Any) -> dict[str, Any]:
    usual = COMPACT | (TINY_COMPACT if tiny else {}) if compact else RRDB | (TINY_RRDB if tiny else {})
    return usual | changes


def write_upscaler(
    path: Path, *, layout: str = "real-esrgan", prefix: str = "", compact: bool = False, tiny: bool = False,
    dtype: str = "fp32", seed: int | None = 0, **changes: Any,
) -> Path:  # fmt: skip
    """One file, its tensors named as by Real-ESRGAN, by ESRGAN's second code (`esrgan`) or its first
    (`numbered`)."""
    config = upscaler_config(compact=compact, tiny=tiny, **changes)
    tensors = planned("upscaler", config, seed)
    named = {prefix + upscaler_name(name, layout, config): tensor for name, tensor in tensors.items()}
    write_safetensors(path, named, dtype)
    return path


def upscaler_name(name: str, layout: str, config: dict[str, Any]) -> str:
    if layout == "real-esrgan":
        return name
    stem, kind = name.rsplit(".", 1)
    part, *inside = stem.split(".")
    if layout == "esrgan":
        named = {"body": "RRDB_trunk", "conv_body": "trunk_conv", "conv_hr": "HRconv"}
        named |= {f"conv_up{step}": f"upconv{step}" for step in range(1, 4)}
        return ".".join([named.get(part, part), *(word.replace("rdb", "RDB") for word in inside), kind])
    doublings = config["doublings"]
    if part == "body":
        return f"model.1.sub.{inside[0]}.{inside[1].upper()}.{inside[2]}.0.{kind}"
    numbers = {"conv_first": "0", "conv_body": f"1.sub.{config['blocks']}"}
    numbers |= {f"conv_up{step}": f"{3 * step}" for step in range(1, doublings + 1)}
    numbers |= {"conv_hr": f"{2 + 3 * doublings}", "conv_last": f"{4 + 3 * doublings}"}
    return f"model.{numbers[part]}.{kind}"


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# The original layout


def original(
    family: str, component: str, config: dict[str, Any], tensors: dict[str, Planned]
) -> Iterator[tuple[str, Planned]]:
    if component == "unet":
        for name, tensor in tensors.items():
            yield "model.diffusion_model." + original_unet_name(name, config), tensor
    elif component == "vae":
        for name, tensor in tensors.items():
            yield (
                "first_stage_model." + original_vae_name(name, len(config["block_out_channels"])),
                _as_conv(name, tensor),
            )
    elif component == "text_encoder_2":
        prefix = next(one.original for one in find(family).encoders if one.part == component)
        yield from _open_clip(tensors, prefix)
    elif family == "sd2":
        yield from _open_clip(tensors, "cond_stage_model.model.")
        width = config["hidden_size"]  # a projection that nothing reads
        yield "cond_stage_model.model.text_projection", Planned((width, width), lambda: torch.eye(width))
    else:
        prefix = "cond_stage_model." if family == "sd15" else "conditioner.embedders.0."
        for name, tensor in tensors.items():
            yield f"{prefix}transformer.{name}", tensor
        yield f"{prefix}transformer.text_model.embeddings.position_ids", _position_ids()


def original_unet_name(name: str, config: dict[str, Any]) -> str:
    flat = {
        "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0", "conv_out": "out.2",
    }  # fmt: skip
    stem, kind = name.rsplit(".", 1)
    if stem in flat:
        return f"{flat[stem]}.{kind}"
    layers = config["layers_per_block"] + 1
    parts = name.split(".")
    if parts[0] == "mid_block":
        place = {"resnets0": 0, "attentions0": 1, "resnets1": 2}[parts[1] + parts[2]]
        return f"middle_block.{place}." + _inside_resnet(".".join(parts[3:]), parts[1])
    block, part, number, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
    if part == "downsamplers":
        return f"input_blocks.{(block + 1) * layers}.0.op.{kind}"
    if part == "upsamplers":
        attends = "CrossAttn" in config["up_block_types"][block]
        return f"output_blocks.{(block + 1) * layers - 1}.{2 if attends else 1}.conv.{kind}"
    first = 1 if parts[0] == "down_blocks" else 0
    side = "input_blocks" if first else "output_blocks"
    place = first + block * layers + number
    return f"{side}.{place}.{1 if part == 'attentions' else 0}." + _inside_resnet(rest, part)


def _inside_resnet(name: str, part: str) -> str:
    if part != "resnets":
        return name
    names = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    stem, kind = name.rsplit(".", 1)
    return f"{names[stem]}.{kind}"


def original_vae_name(name: str, levels: int) -> str:
    parts = name.split(".")
    if "up_blocks" in parts:
        parts[2] = str(levels - 1 - int(parts[2]))
    joined = ".".join(parts)
    for ours, theirs in (
        ("conv_norm_out", "norm_out"), ("down_blocks", "down"), ("up_blocks", "up"), ("conv_shortcut", "nin_shortcut"),
        ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"), ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
        ("to_out.0", "proj_out"), ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("resnets", "block"),
    ):  # fmt: skip
        joined = joined.replace(ours, theirs)
    return joined


def _as_conv(name: str, tensor: Planned) -> Planned:
    """The original VAE attends with 1×1 convolutions."""
    if ".attentions." not in name or len(tensor.shape) != 2:
        return tensor
    return Planned((*tensor.shape, 1, 1), lambda: tensor.make()[:, :, None, None])


def _open_clip(tensors: dict[str, Planned], prefix: str) -> Iterator[tuple[str, Planned]]:
    flat = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    for name, tensor in tensors.items():
        if name in flat:
            yield prefix + flat[name], tensor
        elif name == "text_projection.weight":
            yield prefix + "text_projection", Planned(tensor.shape[::-1], lambda made=tensor.make: made().T)
        elif ".q_proj." in name:
            three = [tensors[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            layer, kind = name.replace("text_model.encoder.layers.", "").split(".self_attn.q_proj.")
            shape = (3 * tensor.shape[0], *tensor.shape[1:])
            joined = Planned(shape, lambda three=three: torch.cat([part.make() for part in three]))
            yield f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{kind}", joined
        elif ".k_proj." not in name and ".v_proj." not in name:
            renamed = name.replace("text_model.encoder.layers.", "transformer.resblocks.")
            for ours, theirs in (
                ("self_attn", "attn"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ):  # fmt: skip
                renamed = renamed.replace(ours, theirs)
            yield prefix + renamed, tensor
    yield prefix + "logit_scale", Planned((), lambda: torch.tensor(4.6052))


def _position_ids() -> Planned:
    """Old checkpoints carry these; whoever reads them must not trip over them."""
    return Planned((1, 77), lambda: torch.arange(77, dtype=torch.float32)[None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=sorted(COMPONENTS))
    parser.add_argument("output", type=Path, help="a folder, or a .safetensors file with --single-file")
    parser.add_argument("--single-file", action="store_true", help="the original layout in one file")
    parser.add_argument("--controlnet", action="store_true", help="a ControlNet for the family's models instead of one")
    parser.add_argument(
        "--ip-adapter", choices=("plain", "plus", "full"), help="a folder with one, and its image encoder, instead"
    )
    parser.add_argument("--upscaler", action="store_true", help="an ESRGAN upscaler, whatever the family")
    parser.add_argument("--tiny", action="store_true", help="the same topology, a few channels wide")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp16")
    parser.add_argument("--variant", default="", help="as in diffusion_pytorch_model.fp16.safetensors")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels", type=int, default=4, help="of the UNet's input: 9 to repaint, 8 to edit")
    asked = parser.parse_args()
    if asked.ip_adapter:
        encoder = "ViT-bigG" if asked.family == "sdxl" and asked.ip_adapter == "plain" else "ViT-H"
        write_image_encoder(
            asked.output / "image_encoder", "tiny" if asked.tiny else encoder, dtype=asked.dtype, seed=asked.seed
        )
        write_ip_adapter(
            asked.output / f"ip-adapter-{asked.ip_adapter}_{asked.family}.safetensors", asked.family, asked.ip_adapter,
            encoder=encoder, tiny=asked.tiny, dtype=asked.dtype, seed=asked.seed,
        )  # fmt: skip
    elif asked.upscaler:
        write_upscaler(asked.output, tiny=asked.tiny, dtype=asked.dtype, seed=asked.seed)
    elif asked.controlnet and asked.single_file:
        write_controlnet_file(
            asked.output, asked.family, layout="original", tiny=asked.tiny, dtype=asked.dtype, seed=asked.seed
        )
    elif asked.controlnet:
        write_controlnet_folder(
            asked.output, asked.family, tiny=asked.tiny, dtype=asked.dtype, variant=asked.variant, seed=asked.seed
        )
    elif asked.single_file:
        write_file(
            asked.output, asked.family, tiny=asked.tiny, dtype=asked.dtype, seed=asked.seed, channels=asked.channels
        )
    else:
        write_folder(
            asked.output, asked.family, tiny=asked.tiny, dtype=asked.dtype, variant=asked.variant,
            shards=asked.shards, seed=asked.seed, channels=asked.channels,
        )  # fmt: skip
    print(asked.output)


if __name__ == "__main__":
    main()
