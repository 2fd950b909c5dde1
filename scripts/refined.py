"""SDXL and its refiner, drawn by sdcli's engine and by diffusers' two pipelines, on the same tiny models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from scripts import make_checkpoint
from scripts.gpu.inside import pipeline_of
from sdcli.asking import refiners
from sdcli.draw import local
from sdcli.events import Denoised
from sdcli.machine import processor
from sdcli.machine.hardware import Hardware
from sdcli.models import resolve
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.request.jobs import make_jobs
from sdcli.request.request import Refiner, Request
from sdcli.request.samplers import SAMPLERS, find
from sdcli.sizes import GIB

STEPS, GUIDANCE, PROMPT, NEGATIVE = 10, 5.0, "a cat", "blurry"
IN_HALVES = ("Heun", "DPM2", "DPM2 a")  # two calls a step: diffusers may split within one
OF_FIRST_ORDER = tuple(one.name for one in SAMPLERS if one.name not in (*IN_HALVES, "PNDM"))
PINS = {"dtype": "fp32", "attention": "fused", "execution": "eager"}
HERE = Hardware(
    device="cpu", name="a CPU", source="os", total=64 * GIB, free=64 * GIB, ram_total=64 * GIB, ram_free=64 * GIB,
    isa=processor.read().isa, threads=1, dtypes={"fp32": "probed", "bf16": "probed", "fp16": "unavailable"},
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A base and its refiner in folders, and diffusers' pipelines on them."""

    base: Path
    refiner: Path
    pipelines: tuple[Any, Any]


def pair_in(folder: Path) -> Pair:
    paths = folder / "base", folder / "refiner"
    for path, family, seed in zip(paths, ("sdxl", "refiner"), (0, 3), strict=True):
        make_checkpoint.write_folder(path, family, tiny=True, seed=seed)
    base, refiner = (pipeline_of(path, torch.float32) for path in paths)
    return Pair(*paths, (as_loaded(base), as_loaded(refiner)))


def as_loaded(pipeline: Any) -> Any:
    """With the engine's memory layout: convolutions channels last, every tensor at the start of an allocation and not
    somewhere in a mapped file. Both change the last bits of products."""
    for name, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            module.to(memory_format=torch.channels_last if name in ("unet", "vae") else torch.contiguous_format)
            for weight in module.parameters():
                weight.data = weight.data.clone()
    return pipeline


def plan_for(pair: Pair, share: float = 0.6, hardware: Hardware = HERE, **asked: Any) -> Plan:
    """As the command line makes it; by default 64 px and ten steps of Euler."""
    named = Refiner(model=str(pair.refiner), share=share)
    settings: dict[str, Any] = {
        "prompts": (PROMPT,), "negative_prompt": NEGATIVE, "seeds": (7,), "steps": STEPS, "guidance": GUIDANCE,
        "width": 64, "height": 64, "sampler": "Euler", "refiner": named, **asked,
        "pins": PINS | asked.get("pins", {}),
    }  # fmt: skip
    request = Request(**settings)
    refiner = refiners.located(named, (), offline=True, recorded=False)
    jobs, model, adapters = refiners.gather(refiner, make_jobs(request), resolve.at(pair.base))
    return make_plan(request, model, hardware, {}, jobs=jobs, adapters=adapters)


def latents(plan: Plan, stage: str = "refine") -> Tensor:
    """What the stage left."""
    (found,) = (event.latents for event in local.run(plan) if isinstance(event, Denoised) and event.stage == stage)
    assert isinstance(found, Tensor)
    return found


def equal(pair: Pair, sampler: str, share: float) -> bool:
    expected = theirs(pair, sampler, round(share * STEPS))
    own = latents(plan_for(pair, share, sampler=sampler))
    return bool(torch.isfinite(expected).all()) and torch.equal(own, expected)


# --- diffusers


def scheduler_of(sampler: str, config: Mapping[str, Any]) -> Any:
    known = find(sampler)
    return getattr(diffusers, known.scheduler).from_config(config, **known.options)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(7 + number) for number in range(count)]


def split_after(sampler: str, config: Mapping[str, Any], taken: int) -> float:
    """The share at which diffusers splits the steps after these."""
    scheduler = scheduler_of(sampler, config)
    scheduler.set_timesteps(STEPS)
    limit = math.floor(float(scheduler.timesteps[taken])) + 1
    assert float(scheduler.timesteps[taken - 1]) >= limit
    return 1 - limit / 1000


def theirs(
    pair: Pair, sampler: str, taken: int, count: int = 1, image: Any = None, strength: float = 1.0, **changes: Any
) -> Tensor:
    """By one pipeline after the other, with the same generators."""
    base, refiner = pair.pipelines
    config = base.scheduler.config
    given = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE,
        "num_images_per_prompt": count, "generator": generators(count), "output_type": "latent", **changes,
    }  # fmt: skip
    end, before = split_after(sampler, config, taken), (base.scheduler, refiner.scheduler)
    try:
        base.scheduler, refiner.scheduler = scheduler_of(sampler, config), scheduler_of(sampler, config)
        if image is None:
            half = base(**given, width=64, height=64, denoising_end=end).images
        else:
            first = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(base)
            first.set_progress_bar_config(disable=True)
            half = first(**given, image=image, strength=strength, denoising_end=end).images
        made: Tensor = refiner(**given, image=half, denoising_start=end).images
    finally:
        base.scheduler, refiner.scheduler = before
    return made
