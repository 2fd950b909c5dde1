"""The loop that turns noise into latents: diffusers' arithmetic written out, restartable before any UNet call."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor

from sdcli.draw.control import Adapted, Controls, Rows, Steering
from sdcli.draw.noise import normal, of_steps
from sdcli.draw.start import Begun, Kept
from sdcli.draw.transfers import without_waiting

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LoopState:
    """All that is needed to continue after `step` UNet calls. With most samplers a fresh scheduler would draw another
    image from there, so the whole state of this one is kept."""

    batch: int
    step: int
    latents: Tensor
    scheduler: Mapping[str, Any]
    generators: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How the predictions of a step become one. A side is a row of every image: the prompts alone; before them the
    negative prompts; or the prompts, the negative prompts, and these without the image that is edited."""

    scale: float
    sides: int = 2  # 1 to 3
    image: float = 1.0  # away from what is drawn without the image, where that is a side

    def rows(self, prompts: Sequence[T], negatives: Sequence[T]) -> list[T]:
        return {1: [*prompts], 2: [*negatives, *prompts], 3: [*prompts, *negatives, *negatives]}[self.sides]

    def combined(self, prediction: Tensor) -> Tensor:
        if self.sides == 1:
            return prediction
        if self.sides == 2:
            negative, prompt = prediction.chunk(2)
            return negative + self.scale * (prompt - negative)
        prompt, without_prompt, without_image = prediction.chunk(3)
        return (
            without_image
            + self.scale * (prompt - without_prompt)
            + self.image * (without_prompt - without_image)
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What steers the UNet. Its rows are those of guidance's sides.

    `inputs` yields what the UNet sees in a step, `settle` has the last word on the step's latents: this is where other
    kinds of steering (an initial image, a mask) differ from plain text.
    """

    guidance: Guidance
    rows: Mapping[str, Tensor]  # encoder_hidden_states …: one row each per UNet row
    added: Mapping[str, Tensor] = field(default_factory=dict)  # SDXL's pooled vectors and sizes, also one row each
    groups: tuple[Tensor, ...] = ()  # rows to be sent through the UNet together; empty: all at once
    lengths: tuple[int, ...] = ()  # of each group's texts, where not all are as long: beyond, rows are filled up
    beside: Tensor | None = None  # channels that the UNet sees beside the latents, one row per UNet row
    kept: Kept | None = None  # what of the images stays as it was
    controls: Controls | None = None  # what is added inside the UNet
    referred: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what its layers see of reference images

    def inputs(self, latents: Tensor, step: int) -> Iterator[tuple[Tensor | None, Tensor, dict[str, Any]]]:
        """Every UNet call of this step: its rows, sample and other arguments."""
        sample = self._on_all_sides(latents)
        if self.beside is not None:
            sample = torch.cat([sample, self.beside], dim=1)
        for group, arguments in self._arguments:
            yield group, _rows(sample, group), arguments

    def residuals(self, part: int, latents: Tensor, timestep: Tensor, step: int) -> dict[str, Any]:
        """More arguments of the UNet's call `part` of this step, from what steers it. That sees the latents alone."""
        if self.controls is None:
            return {}
        group, arguments = self._arguments[part]
        sample = self._on_all_sides(latents)
        return self.controls.residuals(part, _rows(sample, group), timestep, step, arguments)

    def _on_all_sides(self, latents: Tensor) -> Tensor:
        return torch.cat([latents] * self.guidance.sides) if self.guidance.sides > 1 else latents

    @cached_property
    def _arguments(self) -> list[tuple[Tensor | None, dict[str, Any]]]:
        """What stays the same over all steps, by UNet call."""
        calls = []
        for group, length in itertools.zip_longest(self.groups or (None,), self.lengths):
            arguments: dict[str, Any] = {name: _rows(value, group) for name, value in self.rows.items()}
            if length is not None:
                arguments["encoder_hidden_states"] = arguments["encoder_hidden_states"][:, :length].contiguous()
            if self.added:
                arguments["added_cond_kwargs"] = {name: _rows(value, group) for name, value in self.added.items()}
            if self.referred:
                arguments["cross_attention_kwargs"] = {"references": _all_rows(self.referred, group)}
            calls.append((group, arguments))
        return calls

    def settle(self, latents: Tensor, scheduler: Any, following: Tensor | None) -> Tensor:
        return latents if self.kept is None else self.kept.onto(latents, scheduler, following)

    def starting(self, begun: Begun, device: torch.device) -> Conditioning:
        """The same, for images that start from others."""
        beside = None if begun.beside is None else begun.beside_on(self.guidance.sides).to(device)
        return replace(self, beside=beside, kept=begun.kept_on(device))

    def steered(self, steering: Sequence[Steering], calls: int) -> Conditioning:
        """The same, with ControlNets and T2I-Adapters; the batch takes `calls` UNet calls. Waits for the device, where
        it has groups."""
        if not steering:
            return replace(self, controls=None)
        text = self.rows["encoder_hidden_states"]
        images, guided = len(text) // self.guidance.sides, self.guidance.sides > 1
        numbers = [group.tolist() for group in self.groups] or [list(range(len(text)))]
        rows = tuple(Rows.of(some, images, guided) for some in numbers)
        moved = [one.to(text) for one in steering]
        return replace(self, controls=Controls(
            controls=tuple(one for one in moved if not isinstance(one, Adapted)),
            adapted=tuple(one for one in moved if isinstance(one, Adapted)), rows=rows, calls=calls,
        ))  # fmt: skip

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        rows = {name: value.to(device, dtype) for name, value in self.rows.items()}
        added = {name: value.to(device, dtype) for name, value in self.added.items()}
        groups = tuple(group.to(device) for group in self.groups)
        return replace(self, rows=rows, added=added, groups=groups)


def _rows(value: Tensor, group: Any) -> Tensor:
    return value if group is None else value[group]


def _all_rows(values: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """The same in tables of tables, where plain numbers hold for all rows."""
    return {name: _within(value, group) for name, value in values.items()}


def _within(value: Any, group: Any) -> Any:
    if isinstance(value, Mapping):
        return _all_rows(value, group)
    return _rows(value, group) if isinstance(value, Tensor) else value


def groups(
    images: int, sides: int, *, in_turn: bool = False, alone: bool = False, lengths: Sequence[int] = ()
) -> tuple[Tensor, ...]:  # fmt: skip
    """How rows share UNet calls: guidance's sides `in_turn`, or each image `alone`, whatever the batch. Images with
    texts of other `lengths` are in other calls: filled up to one length, they would be other images."""
    together: dict[int, list[int]] = {}
    for image in range(images):
        together.setdefault(image if alone else lengths[image] if lengths else 0, []).append(image)
    rows = []
    for some in together.values():
        of_sides = [[image + side * images for image in some] for side in range(sides)]
        rows += of_sides if in_turn else [[row for side in of_sides for row in side]]
    return tuple(torch.tensor(group) for group in rows) if len(rows) > 1 else ()


def begin(
    scheduler: Any, generators: Sequence[torch.Generator], *, shape: tuple[int, int, int], dtype: torch.dtype,
    device: torch.device | str, batch: int = 0,
) -> LoopState:  # fmt: skip
    """Noise for one batch, each image's from its own generator, made in fp32 on the host so that a seed gives the same
    image on every device and in every dtype. The scheduler's timesteps must be set."""
    noise = torch.cat([normal((1, *shape), generator) for generator in generators])
    latents = noise.to(device=device, dtype=dtype) * scheduler.init_noise_sigma
    return snapshot(batch, 0, latents, scheduler, generators)


def begin_from(
    scheduler: Any, timesteps: Tensor, generators: Sequence[torch.Generator], begun: Begun, *, pure: bool,
    device: torch.device | str, batch: int = 0,
) -> LoopState:  # fmt: skip
    """As much noise on these latents as the first of the timesteps has; `pure`: nothing else."""
    if pure or begun.latents is None:
        latents = begun.noise * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(begun.latents, begun.noise, timesteps[:1].repeat(len(begun.latents)))
    return snapshot(batch, 0, latents.to(device), scheduler, generators)


def begin_after(
    before: LoopState, scheduler: Any, generators: Sequence[torch.Generator], *, device: torch.device | str
) -> LoopState:  # fmt: skip
    """Where another UNet ended: with the noise that its latents have, and its generators. The scheduler begins anew, as
    in diffusers: what it remembers of earlier steps are predictions."""
    for generator, state in zip(generators, before.generators, strict=True):
        generator.set_state(state)
    return snapshot(before.batch, 0, before.latents.to(device), scheduler, generators)


def denoise(
    unet: Callable[..., Any], scheduler: Any, conditioning: Conditioning, start: LoopState,
    generators: Sequence[torch.Generator], timesteps: Tensor | None = None,
) -> Iterator[LoopState]:  # fmt: skip
    """From `start` to the last step; yields after each UNet call the state to restart from if the next one fails.

    `timesteps`, on the host, are the scheduler's if not given.
    """
    restore(start, scheduler, generators)
    latents = start.latents
    known = scheduler.timesteps if timesteps is None else timesteps
    moved = known.to(latents.device)
    for step in range(start.step, len(known)):
        latents = _advance(unet, scheduler, conditioning, latents, (known[step], moved[step]), step, generators)
        with torch.no_grad():
            latents = conditioning.settle(latents, scheduler, known[step + 1] if step + 1 < len(known) else None)
        yield snapshot(start.batch, step + 1, latents, scheduler, generators)


@torch.no_grad()
def _advance(
    unet: Callable[..., Any], scheduler: Any, conditioning: Conditioning, latents: Tensor,
    timesteps: tuple[Tensor, Tensor], step: int, generators: Sequence[torch.Generator],
) -> Tensor:  # fmt: skip
    timestep, moved = timesteps  # on the host, where schedulers decide by it, and on the device
    with without_waiting(latents.device):  # schedulers alone: compiled blocks depend on what holds around them
        scaled = scheduler.scale_model_input(latents, timestep)
    prediction = conditioning.guidance.combined(_predict(unet, conditioning, scaled, moved, step))
    with without_waiting(latents.device), of_steps(generators):
        moved_on: Tensor = scheduler.step(
            prediction, timestep, latents, **_extra(scheduler, generators), return_dict=False
        )[0]
    return moved_on


def _predict(
    unet: Callable[..., Any], conditioning: Conditioning, scaled: Tensor, timestep: Tensor, step: int
) -> Tensor:
    whole: Tensor | None = None
    for number, (group, sample, arguments) in enumerate(conditioning.inputs(scaled, step)):
        residuals = conditioning.residuals(number, scaled, timestep, step)
        part: Tensor = unet(sample, timestep, **arguments, **residuals, return_dict=False)[0]
        del residuals  # they are large, and the next call has its own
        if group is None:
            return part
        if whole is None:
            whole = part.new_empty((scaled.shape[0] * conditioning.guidance.sides, *part.shape[1:]))
        whole[group] = part
    assert whole is not None
    return whole


def _extra(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """`eta` and the generators, for the samplers that take them, as diffusers' pipelines do."""
    accepted = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {}
    if "eta" in accepted:
        extra["eta"] = 0.0
    if "generator" in accepted:
        extra["generator"] = list(generators)
    return extra


# Saving and restoring


def snapshot(
    batch: int, step: int, latents: Tensor, scheduler: Any, generators: Sequence[torch.Generator]
) -> LoopState:
    state = {name: _copied(value) for name, value in vars(scheduler).items()}
    return LoopState(
        batch=batch, step=step, latents=latents, scheduler=state,
        generators=tuple(generator.get_state() for generator in generators),
    )  # fmt: skip


def restore(start: LoopState, scheduler: Any, generators: Sequence[torch.Generator]) -> None:
    vars(scheduler).clear()
    vars(scheduler).update({name: _copied(value) for name, value in start.scheduler.items()})
    for generator, state in zip(generators, start.generators, strict=True):
        generator.set_state(state)


def _copied(value: Any) -> Any:
    """A copy of anything a scheduler may write into; its config and plain numbers are shared."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, numpy.ndarray):
        return value.copy()
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
