"""Which tensors a config describes, and which of them a file lacks, in any layout of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sdcli.models import keys, text, unet, vae
from sdcli.models.headers import Tensor
from sdcli.models.keys import Shape
from sdcli.models.trace import Leaf


def lacking(component: str, config: Mapping[str, Any], held: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names, as diffusers has them, of what the config describes and the file lacks, or holds in another shape."""
    wanted = described(component, config)
    renamed = keys.rename(component, held)
    found = {name: origin.taken(held[origin.name].shape)[1] for name, origin in renamed.items()}
    missing = [name for name in wanted if name not in found]
    other = [name for name, shape in wanted.items() if name in found and _other(found[name], shape)]
    return missing, other


def described(component: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Every weight and bias with its shape."""
    tensors = tensors_of(_leaves(component, config))
    return {name.removeprefix("text_model."): shape for name, shape in tensors.items()}


def tensors_of(leaves: Iterable[Leaf]) -> dict[str, Shape]:
    """Names and shapes of the tensors that a file with these layers holds."""
    found: dict[str, Shape] = {}
    for leaf in leaves:
        if leaf.type == "AttentionPooling":
            found[f"{leaf.name}.positional_embedding"] = leaf.weight_shape
        elif leaf.weight_shape:
            found[f"{leaf.name}.weight"] = leaf.weight_shape
            if leaf.bias:
                found[f"{leaf.name}.bias"] = (leaf.weight_shape[1 if leaf.type == "ConvTranspose2d" else 0],)
    return found


def _leaves(component: str, config: Mapping[str, Any]) -> Iterable[Leaf]:
    if component == "unet":
        return unet.analyse(config, height=64, width=64).leaves
    if component == "vae":
        side = vae.scale(config)
        ways = (way(config, height=side, width=side) for way in (vae.encode, vae.decode))
        return [leaf for way in ways for leaf in way.leaves]
    return text.analyse(config).leaves


def _other(held: Shape, wanted: Shape) -> bool:
    return keys.without_kernel(held) != keys.without_kernel(wanted)
