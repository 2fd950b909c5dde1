"""Which tensors a config describes, and which of them a file lacks, whatever layout its names are in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sdcli.models import keys, text, unet, vae
from sdcli.models.headers import Tensor
from sdcli.models.keys import Shape


def lacking(component: str, config: Mapping[str, Any], held: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names, as diffusers has them, of what the config describes and the file lacks, or holds in another shape."""
    wanted = described(component, config)
    renamed = keys.rename(component, held)
    found = {name: origin.taken(held[origin.name].shape)[1] for name, origin in renamed.items()}
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


def _other(held: Shape, wanted: Shape) -> bool:
    return keys.without_kernel(held) != keys.without_kernel(wanted)
