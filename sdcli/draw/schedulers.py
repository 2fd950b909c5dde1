"""The diffusers scheduler of a sampler, made from the model's own scheduler settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcli.errors import Usage
from sdcli.request import samplers
from sdcli.terminal import show


def make(sampler: str, config: Mapping[str, Any]) -> Any:
    """As diffusers' users switch samplers: the model's settings, the sampler's own on top."""
    import diffusers

    known = samplers.find(sampler)
    return getattr(diffusers, known.scheduler).from_config(dict(config), **known.options)


def set_steps(scheduler: Any, sampler: str, steps: int, device: Any) -> None:
    try:
        scheduler.set_timesteps(steps, device=device)
    except ValueError as error:  # LCM and TCD were distilled for at most 50 steps
        raise Usage(
            f"{sampler} cannot take {steps} steps: {show(error, 200)}", hint=f'sdcli generate "a cat" --steps {20}'
        ) from None


def settings(scheduler: Any) -> dict[str, Any]:
    """What it was drawn with, for the record: plain values only."""
    kept: dict[str, Any] = {"_class_name": type(scheduler).__name__}
    for name, value in scheduler.config.items():
        if not name.startswith("_") and isinstance(value, (str, int, float, bool, list, tuple, type(None))):
            kept[name] = value
    return kept
