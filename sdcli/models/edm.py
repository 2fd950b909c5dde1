"""Models trained with EDM's noise, as Playground v2.5 was: SDXL with noise, samplers and latents of their own."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdcli import reading
from sdcli.errors import BadFile
from sdcli.terminal import show

if TYPE_CHECKING:
    from sdcli.models.headers import Header

MEAN, DEVIATION = "edm_mean", "edm_std"  # of latents: tensors of a single file
FAMILY = "sdxl"
# As Playground v2.5 was published; a single file says nothing of it.
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++",
    "dynamic_thresholding_ratio": 0.995, "euler_at_final": False, "final_sigmas_type": "zero",
    "lower_order_final": True, "num_train_timesteps": 1000, "prediction_type": "epsilon", "rho": 7.0,
    "sample_max_value": 1.0, "sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002, "solver_order": 2,
    "solver_type": "midpoint", "thresholding": False,
}  # fmt: skip
DEFAULTS: Mapping[str, Any] = {"sampler": "EDM DPM++ 2M", "guidance": 3.0}
_SCALING = 0.5
_LETTERS = {"F64": "d", "F32": "f", "F16": "e"}


def is_edm(scheduler: Mapping[str, Any]) -> bool:
    """By a scheduler's config."""
    return str(scheduler.get("_class_name", "")).startswith("EDM")


def latents(header: Header) -> dict[str, Any]:
    """What a single file says of its latents, as the config of a VAE does."""
    named = {"latents_mean": MEAN, "latents_std": DEVIATION}
    return {"scaling_factor": _SCALING, **{ours: _numbers(header, name) for ours, name in named.items()}}


def _numbers(header: Header, name: str) -> list[float]:
    """Of a small tensor: one for each channel."""
    tensor = header.tensors[name]
    if tensor.parameters != 4 or tensor.dtype not in (*_LETTERS, "BF16"):
        raise BadFile(f"{show(header.path)}: {name} should be four numbers", hint="download the model again")
    with reading.opened(header.path) as file:
        file.seek(header.data_start + tensor.begin)
        raw = file.read(tensor.size)
    if tensor.dtype == "BF16":  # the upper half of fp32
        raw = b"".join(b"\0\0" + raw[at : at + 2] for at in range(0, len(raw), 2))
    return list(struct.unpack(f"<4{_LETTERS.get(tensor.dtype, 'f')}", raw))
