"""Ours against diffusers as it comes, end to end in separate processes, turn by turn; writes docs/benchmarks/cpu.md.

    python -m scripts.record_peers [--steps 20] [--rounds 2] [--model FOLDER] [--size 512x512] [--output FILE]

Both draw the same prompt with the same weights (a folder of random ones is made if none is given), sampler, steps and
size, from the start of the process to a PNG on the disk. Nothing is written that was not measured in this run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from sdcli.bench import statistics
from sdcli.machine import processor
from sdcli.machine.installation import versions
from sdcli.models import resolve

ROOT = Path(__file__).resolve().parents[1]
PROMPT, SEED = "a lighthouse on a cliff at dawn", 7
QUIET = 0.75  # processes waiting per core above which figures are not to be trusted

# What the diffusers documentation shows, with the sampler both sides use and clocks around its parts. The dtype is its
# default and has to be said: from files in fp16 it would mix that default with fp16 text encoders, and fail.
DIFFUSERS = """
import json, sys, time
started = time.perf_counter()
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
imported = time.perf_counter()
folder, steps, width, height, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
loaded = time.perf_counter()
marks = [loaded]
def mark(pipe, step, timestep, tensors):
    marks.append(time.perf_counter())
    return tensors
image = pipe(sys.argv[6], num_inference_steps=steps, width=width, height=height, guidance_scale=7.0,
             generator=torch.Generator("cpu").manual_seed(int(sys.argv[7])), callback_on_step_end=mark).images[0]
done = time.perf_counter()
image.save(out)
between = [b - a for a, b in zip(marks[1:], marks[2:])]
print(json.dumps({"import": imported - started, "load": loaded - imported, "steps": between, "decode": done - marks[-1],
                  "dtype": str(pipe.unet.dtype).removeprefix("torch."), "threads": torch.get_num_threads()}))
