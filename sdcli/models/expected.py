"""Which tensors a config describes, and which of them a file lacks, whatever layout its names are in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sdcli.models import keys, text, unet, vae
from sdcli.models.families import original_places
from sdcli.models.headers import Tensor
from sdcli.models.kinds import UNET, VAE

Shape = tuple[int, ...]
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_NAMES = (
    (r"\bmid\.block_1\b", "mid_block.resnets.0"), (r"\bmid\.block_2\b", "mid_block.resnets.1"),
    (r"\bmid\.attn_1\b", "mid_block.attentions.0"), (r"\bnorm_out\b", "conv_norm_out"),
    (r"\b(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."), (r"\bnin_shortcut\b", "conv_shortcut"),
    (r"\bdown\.(\d+)\.downsample\b", r"down_blocks.\1.downsamplers.0"),
    (r"\bup\.(\d+)\.upsample\b", r"up_blocks.\1.upsamplers.0"),
    (r"(attentions\.0)\.norm\b", r"\1.group_norm"), (r"(attentions\.0)\.([qkv])\b", r"\1.to_\2"),
    (r"(attentions\.0)\.proj_out\b", r"\1.to_out.0"),
)  # fmt: skip
_OPEN_CLIP_NAMES = (
    ("transformer.resblocks.", "encoder.layers."), ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"), ("ln_final", "final_layer_norm"),
)  # fmt: skip


def lacking(component: str, config: Mapping[str, Any], held: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names, as diffusers has them, of what the config describes and the file lacks, or holds in another shape."""
    wanted = described(component, config)
    found = dict(_named(component, held, len(config.get("block_out_channels", ()))))
    missing = [name for name in wanted if name not in found]
    other = [name for name, shape in wanted.items() if shape and name in found and _other(found[name], shape)]
    return missing, other


def described(component: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Every weight with its shape, and every bias; () where only the name is known."""
    names: dict[str, Shape] = {}
    for leaf in _leaves(component, config):
        if leaf.parameters:
            name = leaf.name.removeprefix("text_model.")
            own = "positional_embedding" if leaf.type == "AttentionPooling" else "weight"
            names[f"{name}.{own}"] = leaf.weight_shape
            if leaf.bias:
                names[f"{name}.bias"] = ()
    return names


def _leaves(component: str, config: Mapping[str, Any]) -> Iterable[Any]:
    if component == "unet":
        return unet.analyse(config, height=64, width=64).leaves
    if component == "vae":
        side = vae.scale(config)
        ways = (way(config, height=side, width=side) for way in (vae.encode, vae.decode))
        return [leaf for way in ways for leaf in way.leaves]
    return text.analyse(config).leaves


def open_clip(component: str, names: Iterable[str]) -> str:
    """Where a file has this text encoder in OpenCLIP's layout: SDXL's second, SD2's only one; "" where it has not."""
    places = [place for place in original_places(component) if place.endswith(".model.")]
    return next((place for place in places if any(name.startswith(place) for name in names)), "")


def _other(held: Shape, wanted: Shape) -> bool:
    """A linear layer and a convolution of 1×1 hold the same numbers."""
    return _plain(held) != _plain(wanted)


def _plain(shape: Shape) -> Shape:
    kernel = shape[2:]
    return shape[:2] if kernel and all(side == 1 for side in kernel) else shape


# --- names in a file, as diffusers has them


def _named(component: str, held: Mapping[str, Tensor], levels: int) -> Iterator[tuple[str, Shape]]:
    if component == "unet":
        bare = {name.removeprefix(UNET): tensor for name, tensor in held.items()}
        renamed = keys.renamed(bare) if keys.is_original(bare) else {}
        yield from ((renamed.get(name, name), tensor.shape) for name, tensor in bare.items())
    elif component == "vae":
        yield from ((_of_vae(name.removeprefix(VAE), levels), tensor.shape) for name, tensor in held.items())
    elif prefix := open_clip(component, held):
        for name, tensor in held.items():
            if name.startswith(prefix):
                yield from _of_open_clip(name.removeprefix(prefix), tensor.shape)
    else:
        for name, tensor in held.items():
            start = next((prefix for prefix in original_places(component) if name.startswith(prefix)), "")
            yield name.removeprefix(start).removeprefix("text_model."), tensor.shape


def _of_vae(name: str, levels: int) -> str:
    original = name.startswith(("encoder.down.", "encoder.mid.", "decoder.up.", "decoder.mid.")) or "norm_out" in name
    if original and "conv_norm_out" not in name:
        for pattern, ours in _VAE_NAMES:
            name = re.sub(pattern, ours, name)
        # the original counts the decoder's levels from the picture, diffusers from the latents
        return re.sub(r"\bup_blocks\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", name)
    parts = name.split(".")
    if "attentions" in parts and len(parts) > 5:
        parts[4] = _OLD_ATTENTION.get(parts[4], parts[4])
    return ".".join(parts)


def _of_open_clip(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    if name == "text_projection":
        yield "text_projection.weight", shape[::-1]
    elif name == "positional_embedding":
        yield "embeddings.position_embedding.weight", shape
    elif name == "token_embedding.weight":
        yield "embeddings.token_embedding.weight", shape
    elif ".attn.in_proj_" in name:
        layer, _, end = name.removeprefix("transformer.resblocks.").partition(".attn.in_proj_")
        for part in "qkv":
            yield f"encoder.layers.{layer}.self_attn.{part}_proj.{end}", (shape[0] // 3, *shape[1:])
    else:
        for theirs, ours in _OPEN_CLIP_NAMES:
            name = name.replace(theirs, ours)
        yield name, shape
