"""Models without files: the whole structure of a known one, or a tiny one, with random weights made when loaded.
How long a step takes does not depend on what the weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdcli import data
from sdcli.models import shipped
from sdcli.models.families.sd15 import FAMILY
from sdcli.models.model import Model

# SD1.5's topology a few channels wide: enough to try every part of a measurement within seconds.
TINY: Mapping[str, Mapping[str, Any]] = {
    "unet": {
        "block_out_channels": [32, 64, 64, 64], "layers_per_block": 1, "attention_head_dim": 4,
        "cross_attention_dim": 32, "sample_size": 16,
    },
    "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "sample_size": 128},
    "text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
}  # fmt: skip


def randomised(model: Model) -> Model:
    """The same structure; its files are not needed."""
    components = {name: replace(part, random=True, files=()) for name, part in model.components.items()}
    return replace(model, components=components, cached=True, download_bytes=0, path=None, hash=None, revision=None)


def tiny() -> Model:
    components = {
        name: replace(shipped.component_of("sd15", name, "fp16", **changes), random=True)
        for name, changes in TINY.items()
    }
    return Model(
        name="tiny-random", kind="sd15", family="sd15", source="builtin", components=components,
        disk_bytes=0, scheduler=data.component_config("sd15", "scheduler"),
        defaults={"width": 128, "height": 128, "steps": 20, "sampler": FAMILY.defaults["sampler"]},
    )  # fmt: skip
