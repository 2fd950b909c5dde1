"""Model files as tests need them: true headers, data that is a hole on the disk, so that gigabytes cost nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdcli import data
from sdcli.models.shipped import parameters_of

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "F8_E4M3": 1}
Shapes = Mapping[str, list[int]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
_CONTEXT = {"sd15": 768, "sd2": 1024, "refiner": 1280, "sdxl": 2048}
_TEXT = {
    "sd15": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "refiner": {"text_encoder_2": "conditioner.embedders.0.model."},
}


def file(
    path: Path, shapes: Shapes, *, dtype: str = "F16", dtypes: Mapping[str, str] = {}, metadata: Mapping[str, str] = {}
) -> Path:
    """A .safetensors file with these tensors."""
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, shape in shapes.items():
        kind = dtypes.get(name, dtype)
        size = WIDTHS[kind]
        for side in shape:
            size *= side
        table[name] = {"dtype": kind, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(table).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + position)
    return path


def original_unet(width: int, *, channels: int = 4, prefix: str = UNET) -> dict[str, list[int]]:
    return {
        f"{prefix}input_blocks.0.0.weight": [320, channels, 3, 3],
        f"{prefix}time_embed.0.weight": [1280, 320],
        f"{prefix}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, width],
    }


def original_vae(channels: int = 4, prefix: str = VAE) -> dict[str, list[int]]:
    return {
        f"{prefix}decoder.conv_in.weight": [512, channels, 3, 3],
        f"{prefix}encoder.down.0.block.0.conv1.weight": [128, 128, 3, 3],
    }


def checkpoint(family: str, **unet: Any) -> dict[str, list[int]]:
    """A whole checkpoint in the original layout: identifying names, and one tensor for the rest of each part."""
    parts = {"unet": original_unet(_CONTEXT[family], **unet), "vae": original_vae()}
    rest = {"unet": f"{UNET}rest", "vae": f"{VAE}rest"}
    for name, prefix in _TEXT[family].items():
        parts[name], rest[name] = {}, f"{prefix}rest"
    tensors: dict[str, list[int]] = {}
    for name, shapes in parts.items():
        config = data.component_config(family, name)
        usual = parameters_of(name, {**config, **({"in_channels": unet.get("channels", 4)} if name == "unet" else {})})
        tensors |= shapes | {rest[name]: [usual - count(shapes)]}
    return tensors


def count(shapes: Shapes) -> int:
    total = 0
    for shape in shapes.values():
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


def stem(part: str) -> str:
    return "diffusion_pytorch_model" if part in ("unet", "vae") else "model"


def parts(family: str) -> tuple[str, ...]:
    return ("unet", "vae", *_TEXT[family])


def folder(
    path: Path,
    family: str = "sd15",
    *,
    variant: str = "",
    dtype: str = "F32",
    configs: Mapping[str, Any] = {},
    **index: Any,
) -> Path:
    """A diffusers folder of full size; `index` and `configs` change its JSON."""
    path.mkdir(parents=True, exist_ok=True)
    table = json.loads((data.component_folder(family) / "model_index.json").read_text())
    write_json(path / "model_index.json", {**table, **index})
    for part in parts(family):
        config = {**data.component_config(family, part), **configs.get(part, {})}
        channels = {name: config[name] for name in ("in_channels",) if part == "unet"}
        whole = parameters_of(part, {**data.component_config(family, part), **channels})
        file(path / part / f"{stem(part)}{variant}.safetensors", {"all": [whole]}, dtype=dtype)
        write_json(path / part / "config.json", config)
    scheduler = {**data.component_config(family, "scheduler"), **configs.get("scheduler", {})}
    write_json(path / "scheduler" / "scheduler_config.json", scheduler)
    return path


def snapshot(cache: Path, repository: str, commit: str, family: str = "sd15", *, branch: str = "main") -> Path:
    """A repository as huggingface_hub keeps it."""
    repository_folder = cache / f"models--{repository.replace('/', '--')}"
    if branch:
        (repository_folder / "refs").mkdir(parents=True, exist_ok=True)
        (repository_folder / "refs" / branch).write_text(commit)
    return folder(repository_folder / "snapshots" / commit, family)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
