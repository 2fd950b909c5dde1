"""The stages an image goes through: the only list of them, for counting, drawing and reporting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

from sdcli.models.families import find
from sdcli.models.model import REFINER, Model, net_kind
from sdcli.request.request import Job, Pass, Request

TOKENS = 77

# Prompts through text encoders; reference images through theirs; pixels into latents; calls of the UNet; latents into
# larger ones, by way of pixels; latents into pixels.
WorkKind = Literal["text", "reference", "pixels", "unet", "enlarge", "image"]


class Shape(NamedTuple):
    """The input of one UNet call and one decode. `batch` counts images, guidance's sides as one."""

    width: int
    height: int
    batch: int = 1
    sides: int = 2  # of guidance: the rows of an image in a step
    tokens: int = TOKENS


class Shown(NamedTuple):
    """An image that steers: the component that it is shown to, and how many there are in the batch."""

    part: str
    images: int = 1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a batch. `parts` are the components that work in it, one after another."""

    name: str
    work: WorkKind
    parts: tuple[str, ...]
    shown: tuple[Shown, ...] = ()  # to nets that steer it
    shape: Shape
    steps: int = 0  # UNet calls, guidance's sides counted as one
    file_pixels: int = 0  # of the largest image file that is read or put back into
    smaller: Shape | None = None  # what is enlarged to the shape
    references: int = 0  # images that an IP-Adapter sees

    @property
    def ahead(self) -> bool:
        """Whether it is done for many batches before any of them continues: encoded prompts are small."""
        return self.work in ("text", "reference")

    @cached_property
    def beside(self) -> tuple[str, ...]:
        """More components, at work in the same moment: those that images are shown to."""
        return tuple(dict.fromkeys(each.part for each in self.shown))

    @property
    def called(self) -> tuple[str, ...]:
        """The nets that each step calls: once for every image, a ControlNet Union once for all."""
        parts = (each.part for each in self.shown)
        return tuple(part for number, part in enumerate(parts) if not self._seen(part, number))

    def _seen(self, part: str, number: int) -> bool:
        return net_kind(part) == "controlnet_union" and any(each.part == part for each in self.shown[:number])

    @property
    def steered(self) -> bool:
        """Whether ControlNets and reference images act in it: they were made for the base's UNet."""
        return self.work == "unet" and not self.refines

    @property
    def refines(self) -> bool:
        """Whether the refiner is at work."""
        return self.parts[0].startswith(REFINER)


def stages(model: Model, batch: Sequence[Job], *, alone: bool = False) -> tuple[Stage, ...]:
    """The stages of one batch; `alone`: each image has its own UNet calls."""
    first = batch[0]
    images = 1 if alone else len(batch)
    shapes = [
        Shape(width=each.width, height=each.height, batch=images, sides=sides(model, first)) for each in first.passes
    ]
    times = len(batch) if alone else 1
    calls = [each.unet_calls * times for each in first.passes]
    files = [one.start.image.width * one.start.image.height for one in batch if one.start is not None]
    whole = [one.start.image.width * one.start.image.height for one in batch if one.start and one.start.repaint]
    made = list(_stages(model, shapes[0], shapes[-1], calls[0], bool(files)))
    if first.second is not None:
        again = Stage(name="second-pass", work="unet", parts=("unet",), shape=shapes[1], steps=calls[1])
        made.insert(-1, again)
        if first.second.upscaler != "latent":
            parts = ("vae", first.second.part, "vae") if first.second.by_model else ("vae",)
            made.insert(-2, Stage(name="upscale", work="enlarge", parts=parts, shape=shapes[1], smaller=shapes[0]))
    if first.references:
        seeing = ("image_encoder", "ip_adapter")
        made.insert(1, Stage(name="encode-reference", work="reference", parts=seeing, shape=shapes[0]))
    if first.refined is not None and model.refiner is not None:
        readers = tuple(REFINER + encoder.part for encoder in find(model.refiner.family).encoders)
        other = shapes[1]._replace(sides=sides(model.refiner, first))
        made.insert(1, Stage(name="encode-refiner", work="text", parts=readers, shape=other))
        made.insert(-1, Stage(name="refine", work="unet", parts=(REFINER + "unet",), shape=other, steps=calls[1]))
    seen = [one.image.width * one.image.height for job in batch for one in job.references]
    read = {"encode-reference": seen, "encode-image": files, "decode": whole}
    shown = _shown(batch)
    return tuple(
        replace(
            stage, file_pixels=max(read.get(stage.name, ()), default=0),
            references=len(first.references) if stage.work == "reference" or stage.steered else 0,
            shown=shown if stage.steered else (),
        )
        for stage in made
    )  # fmt: skip


