"""The stages an image goes through: the one place that knows which there are, for counting, drawing and telling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sdcli.models.families import find
from sdcli.models.model import Model
from sdcli.request.request import Job, Request

TOKENS = 77

Work = Literal["text", "unet", "image"]  # prompts through text encoders; calls of the UNet; latents into pixels


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one UNet call and one decode work on. `batch` counts images; guidance's second half comes on top."""

    width: int
    height: int
    batch: int = 1
    guided: bool = True
    tokens: int = TOKENS


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a batch. `parts` are the model's components at work in it, one after another."""

    name: str
    work: Work
    parts: tuple[str, ...]
    shape: Shape
    steps: int = 0  # UNet calls, guidance's pair counted once

    @property
    def ahead(self) -> bool:
        """Whether it is done for many batches before any of them goes on: prompts are small once they are encoded."""
        return self.work == "text"


def stages(model: Model, batch: Sequence[Job], *, alone: bool = False) -> tuple[Stage, ...]:
    """What these jobs, drawn together, go through; `alone`: each image has its own UNet calls."""
    first = batch[0]
    shape = Shape(
        width=first.width, height=first.height, batch=1 if alone else len(batch), guided=guided(model, first)
    )  # fmt: skip
    return stages_at(model, shape, steps=first.unet_calls * (len(batch) if alone else 1))


def stages_at(model: Model, shape: Shape, *, steps: int = 1) -> tuple[Stage, ...]:
    encoders = find(model.family).encoders
    return (
        Stage(name="encode", work="text", parts=tuple(encoder.part for encoder in encoders), shape=shape),
        Stage(name="denoise", work="unet", parts=("unet",), shape=shape, steps=steps),
        Stage(name="decode", work="image", parts=("vae",), shape=shape),
    )


def walk(
    model: Model, window: Sequence[tuple[int, tuple[Job, ...]]], *, alone: bool = False
) -> Iterator[tuple[int, tuple[Job, ...], Stage]]:
    """The stages of these batches in the order in which they are gone through."""
    for ahead in (True, False):
        for number, jobs in window:
            for stage in stages(model, jobs, alone=alone):
                if stage.ahead == ahead:
                    yield number, jobs, stage


def previews_after(request: Request, steps: int) -> frozenset[int]:
    """After which steps a rough image is taken: every so many, and for the strip evenly, the last always among them."""
    wanted = min(max(request.filmstrip, 0), steps)
    strip = (round(number * steps / wanted) for number in range(1, wanted + 1)) if wanted else ()
    every = request.preview_every
    return frozenset(strip) | frozenset(range(every, steps + 1, every) if every > 0 else ())


def guided(model: Model, job: Job) -> bool:
    """A UNet distilled with guidance inside is never guided from outside (diffusers' own rule)."""
    return job.guided and not model.components["unet"].config.get("time_cond_proj_dim")


def parts_of(stages: Iterable[Stage]) -> tuple[str, ...]:
    """Every component that is at work somewhere, in the order in which they come."""
    return tuple(dict.fromkeys(part for stage in stages for part in stage.parts))


def parts_ahead(stages: Iterable[Stage]) -> frozenset[str]:
    return frozenset(part for stage in stages if stage.ahead for part in stage.parts)
