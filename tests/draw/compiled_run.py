"""A process that compiles and draws: `python -m compiled_run FOLDER` prints as JSON what happened."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from scripts.proofs import setups
from sdcli.draw import local
from sdcli.events import Decoded, Denoised, Memory, Step, Timed
from sdcli.models import resolve
from sdcli.models.model import Model
from sdcli.plan.plan import Plan, Setup

SETUP = Setup(execution="compile", threads=setups.THREADS, isa=setups.cpu().isa)
EAGER = replace(SETUP, execution="eager")


def small(path: Path) -> Model:
    """With blocks of few shapes only: each takes a compiler some ten seconds."""
    model = resolve.at(path)
    unet = model.components["unet"]
    config = {
        **unet.config, "block_out_channels": [32, 32], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }  # fmt: skip
    fewer = replace(unet, config=config, files=(), random=True)
    return replace(model, components={**model.components, "unet": fewer})


def plan_of(path: Path, setup: Setup) -> Plan:
    return replace(setups.plan_of(path, setups.cpu(), setup), model=small(path))


def counted() -> dict[str, int]:
    seen = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}
    return {**seen, "graphs": counters["stats"]["unique_graphs"], "breaks": len(counters["graph_break"])}


def main(path: Path) -> None:
    environment, plan = dict(os.environ), plan_of(path, SETUP)
    seen = setups.draw(plan)
    first = counted()
    with local.Engine() as engine:
        events = [event for _ in range(2) for event in engine.run(plan)]
    compiled = next(event.latents for event in events if isinstance(event, Denoised))
    eager = next(event.latents for event in local.run(plan_of(path, EAGER)) if isinstance(event, Denoised))
    told = {
        "differences": list(setups.differences(plan, seen)),
        "first": first,
        "then": counted(),
        "phases": [event.phase for event in events if isinstance(event, Timed | Memory)],
        "steps": len([event for event in events if isinstance(event, Step)]),
        "pixels": sorted({event.pixels.hex() for event in [*seen.drawn, *events] if isinstance(event, Decoded)}),
        "away": float((compiled - eager).abs().max() / eager.abs().max()),
        "environment": sorted({name for name, _ in environment.items() ^ os.environ.items()}),
        "children": [name for name in os.listdir("/proc/self/task") for _ in _children(name)],
    }  # fmt: skip
    print(json.dumps(told))


def _children(task: str) -> list[str]:
    return Path(f"/proc/self/task/{task}/children").read_text().split()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
