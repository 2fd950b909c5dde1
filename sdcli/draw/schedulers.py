"""The diffusers scheduler of a sampler, made from the model's scheduler config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def settings(scheduler: Any) -> dict[str, Any]:
    """The scheduler's config for the record: plain values only."""
    values: dict[str, Any] = {"_class_name": type(scheduler).__name__}
    for name, value in scheduler.config.items():
        if not name.startswith("_") and isinstance(value, (str, int, float, bool, list, tuple, type(None))):
            values[name] = value
    return values
