"""Which tensors a config describes, and which of them a file lacks, in any layout of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sdcli.models import keys, text, unet, vae
from sdcli.models.headers import Tensor
from sdcli.models.keys import Shape
from sdcli.models.trace import Leaf


def lacking(component: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names, as diffusers has them, of what the config describes and `tensors` lack, or have in another shape."""
    shapes = described(component, config)
    renamed = keys.rename(component, tensors)
    stored = {name: origin.selection(tensors[origin.name].shape)[1] for name, origin in renamed.items()}
    missing = [name for name in shapes if name not in stored]
    both = [name for name in shapes if name in stored]
    other = [name for name in both if keys.without_kernel(stored[name]) != keys.without_kernel(shapes[name])]
    return missing, other


def described(component: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Every weight and bias with its shape."""
    tensors = tensors_of(_leaves(component, config))
    return {name.removeprefix("text_model."): shape for name, shape in tensors.items()}


def tensors_of(leaves: Iterable[Leaf]) -> dict[str, Shape]:
    """Names and shapes of the tensors of a file with these layers."""
    shapes: dict[str, Shape] = {}
    for leaf in leaves:
        if leaf.type == "AttentionPooling":
            shapes[f"{leaf.name}.positional_embedding"] = leaf.weight_shape
        elif leaf.weight_shape:
            shapes[f"{leaf.name}.weight"] = leaf.weight_shape
            if leaf.bias:
                shapes[f"{leaf.name}.bias"] = (leaf.weight_shape[1 if leaf.type == "ConvTranspose2d" else 0],)
    return shapes


def _leaves(component: str, config: Mapping[str, Any]) -> Iterable[Leaf]:
    if component == "unet":
        return unet.analyse(config, height=64, width=64).leaves
    if component == "vae":
        side = vae.scale(config)
        passes = (run(config, height=side, width=side) for run in (vae.encode, vae.decode))
        return [leaf for one in passes for leaf in one.leaves]
    return text.analyse(config).leaves