"""


@dataclass(frozen=True)
class Task:
    folder: Path
    family: str
    steps: int
    width: int
    height: int
    output: Path  # a folder for the images


@dataclass(frozen=True)
class Run:
    """One process from start to end. `peak` is the most memory it held; `parts` is what it said of itself."""

    seconds: float
    peak: int
    parts: dict[str, Any]


def plain_diffusers(task: Task) -> Run:
    arguments = [str(task.folder), str(task.steps), str(task.width), str(task.height)]
    arguments.append(str(task.output / "diffusers.png"))
    run = _watched([sys.executable, "-c", DIFFUSERS, *arguments, PROMPT, str(SEED)])
    return run


def ours(task: Task) -> Run:
    run = _watched([
        sys.executable, "-m", "sdcli", "generate", PROMPT, "-m", str(task.folder), "--steps", str(task.steps),
        "--size", f"{task.width}x{task.height}", "--seed", str(SEED), "-g", "7", "--sampler", "DPM++ 2M Karras",
        "--output", str(task.output), "--json",
    ])  # fmt: skip
    phases = {phase["name"]: phase["seconds"] for phase in run.parts["phases"]}
    setup = run.parts["plan"]["setup"]
    steps = run.parts["batches"][0]["step_seconds"]
    said = {
        "import": phases.get("import"), "load": phases.get("load"), "steps": steps[1:], "decode": phases.get("decode"),
        "dtype": setup["dtype"], "threads": setup["threads"],
        "setup": ", ".join(f"{name} {setup[name]}" for name in ("placement", "attention", "vae")),
    }  # fmt: skip
    # the engine lets the kernel count each phase afresh, so the highest of its own readings counts too
    return Run(run.seconds, max(run.peak, run.parts["memory"]["measured"]["host_peak"] or 0), said)


ROWS: dict[str, Callable[[Task], Run]] = {"diffusers, as it comes": plain_diffusers, "sdcli": ours}


def _watched(command: list[str]) -> Run:
    """Runs it; its highest resident memory is asked of the kernel every few milliseconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _high_water(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise SystemExit(f"a row ended with {process.returncode}:\n{err.read()[-2000:]}")
        return Run(seconds, peak, json.loads(out.read().strip().splitlines()[-1]))


def _high_water(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def record(task: Task, rounds: int) -> dict[str, list[Run]]:
    rows: dict[str, list[Run]] = {name: [] for name in ROWS}
    for number in range(rounds):
        for name, row in ROWS.items():
            run = row(task)
            rows[name].append(run)
            print(f"round {number + 1}  {name:24} {run.seconds:7.1f} s  {run.peak / 1e9:5.2f} GB", file=sys.stderr)
    return rows


def page(task: Task, rows: dict[str, list[Run]], load: tuple[float, float], random: bool) -> str:
    """The table and everything needed to read it rightly."""
    cpu = processor.read()
    packages = ", ".join(f"{v.name} {v.version}" for v in versions(("torch", "diffusers", "transformers")))
    weights = "random weights of full size, stored in fp16" if random else f"the weights of {task.folder.name}"
    first = next(iter(rows))
    lines = [
        "# One image on a CPU, from start to file",
        "",
        f"Recorded {date.today().isoformat()} by `python -m scripts.record_peers`: {task.family} at "
        f"{task.width}×{task.height}, {task.steps} steps of DPM++ 2M Karras, guidance 7.0, {weights}.",
        "",
        f"- machine: {cpu.name}, {cpu.threads} cores used, {cpu.isa}; {platform.system()} {platform.machine()}",
        f"- software: Python {platform.python_version()}, {packages}",
        f"- each row: {len(rows[first])} processes, one after the other in turn with the other rows; medians, and all "
        "totals below. Seconds are from the start of the process to its end, the PNG on the disk.",
        "- peak: the most resident memory (VmHWM) of any of these processes, imports included.",
        "- a step: the median of all but each image's first; intervals are of 95 %, and count "
        + ("processes." if len(rows[first]) > 1 else "the steps of one process.")
        + (" One process a row: ratios assume that processes differ by 2 %." if len(rows[first]) < 2 else ""),
        "",
        "| | total s | import | load | a step | decode | peak GB | times as fast |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in rows.items():
        parts = [run.parts for run in runs]
        total = median(run.seconds for run in runs)
        step = statistics.summarise([[part["steps"]] for part in parts])
        cells = [
            f"{name} ({parts[0]['dtype']})", f"{total:.1f}", *(_median(parts, key, 1) for key in ("import", "load")),
            f"{step.median:.2f} ({step.low:.2f}–{step.high:.2f})" if step else "–", _median(parts, "decode", 1),
            f"{max(run.peak for run in runs) / 1e9:.2f}", _times_as_fast(runs, rows[first]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for name, runs in rows.items():
        lines.append(f"- totals of {name}: {', '.join(f'{run.seconds:.1f}' for run in runs)} s")
    lines.append(f"- sdcli chose: {rows['sdcli'][0].parts['setup']}, {rows['sdcli'][0].parts['threads']} threads")
    lines.append(f"- other load on the machine (1 minute) before and after: {load[0]:.2f}, {load[1]:.2f}")
    if max(load[0], 0) > QUIET * cpu.threads:
        lines.append("- **the machine was busy when this began: do not cite these seconds**")
    return "\n".join(lines) + "\n"


def _times_as_fast(runs: list[Run], base: list[Run]) -> str:
    """With its interval; a process is what is counted."""
    if runs is base:
        return "1"
    ratio = statistics.compare([[[run.seconds]] for run in runs], [[[run.seconds]] for run in base])
    return f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def _median(parts: list[dict[str, Any]], key: str, digits: int) -> str:
    values = [part[key] for part in parts if part.get(key) is not None]
    return f"{median(values):.{digits}f}" if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a diffusers folder; random SD1.5 weights in fp16 if not given")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "cpu.md")
    asked = parser.parse_args()
    width, height = map(int, asked.size.split("x"))
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="sdcli-peers-") as scratch:
        folder = asked.model or Path(scratch) / "sd15"
        if asked.model is None:
            from scripts.make_checkpoint import write_folder

            write_folder(folder, "sd15", dtype="fp16")
        output = Path(scratch) / "images"
        output.mkdir()
        task = Task(folder, resolve.at(folder).family or "model", asked.steps, width, height, output)
        rows = record(task, asked.rounds)
        text = page(task, rows, (before, os.getloadavg()[0]), asked.model is None)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(text, encoding="utf-8")
    print(asked.output)


if __name__ == "__main__":
    main()
