"""Seconds of a step and of a decode in every way of drawing the same weights, turn by turn in one process: sdcli's ways
of execution, its layers laid out otherwise, and diffusers' pipeline as it is, in channels_last, and compiled."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from scripts.gpu.lab import Lab, Piece, Row

SHAPES = (("sd15", 512), ("sdxl", 1024))
SECONDS = 100.0  # of one piece, compiling included
ROUNDS = 5
FEW, MANY = 2, 12  # steps of two images: their difference is without what an image costs besides
GRAPH, COMPILED = "sdcli, graph", "sdcli, compile"
GOALS = (  # milliseconds on an H100 or H200
    ("sd15", "step", GRAPH, 8.0), ("sd15", "step", COMPILED, 6.5), ("sdxl", "step", GRAPH, 52.0),
    ("sdxl", "step", COMPILED, 42.0), ("sdxl", "decode", "sdcli, eager", 55.0),
)  # fmt: skip

Way = Callable[[int], tuple[float, float]]  # steps → seconds of denoising and of decoding


def pieces() -> list[Piece]:
    return [Piece(f"race {family}", SECONDS, partial(_race, family, side)) for family, side in SHAPES]


def _race(family: str, side: int, lab: Lab) -> dict[str, Any]:
    rounds, many = (1, FEW + 1) if lab.tiny else (ROUNDS, MANY)
    return lab.ask("race", str(lab.model(family)), str(lab.side(side)), str(rounds), str(many))


# --- inside


def race(path: Path, side: int, rounds: int, many: int) -> dict[str, dict[str, Any]]:
    """Milliseconds by way; a way that fails has a `reason` instead."""
    found: dict[str, dict[str, Any]] = {}
    made = {}
    for name, make in _ways(path, side).items():
        try:
            started = time.perf_counter()
            made[name] = make()
            made[name](FEW)  # compiles and captures
            found[name] = {"start": time.perf_counter() - started, "step": [], "decode": []}
        except Exception as error:  # of any library: the others are still measured
            found[name] = {"reason": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]}
    for _ in range(rounds):
        for name, way in made.items():
            if "reason" not in found[name]:
                (short, _), (long, decode) = way(FEW), way(many)
                found[name]["step"].append((long - short) / (many - FEW) * 1000)
                found[name]["decode"].append(decode * 1000)
    return found


def _ways(path: Path, side: int) -> dict[str, Callable[[], Way]]:
    return {
        **{f"sdcli, {choice}": partial(_ours, path, side, choice) for choice in ("eager", "graph", "compile")},
        "sdcli, eager, not channels_last": partial(_ours, path, side, "eager", channels_last=False),
        "diffusers": partial(_theirs, path, side),
        "diffusers, channels_last": partial(_theirs, path, side, channels_last=True),
        "diffusers, compiled": partial(_theirs, path, side, channels_last=True, compiled=True),
    }


def _ours(path: Path, side: int, execution: str, channels_last: bool = True) -> Way:
    import torch

    from scripts.gpu.inside import plan_for
    from sdcli.draw import local
    from sdcli.events import Decoded, Denoised

    engine = local.Engine()
    pins = {"dtype": "fp16", "placement": "resident", "vae": "whole", "guidance": "batched", "execution": execution}

    def way(steps: int) -> tuple[float, float]:
        denoised = decoded = 0.0
        for event in engine.run(plan_for(path, steps=steps, width=side, height=side, pins=pins)):
            if isinstance(event, Denoised):
                denoised = event.seconds
            if isinstance(event, Decoded):
                decoded = event.seconds
        return denoised, decoded

    if not channels_last:
        way(1)
        for module in engine._session.components._modules.values():
            module.to(memory_format=torch.contiguous_format)
    return way


def _theirs(path: Path, side: int, channels_last: bool = False, compiled: bool = False) -> Way:
    import torch
    from diffusers import EulerDiscreteScheduler

    from scripts.gpu.inside import pipeline_of

    pipeline = pipeline_of(path, torch.float16).to("cuda")
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    exact = torch.bfloat16 if getattr(pipeline.vae.config, "force_upcast", False) else torch.float16
    if channels_last:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if compiled:
        pipeline.unet.compile_repeated_blocks(fullgraph=True)

    def way(steps: int) -> tuple[float, float]:
        started = _now()
        latents = pipeline(
            "a cat", negative_prompt="dark", guidance_scale=5.0, num_inference_steps=steps, width=side, height=side,
            output_type="latent", generator=torch.Generator("cpu").manual_seed(7),
        ).images  # fmt: skip
        denoised = _now()
        with torch.no_grad():
            pipeline.vae.to(exact).decode(latents.to(exact), return_dict=False)[0].float().cpu()
        return denoised - started, _now() - denoised

    return way


def _now() -> float:
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


# --- what came of it


def _of(found: Mapping[str, Mapping[str, Any]], family: str) -> Mapping[str, Any]:
    return found.get(f"race {family}", {})


def verdicts(found: Mapping[str, Mapping[str, Any]], device: str) -> list[Row]:
    rows: list[Row] = []
    for family, what, way, most in GOALS:
        times = _of(found, family).get(way, {}).get(what)
        seen = f"{statistics.median(times):.1f} ms" if times else "not run"
        holds = statistics.median(times) <= most if times and any(name in device for name in ("H100", "H200")) else None
        rows.append((f"{family}, a {what}, {way}", seen, f"≤ {most:g} ms on an H100 or H200", holds))
    return rows


def page(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "## Ways of execution",
        "",
        f"Milliseconds in fp16, batch 1 with guidance, medians (least to most) of {ROUNDS} turns; all ways of a model "
        "in one process. `start`: seconds to load, and to compile or capture. diffusers compiled: repeated blocks. "
        "A decode of diffusers' is in bf16 where sdcli's is, without making an image of it.",
        "",
    ]
    for family, side in SHAPES:
        ways = _of(found, family)
        if ways:
            lines += [f"| {family} {side}×{side} | start | step | decode |", "| --- | ---: | ---: | ---: |"]
            lines += [_row(name, way) for name, way in ways.items()] + [""]
    return lines


def _row(name: str, way: Mapping[str, Any]) -> str:
    if "reason" in way:
        return f"| {name} | not run: {way['reason'].replace('|', '/')} | | |"
    times = (way["step"], way["decode"])
    cells = [f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})" for each in times]
    return f"| {name} | {way['start']:.0f} | {' | '.join(cells)} |"
