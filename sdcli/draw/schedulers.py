"""The diffusers scheduler of a sampler, made from the model's scheduler config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdcli.draw.config_check import config_checked
from sdcli.request import samplers


def make(sampler: str, config: Mapping[str, Any]) -> Any:
    """As samplers are switched in diffusers: the model's settings, overridden by the sampler's."""
    import diffusers

    definition = samplers.find(sampler)
    kind = getattr(diffusers, definition.scheduler)  # imported here: a failure in it is not the config's fault
    with config_checked("scheduler"):
        return kind.from_config(dict(config), **definition.options)


def set_steps(scheduler: Any, steps: int) -> None:
    """Timesteps stay on the host: schedulers decide by them, and on a GPU would wait for each."""
    with config_checked("scheduler"):
        scheduler.set_timesteps(steps, device="cpu")


def last_timesteps(scheduler: Any, steps: int, taken: int, left: int = 0) -> Tensor:
    """The timesteps of the last `taken` of these steps, but for the last `left`: whole steps, two timesteps each where
    a sampler is of second order. The scheduler is told where it begins."""
    first, end = (steps - left - taken) * scheduler.order, (steps - left) * scheduler.order if left else None
    if type(scheduler).__name__ == "PNDMScheduler":
        return _pndm_timesteps(scheduler, first, end)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps: Tensor = scheduler.timesteps[first:end]
    return timesteps


def _pndm_timesteps(scheduler: Any, first: int, end: int | None) -> Tensor:
    """PNDM takes its second timestep twice, and counts its calls. diffusers cuts off the first of the list, so that
    from the middle calls and timesteps no longer fit each other, and most of the noise stays."""
    taken = scheduler.timesteps.new_tensor(scheduler._timesteps[::-1][first:end].copy())
    return torch.cat([taken[:2], taken[1:]])


def settings(scheduler: Any) -> dict[str, Any]:
    """The scheduler's config for the record: plain values only."""
    values: dict[str, Any] = {"_class_name": type(scheduler).__name__}
    for name, value in scheduler.config.items():
        if not name.startswith("_") and isinstance(value, (str, int, float, bool, list, tuple, type(None))):
            values[name] = value
    return values
