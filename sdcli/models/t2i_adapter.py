"""T2I-Adapters: what their files and configs tell of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcli.models import t2i_walk
from sdcli.models.blocks import Extent
from sdcli.models.t2i_walk import FULL, FULL_XL, LIGHT

PART = "t2i_adapter"
_PLACES = 64  # latents along an edge, where a UNet and an adapter are compared
# Channels that go into the first convolution → those of the image, and how many pixels along an edge become one place:
# 8 in adapters for SD1.5, 16 for SDXL.
_INPUTS = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}

Shapes = Mapping[str, tuple[int, ...]]  # by diffusers' names


def family_of(config: Mapping[str, Any]) -> str:
    """Its features tell no text's width, only how small the image is where it begins."""
    return "sdxl" if config.get("downscale_factor", 8) == 16 else "sd15"


def config_of(named: Shapes) -> dict[str, Any] | None:
    """Of a single file, which has none; None where it is no whole adapter."""
    light = "adapter.conv_in.weight" not in named
    first = named.get("adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight", ())
    channels, edge = _INPUTS.get(first[1] if len(first) == 4 else 0, (0, 0))
    ending = "out_conv.weight" if light else "resnets.0.block1.weight"
    widths = [named[name][0] for level in range(16) if (name := f"adapter.body.{level}.{ending}") in named]
    layers = sum(f"adapter.body.0.resnets.{layer}.block1.weight" in named for layer in range(16))
    if not channels or len(widths) < 2 or not layers or (light and edge != 8):
        return None
    kind = LIGHT if light else FULL_XL if edge == 16 else FULL
    return {
        "_class_name": t2i_walk.CLASS, "adapter_type": kind, "channels": widths[:-1] if light else widths,
        "downscale_factor": edge, "in_channels": channels, "num_res_blocks": layers,
    }  # fmt: skip


def misfit(config: Mapping[str, Any], unet: Mapping[str, Any]) -> str:
    """Why its features cannot be added in this UNet; empty where they can."""
    given = t2i_walk.analyse(config, height=_PLACES, width=_PLACES).features
    taken = t2i_walk.taken_by(unet, height=_PLACES, width=_PLACES)
    if given in (taken, taken[:-1]):
        return ""
    return f"it gives {_listed(given)}, not {_listed(taken[: len(given)])}"


def _listed(maps: tuple[Extent, ...]) -> str:
    return ", ".join(f"{each.channels}×{each.height}×{each.width}" for each in maps)
