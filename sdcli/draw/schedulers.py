"""The diffusers scheduler of a sampler, made from the model's own scheduler settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcli.draw.made import made_from_config
from sdcli.request import samplers


def make(sampler: str, config: Mapping[str, Any]) -> Any:
    """As diffusers' users switch samplers: the model's settings, the sampler's own on top."""
    import diffusers

    known = samplers.find(sampler)
    kind = getattr(diffusers, known.scheduler)  # imported only now: what goes wrong there is no config's fault
    with made_from_config("scheduler"):
        return kind.from_config(dict(config), **known.options)


def set_steps(scheduler: Any, steps: int, device: Any) -> None:
    with made_from_config("scheduler"):
        scheduler.set_timesteps(steps, device=device)


def settings(scheduler: Any) -> dict[str, Any]:
    """What it was drawn with, for the record: plain values only."""
    kept: dict[str, Any] = {"_class_name": type(scheduler).__name__}
    for name, value in scheduler.config.items():
        if not name.startswith("_") and isinstance(value, (str, int, float, bool, list, tuple, type(None))):
            kept[name] = value
    return kept
