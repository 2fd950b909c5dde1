"""The stages an image goes through: the only list of them, for counting, drawing and reporting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sdcli.models.families import find
from sdcli.models.model import Model
from sdcli.request.request import Job, Request

TOKENS = 77

WorkKind = Literal["text", "unet", "image"]  # prompts through text encoders; calls of the UNet; latents into pixels


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The input of one UNet call and one decode. `batch` counts images, without guidance's second half."""

    width: int
    height: int
    batch: int = 1
    guided: bool = True
    tokens: int = TOKENS


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a batch. `parts` are the components that work in it, one after another."""

    name: str
    work: WorkKind
    parts: tuple[str, ...]
    shape: Shape
    steps: int = 0  # UNet calls, guidance's pair counted once

    @property
    def ahead(self) -> bool:
        """Whether it is done for many batches before any of them continues: encoded prompts are small."""
        return self.work == "text"


def stages(model: Model, batch: Sequence[Job], *, alone: bool = False) -> tuple[Stage, ...]:
    """The stages of one batch; `alone`: each image has its own UNet calls."""
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
    """The stages of these batches in the order they run."""
    for ahead in (True, False):
        for number, jobs in window:
            for stage in stages(model, jobs, alone=alone):
                if stage.ahead == ahead:
                    yield number, jobs, stage


def previews_after(request: Request, steps: int) -> frozenset[int]:
    """The steps followed by a preview: every so many, and evenly for the strip, the last one included."""
    frames = min(max(request.filmstrip, 0), steps)
    strip = (round(number * steps / frames) for number in range(1, frames + 1)) if frames else ()
    every = request.preview_every
    return frozenset(strip) | frozenset(range(every, steps + 1, every) if every > 0 else ())


def guided(model: Model, job: Job) -> bool:
    """Whether each step needs both halves. A UNet with guidance built in never does, as in diffusers."""
    return job.guided and not model.components["unet"].config.get("time_cond_proj_dim")


def parts_of(stages: Iterable[Stage]) -> tuple[str, ...]:
    """Every component that works in some stage, in order."""
    return tuple(dict.fromkeys(part for stage in stages for part in stage.parts))


def parts_ahead(stages: Iterable[Stage]) -> frozenset[str]:
    return frozenset(part for stage in stages if stage.ahead for part in stage.parts)
