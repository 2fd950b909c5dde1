"""Safetensors files of any shapes, written sparse: a header, and nothing but a hole where the weights would be."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from sdcli.inspect import guess, source
from sdcli.inspect.facts import Source
from sdcli.models import keys

WIDTHS = {"F16": 2, "BF16": 2, "F32": 4}


def write(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16", values: bytes = b"") -> Path:
    """`values` are the first bytes of the data; the rest is zero."""
    table, offset = {}, 0
    for name, shape in shapes.items():
        size = WIDTHS[dtype]
        for side in shape:
            size *= side
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + values)
        file.truncate(8 + len(header) + offset)
    return path


def source_of(model: object) -> Source:
    result = source.find(str(model))
    assert isinstance(result, Source)
    return result


def original(
    shapes: Mapping[str, tuple[int, ...]], prefix: str = "model.diffusion_model."
) -> dict[str, tuple[int, ...]]:
    """The same tensors named as original checkpoints name them."""
    stems = keys.original_names(dict.fromkeys(name.rpartition(".")[0] for name in shapes))
    return {f"{prefix}{stems[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": s for name, s in shapes.items()}


def lora(family: str, rank: int, *, layout: str = "kohya") -> dict[str, tuple[int, ...]]:
    """Tensors of a LoRA on every attention projection of a family."""
    shapes = guess.expected(family)
    stems = {name.rpartition(".")[0] for name in shapes if name.endswith(".weight")}
    names = keys.original_names(sorted(stems)) if family == "sdxl" else {stem: stem for stem in stems}
    tensors: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if name == module or len(shape) != 2 or ".attn" not in name:
            continue
        if layout == "kohya":
            module = "lora_unet_" + names[module].replace(".", "_")
            tensors[f"{module}.alpha"] = (1,)
            down, up = "lora_down", "lora_up"
        else:
            module, down, up = f"unet.{module}", "lora_A", "lora_B"
        tensors[f"{module}.{down}.weight"] = (rank, shape[1])
        tensors[f"{module}.{up}.weight"] = (shape[0], rank)
    return tensors
