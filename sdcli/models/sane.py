"""Numbers in configs that nothing checks until they are computed with: of the right type, and of a size that can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sdcli.errors import BadFile
from sdcli.terminal import show

_COUNT = (int, 1, 1 << 16)
_SHARE = ((int, float), 0.0, 1.0)
# component → key → types, least, most. A key that is absent or null is the library's to fill in.
_NUMBERS: Mapping[str, Mapping[str, tuple[Any, float, float]]] = {
    "unet": dict.fromkeys(("in_channels", "out_channels", "norm_num_groups"), _COUNT) | {
        "norm_eps": _SHARE, "sample_size": (int, 1, 1 << 14), "dropout": _SHARE,
    },
    "vae": dict.fromkeys(("in_channels", "out_channels", "latent_channels", "norm_num_groups"), _COUNT) | {
        "scaling_factor": ((int, float), 1e-6, 1e6), "shift_factor": ((int, float), -1e6, 1e6),
        "sample_size": (int, 1, 1 << 14),
    },
    "text_encoder": dict.fromkeys(("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"), (
        int, 1, 1 << 24
    )) | {"layer_norm_eps": _SHARE, "max_position_embeddings": (int, 77, 1 << 16)},
    "scheduler": {
        "beta_start": _SHARE, "beta_end": _SHARE, "num_train_timesteps": (int, 10, 100_000),
        "steps_offset": (int, 0, 1000), "solver_order": (int, 1, 5),
    },
}  # fmt: skip


def check(component: str, config: Mapping[str, Any], where: object) -> None:
    """BadFile that names the key, where a number is none or cannot be."""
    for key, (types, least, most) in _NUMBERS.get(component.removesuffix("_2"), {}).items():
        value = config.get(key)
        if value is None:
            continue
        right = isinstance(value, types) and not isinstance(value, bool)
        if not right or not math.isfinite(value) or not least <= value <= most:
            raise BadFile(
                f"{show(where)} is damaged: {key} is {show(value, 40)}, not a number from {least:g} to {most:g}",
                hint="get the model again, or another",
            )
