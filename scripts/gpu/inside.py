"""What a process on the GPU answers, as one JSON object: `python -m scripts.gpu.inside facts | parity … | waits …
| race …`."""

from __future__ import annotations

import json
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from scripts.gpu import race
from sdcli.draw import local
from sdcli.events import Decoded, Denoised, Encoded, Step
from sdcli.machine import survey
from sdcli.models import resolve
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.request.request import Request
from sdcli.request.samplers import SAMPLERS

# --- facts


def facts() -> dict[str, Any]:
    gpu = survey.choose("cuda", survey.look())
    versions = {name: metadata.version(name) for name in ("diffusers", "transformers")}
    return {
        "device": gpu.name, "total": gpu.total, "free": gpu.free, "driver": gpu.driver, "capability": gpu.capability,
        "versions": {"torch": torch.__version__, **versions}, "python": platform.python_version(),
        "host_to_device": bandwidth(),
    }  # fmt: skip


def bandwidth() -> float:
    """Bytes a second from page-locked memory to the GPU: the best of ten copies of 256 MiB."""
    source = torch.empty(256 << 20, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device="cuda")
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, source.nbytes / (time.perf_counter() - started))
    return best


# --- images


def plan_for(path: Path, **asked: Any) -> Plan:
    """As the command line makes it on this machine; by default 64×64, four steps of Euler."""
    settings: dict[str, Any] = {
        "prompts": ("a cat",), "seeds": (7,), "steps": 4, "guidance": 5.0, "width": 64, "height": 64,
        "sampler": "Euler", "pins": {},
    } | asked  # fmt: skip
    request = Request(**settings)
    plan = make_plan(request, resolve.at(path), survey.choose(request.device, survey.look()), {})
    return replace(plan, setup=replace(plan.setup, threads=torch.get_num_threads()))


def pixels(plan: Plan) -> list[bytes]:
    return [event.pixels for event in local.run(plan) if isinstance(event, Decoded)]


def pipeline_of(path: Path, dtype: torch.dtype) -> Any:
    """diffusers' own, as one usually loads it."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(path, dtype=dtype, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ours_and_theirs(path: Path, sampler: str, dtype: str, side: int) -> tuple[bytes, bytes]:
    """One image by sdcli, and by diffusers' pipeline in the same memory layout."""
    import diffusers

    from sdcli.draw.load import DTYPES

    pins = {"dtype": dtype, "vae-dtype": "same", "vae": "whole", "placement": "resident"}
    plan = plan_for(path, sampler=sampler, negative_prompt="dark", width=side, height=side, pins=pins)
    definition = next(one for one in SAMPLERS if one.name == sampler)
    pipeline = pipeline_of(path, DTYPES[dtype]).to("cuda")
    for name in ("unet", "vae"):
        getattr(pipeline, name).to(memory_format=torch.channels_last)
    kind = getattr(diffusers, definition.scheduler)
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **definition.options)
    image = pipeline(
        "a cat", negative_prompt="dark", guidance_scale=5.0, num_inference_steps=4, width=side, height=side,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]  # fmt: skip
    del pipeline
    return pixels(plan)[0], image.tobytes()


def parity(path: Path, dtype: str, side: int, *samplers: str) -> dict[str, int]:
    """By sampler, how many bytes of the two images differ."""
    pairs = {sampler: ours_and_theirs(path, sampler, dtype, side) for sampler in samplers}
    return {name: sum(a != b for a, b in zip(*pair, strict=True)) for name, pair in pairs.items()}


# --- waits


def waits(path: Path, side: int, *settings: str) -> dict[str, int]:
    """The most waits for the GPU in a step after the first, by torch's own warnings. Settings are a sampler and pins:
    `sampler=Euler,placement=group-offload`."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen, local.Engine() as engine:
        warnings.simplefilter("always")
        torch.ones(1, device="cuda").item()
        if not _waits(seen):
            raise SystemExit("torch does not warn of a wait")
        counts = {}
        for text in settings:
            pins = dict(setting.split("=") for setting in text.split(","))
            plan = plan_for(path, sampler=pins.pop("sampler"), pins=pins, steps=3, width=side, height=side)
            counts[text] = max(list(_by_step(engine, plan, seen))[1:])
        return counts


def _by_step(engine: local.Engine, plan: Plan, seen: list[warnings.WarningMessage]) -> Iterator[int]:
    for event in engine.run(plan):
        if isinstance(event, Denoised):
            break
        if isinstance(event, (Encoded, Step)):
            count = _waits(seen)
            if isinstance(event, Step):
                yield count
            warnings.simplefilter("always")  # by now the engine has silenced torch


def _waits(seen: list[warnings.WarningMessage]) -> int:
    count = sum("synchronizing CUDA operation" in str(one.message) for one in seen)
    seen.clear()
    return count


def main(words: list[str]) -> None:
    answer: Any
    match words:
        case ["facts"]:
            answer = facts()
        case ["parity", path, dtype, side, *samplers]:
            answer = parity(Path(path), dtype, int(side), *samplers)
        case ["waits", path, side, *settings]:
            answer = waits(Path(path), int(side), *settings)
        case ["race", path, side, rounds, many]:
            answer = race.race(Path(path), int(side), int(rounds), int(many))
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
