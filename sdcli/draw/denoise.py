"""The loop that turns noise into latents: diffusers' arithmetic written out, restartable before every UNet call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Halfway:
    """All it takes to go on after `step` UNet calls. A scheduler started afresh in the middle would draw another
    picture with most samplers, so its whole state is kept."""

    batch: int
    step: int
    latents: Tensor
    scheduler: Mapping[str, Any]
    generators: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What steers the UNet. Rows are the negative prompts of all images, then their prompts (only these if not guided).

    `inputs` is what the UNet gets to see in a step, `settle` has the last word on the step's latents: here is where
    other ways of steering (an image to start from, a mask) differ from plain text.
    """

    guidance: float
    guided: bool
    rows: Mapping[str, Tensor]  # encoder_hidden_states …: one row each per UNet row
    added: Mapping[str, Tensor] = field(default_factory=dict)  # SDXL's pooled vectors and sizes, likewise
    groups: tuple[Tensor, ...] = ()  # rows to be sent through the UNet together; empty: all at once

    def inputs(self, latents: Tensor, step: int) -> Iterator[tuple[Tensor | None, Tensor, dict[str, Any]]]:
        """Every UNet call of this step: which rows, the sample, the rest."""
        sample = torch.cat([latents] * 2) if self.guided else latents
        for group in self.groups or (None,):
            taken: dict[str, Any] = {name: _rows(value, group) for name, value in self.rows.items()}
            if self.added:
                taken["added_cond_kwargs"] = {name: _rows(value, group) for name, value in self.added.items()}
            yield group, _rows(sample, group), taken

    def settle(self, latents: Tensor, step: int) -> Tensor:
        return latents

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        rows = {name: value.to(device, dtype) for name, value in self.rows.items()}
        added = {name: value.to(device, dtype) for name, value in self.added.items()}
        return replace(self, rows=rows, added=added)


def _rows(value: Tensor, group: Any) -> Tensor:
    return value if group is None else value[group]


def groups(images: int, guided: bool, *, in_turn: bool = False, alone: bool = False) -> tuple[Tensor, ...]:
    """How rows share UNet calls: guidance's two sides `in_turn`, or each image `alone`, whatever the batch."""
    pairs = [[image, image + images] if guided else [image] for image in range(images)]
    if alone:
        found = [[row] for pair in pairs for row in pair] if in_turn else pairs
    elif in_turn and guided:
        found = [[pair[side] for pair in pairs] for side in (0, 1)]
    else:
        found = []
    return tuple(torch.tensor(group) for group in found) if len(found) > 1 else ()


def begin(
    scheduler: Any, generators: Sequence[torch.Generator], *, shape: tuple[int, int, int], dtype: torch.dtype,
    device: torch.device | str, batch: int = 0,
) -> Halfway:  # fmt: skip
    """Noise for one batch, each image from its own generator, drawn in fp32 on the CPU so that neither the device nor
    the dtype changes the picture asked for. The scheduler has its timesteps set."""
    noise = torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])
    latents = noise.to(device=device, dtype=dtype) * scheduler.init_noise_sigma
    return snapshot(batch, 0, latents, scheduler, generators)


def denoise(
    unet: Callable[..., Any], scheduler: Any, conditioning: Conditioning, start: Halfway,
    generators: Sequence[torch.Generator],
) -> Iterator[Halfway]:  # fmt: skip
    """From `start` to the last step; after each UNet call comes where a new loop could start if the next one fails."""
    restore(start, scheduler, generators)
    latents = start.latents
    for step in range(start.step, len(scheduler.timesteps)):
        latents = _advance(unet, scheduler, conditioning, latents, step, generators)
        yield snapshot(start.batch, step + 1, latents, scheduler, generators)


@torch.no_grad()
def _advance(
    unet: Callable[..., Any], scheduler: Any, conditioning: Conditioning, latents: Tensor, step: int,
    generators: Sequence[torch.Generator],
) -> Tensor:  # fmt: skip
    timestep = scheduler.timesteps[step]
    scaled = scheduler.scale_model_input(latents, timestep)
    prediction = _predict(unet, conditioning, scaled, timestep, step)
    if conditioning.guided:
        negative, prompt = prediction.chunk(2)
        prediction = negative + conditioning.guidance * (prompt - negative)
    latents = scheduler.step(prediction, timestep, latents, **_extra(scheduler, generators), return_dict=False)[0]
    return conditioning.settle(latents, step)


def _predict(
    unet: Callable[..., Any], conditioning: Conditioning, scaled: Tensor, timestep: Tensor, step: int
) -> Tensor:
    whole: Tensor | None = None
    for group, sample, given in conditioning.inputs(scaled, step):
        part: Tensor = unet(sample, timestep, **given, return_dict=False)[0]
        if group is None:
            return part
        if whole is None:
            whole = part.new_empty((scaled.shape[0] * (2 if conditioning.guided else 1), *part.shape[1:]))
        whole[group] = part
    assert whole is not None
    return whole


def _extra(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """diffusers' pipelines give `eta` and the generators to the samplers that take them."""
    accepted = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {}
    if "eta" in accepted:
        extra["eta"] = 0.0
    if "generator" in accepted:
        extra["generator"] = list(generators)
    return extra


# Keeping and restoring


def snapshot(batch: int, step: int, latents: Tensor, scheduler: Any, generators: Sequence[torch.Generator]) -> Halfway:
    state = {name: _copied(value) for name, value in vars(scheduler).items()}
    return Halfway(
        batch=batch, step=step, latents=latents, scheduler=state,
        generators=tuple(generator.get_state() for generator in generators),
    )  # fmt: skip


def restore(start: Halfway, scheduler: Any, generators: Sequence[torch.Generator]) -> None:
    vars(scheduler).clear()
    vars(scheduler).update({name: _copied(value) for name, value in start.scheduler.items()})
    for generator, state in zip(generators, start.generators, strict=True):
        generator.set_state(state)


def _copied(value: Any) -> Any:
    """A copy of what a scheduler may write into; its config and plain numbers are shared."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, numpy.ndarray):
        return value.copy()
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
