"""The stages an image goes through: the only list of them, for counting, drawing and reporting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sdcli.models.families import find
from sdcli.models.model import Model
from sdcli.request.request import Job, Request

TOKENS = 77

# prompts through text encoders; pixels into latents; calls of the UNet; latents into pixels
WorkKind = Literal["text", "pixels", "unet", "image"]


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
    file_pixels: int = 0  # of the largest image file that is read or put back into

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
    steps = first.unet_calls * (len(batch) if alone else 1)
    files = [job.start.image.width * job.start.image.height for job in batch if job.start is not None]
    whole = [job.start.image.width * job.start.image.height for job in batch if job.start and job.start.repaint]
    return stages_at(
        model, shape, steps=steps, from_image=bool(files), read=max(files, default=0), put_back=max(whole, default=0)
    )


def stages_at(
    model: Model, shape: Shape, *, steps: int = 1, from_image: bool = False, read: int = 0, put_back: int = 0
) -> tuple[Stage, ...]:
    """Pixels of the image file that is `read`, and of the one that what is drawn is `put_back` into."""
    encoders = find(model.family).encoders
    encode = Stage(name="encode", work="text", parts=tuple(encoder.part for encoder in encoders), shape=shape)
    encode_image = Stage(name="encode-image", work="pixels", parts=("vae",), shape=shape, file_pixels=read)
    return (
        encode,
        *([encode_image] if from_image or model.sees_mask else []),
        Stage(name="denoise", work="unet", parts=("unet",), shape=shape, steps=steps),
        Stage(name="decode", work="image", parts=("vae",), shape=shape, file_pixels=put_back),
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