def _shown(batch: Sequence[Job]) -> tuple[Shown, ...]:
    """Every image that steers. One that is the same for all of a batch is looked at once."""
    found = []
    for number, control in enumerate(batch[0].controls):
        seen = {(job.controls[number].image, job.start if _part_drawn(job) else None) for job in batch}
        found.append(Shown(part=control.part, images=1 if len(seen) == 1 else len(batch)))
    return tuple(found)


def _part_drawn(job: Job) -> bool:
    return job.start is not None and job.start.repaint is not None and job.start.repaint.padding is not None


def stages_at(model: Model, shape: Shape, *, steps: int = 1) -> tuple[Stage, ...]:
    """Of an image of this shape that starts from noise."""
    return _stages(model, shape, shape, steps, from_image=False)


def _stages(model: Model, first: Shape, last: Shape, steps: int, from_image: bool) -> tuple[Stage, ...]:
    encoders = find(model.family).encoders
    encode = Stage(name="encode", work="text", parts=tuple(encoder.part for encoder in encoders), shape=first)
    encode_image = Stage(name="encode-image", work="pixels", parts=("vae",), shape=first)
    return (
        encode,
        *([encode_image] if from_image or model.sees_mask else []),
        Stage(name="denoise", work="unet", parts=("unet",), shape=first, steps=steps),
        Stage(name="decode", work="image", parts=("vae",), shape=last),
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


def pass_of(job: Job, stage: Stage) -> Pass:
    """The pass that a stage of the UNet makes."""
    return next(each for each in job.passes if each.stage == stage.name)


def previews_after(request: Request, steps: int) -> frozenset[int]:
    """The steps followed by a preview: every so many, and evenly for the strip, the last one included."""
    frames = min(max(request.filmstrip, 0), steps)
    strip = (round(number * steps / frames) for number in range(1, frames + 1)) if frames else ()
    every = request.preview_every
    return frozenset(strip) | frozenset(range(every, steps + 1, every) if every > 0 else ())


def previewed(request: Request, job: Job, stage: Stage) -> frozenset[int]:
    """Of a stage's UNet calls those that a preview follows. A refiner goes on where its base ends, and so do they."""
    calls = pass_of(job, stage).unet_calls
    if job.refined is None:
        return previews_after(request, calls)
    before = job.unet_calls if stage.refines else 0
    return frozenset(step - before for step in previews_after(request, job.all_calls))


def sides(model: Model, job: Job) -> int:
    """Of guidance: with and without the prompt, and where an image is edited without that too. A UNet with guidance
    built in has one, as in diffusers."""
    if not job.guided or model.components["unet"].config.get("time_cond_proj_dim"):
        return 1
    return 3 if model.edits else 2


def parts_of(stages: Iterable[Stage]) -> tuple[str, ...]:
    """Every component that works in some stage, in order."""
    return tuple(dict.fromkeys(part for stage in stages for part in (*stage.parts, *stage.beside)))


def parts_ahead(stages: Iterable[Stage]) -> frozenset[str]:
    return frozenset(part for stage in stages if stage.ahead for part in stage.parts)
