"""Seconds of a step, by sdcli's own bench with random weights, set beside published figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from scripts.gpu.lab import Lab, Piece
from sdcli.bench import result as results
from sdcli.bench import screen, statistics

MOST, ENDING = 60.0, 25.0  # seconds of each; what a process may take to start and end


@dataclass(frozen=True)
class Task:
    name: str
    words: tuple[str, ...]
    published: tuple[tuple[str, float], ...] = ()  # steps a second with guidance, batch 1, fp16


SWEEP = ("--sweep", "dtype=fp16,bf16")
TASKS = (
    Task(
        "SD1.5, 512×512", ("-m", "sd15", "-s", "25", *SWEEP),
        (
            ("H100, diffusers (stable-fast README)", 54.5),
            ("H100, diffusers compiled (stable-fast README)", 66.0),
            ("H100, stable-fast (its README)", 104.6),
            ("A100, diffusers (stable-fast README)", 35.6),
            ("RTX 4090, diffusers (OneDiff README)", 38.32),
            ("RTX 3090, diffusers (OneDiff README)", 21.25),
        ),
    ),
    Task(
        "SDXL, 1024×1024", ("-m", "sdxl", "-s", "30", *SWEEP),
        (
            ("H100, diffusers (stable-fast README)", 14.9),
            ("H100, diffusers compiled (stable-fast README)", 18.5),
            ("H100, stable-fast (its README)", 21.6),
            ("A100, diffusers (stable-fast README)", 8.7),
            ("RTX 4090, diffusers (OneDiff README)", 8.44),
            ("RTX 3090, diffusers (OneDiff README)", 3.97),
        ),
    ),
    Task(
        "SDXL where memory is short",
        ("-m", "sdxl", "-s", "10", "--sweep", "placement=resident,model-offload,group-offload"),
    ),
    Task("SDXL as MLPerf asks for it", ("--preset", "mlperf")),
)  # fmt: skip


def pieces() -> list[Piece]:
    return [Piece(task.name, MOST / 2 + ENDING, partial(run, task)) for task in TASKS]


def run(task: Task, lab: Lab) -> dict[str, Any]:
    most = 1 if lab.tiny else int(min(MOST, lab.left - ENDING))
    small = ("-m", str(lab.model("sd15")), "--size", "64x64", "-s", "5", "--quick") if lab.tiny else ()
    ended = lab.run(
        "sdcli", "bench", "--random-weights", *task.words, *small, "--device", "cuda", "--max-time", str(most), "--json"
    )  # fmt: skip
    if ended.exit:
        return {"message": ended.error["message"]}
    found: dict[str, Any] = json.loads(ended.out)
    for case in found["configurations"]:
        case["picture"] = None  # megabytes of noise
    return found


def page(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for task in TASKS:
        if task.name in found:
            result = results.check(found[task.name], task.name)
            lines += [f"## {task.name}", "", f"`sdcli bench --random-weights {' '.join(task.words)}`", ""]
            lines += [*screen.markdown(result), "", *beside(task, result)]
    return lines


def beside(task: Task, result: results.BenchResult) -> list[str]:
    """Others' figures, and ours divided by them. Theirs come from other days, machines and versions: no verdict."""
    steps = [case.summary for case in result.measured]
    if not task.published or not steps:
        return []
    fastest = min(steps, key=lambda step: step.median)
    lines = ["| published | a step | ours, fastest, takes |", "|---|---|---|"]
    for what, rate in task.published:
        theirs = 1 / rate
        spread = [f"{seconds / theirs:.3f}" for seconds in (fastest.median, fastest.low, fastest.high)]
        lines.append(f"| {what} | {screen.time_text(theirs)} | ×{spread[0]} ({spread[1]}–{spread[2]}) |")
    ours = f"{statistics.CONFIDENCE:.0%} interval of ours; theirs came without one, on other machines and versions."
    return [*lines, "", f"In brackets the {ours}", ""]
