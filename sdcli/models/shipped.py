"""Components as the shipped configs describe them: sizes of models not on this disk, configs of single files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcli import data
from sdcli.models import text, unet, vae
from sdcli.models.model import BYTES, Component, net_kind


def parameters_of(component: str, config: Mapping[str, Any], side: int = 64) -> int:
    """The same whatever the latents' side; the walk over a UNet is kept for those who ask about that size next."""
    if component == "unet":
        return unet.analyse(config, height=side, width=side).parameters
    if component == "vae":
        return vae.parameters(config)
    if net_kind(component) is None and component not in ("image_encoder", "ip_adapter"):
        return text.parameters(config)
    from sdcli.models import control_walk, reference_walk, vision  # of no use to most commands

    if net_kind(component) is not None:
        return control_walk.analyse(config, height=64, width=64).parameters
    if component == "image_encoder":
        return vision.parameters(config)
    return reference_walk.parameters(config)


def component_of(family: str, component: str, dtype: str, **changes: Any) -> Component:
    """`changes` are to its config."""
    config = {**data.component_config(family, component), **changes}
    count = parameters_of(component, config, side=config.get("sample_size", 64))
    return Component(parameters=count, stored_bytes=count * BYTES[dtype], stored_dtype=dtype, config=config)
