"""What the tests of drawing share: plans for tiny models, their events, and diffusers' pipelines."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from scripts.gpu.inside import pipeline_of
from sdcli.draw import local
from sdcli.events import Decoded, Degraded, Encoded, Event
from sdcli.machine import processor
from sdcli.machine.hardware import Hardware
from sdcli.models import resolve
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.request.request import Request
from sdcli.request.samplers import find
from sdcli.sizes import GIB
from tests.pretend_gpu import device, pretend

FAMILIES = ("sd15", "sd2", "sdxl")


def all_but(family: str) -> list[Any]:
    """The families as cases; what this one would show, the others show every day."""
    return [pytest.param(one, marks=[pytest.mark.proof] * (one == family)) for one in FAMILIES]


def diffusers_pipelines(folders: dict[str, Path], dtype: torch.dtype) -> dict[str, Any]:
    return {family: pipeline_of(folder, dtype) for family, folder in folders.items()}


HARDWARE = Hardware(
    device="cpu", name="a CPU", source="os", total=64 * GIB, free=64 * GIB, ram_total=64 * GIB, ram_free=64 * GIB,
    isa=processor.read().isa, threads=1, dtypes={"fp32": "probed", "bf16": "probed", "fp16": "unavailable"},
)  # fmt: skip


def request_for(**asked: Any) -> Request:
    """By default 64 px, 4 steps of Euler."""
    settings: dict[str, Any] = {
        "prompts": ("a cat",), "seeds": (7,), "steps": 4, "guidance": 5.0, "width": 64, "height": 64,
        "sampler": "Euler", "pins": {},
    } | asked  # fmt: skip
    return Request(**settings)


def plan_for(path: Path, **asked: Any) -> Plan:
    """A plan as the command line makes it, for a tiny model, by default in fp32."""
    pins = {"dtype": "fp32"} | dict(asked.get("pins", {}))
    return make_plan(request_for(**asked | {"pins": pins}), resolve.at(path), HARDWARE, {})


def events_of(plan: Plan, kind: type | None = None) -> list[Any]:
    """Everything that happens, or only one kind of it."""
    events: list[Event] = list(local.run(plan))
    return [event for event in events if kind is None or isinstance(event, kind)]


class TheTruth:
    """A UNet that knows the noise: from any step a right sampler leads back to the image."""

    def __init__(self, scheduler: Any, image: Tensor) -> None:
        self.alphas, self.image = scheduler.alphas_cumprod, image

    def __call__(self, sample: Tensor, timestep: Tensor, **unused: Any) -> tuple[Tensor]:
        share = self.alphas[int(timestep)]
        return ((sample - share.sqrt() * self.image) / (1 - share).sqrt(),)


def out_of_memory_at(plan: Plan, number: int, plain: bytes) -> str:
    """The plan's one image drawn on a pretend GPU whose memory runs out at that allocation, once; the phase in which it
    did. Nothing is left behind, and where the fallback moves no pixel they are the plain ones."""
    with pretend(device("8GiB")) as gpu:
        gpu.fail_at(number)
        events = [event for event in local.run(plan) if isinstance(event, (Decoded, Degraded))]
        gc.collect()
        assert gpu.held() == 0
    (drop,) = [event for event in events if isinstance(event, Degraded)]
    (drawn,) = [event.pixels for event in events if isinstance(event, Decoded)]
    if not drop.changes_pixels:
        assert drawn == plain, number
    return drop.phase


def drawn_by_diffusers(
    kind: Any, pipeline: Any, parts: dict[str, Any], sampler: str, images: int = 1, **given: Any
) -> Tensor:  # fmt: skip
    """Latents by another of diffusers' pipelines, on the components of this one and more `parts`."""
    known, other = find(sampler), kind.from_pipe(pipeline, **parts)
    other.scheduler = getattr(diffusers, known.scheduler).from_config(pipeline.scheduler.config, **known.options)
    other.set_progress_bar_config(disable=True)
    latents: Tensor = other(
        num_images_per_prompt=images, width=64, height=64, output_type="latent",
        generator=[torch.Generator("cpu").manual_seed(7 + number) for number in range(images)], **given,
    ).images  # fmt: skip
    return latents


def out_of_memory_while_drawing(plan: Plan) -> None:
    """At three allocations between encoding the prompt and the end."""
    encoded, plain = 0, b""
    with pretend(device("8GiB")) as gpu:
        for event in local.run(plan):
            if isinstance(event, Encoded):
                encoded = gpu.allocator().requests
            if isinstance(event, Decoded):
                plain = event.pixels
        last = gpu.allocator().requests
    for number in range(encoded + 5, last, (last - encoded) // 3):
        out_of_memory_at(plan, number, plain)
