"""sdcli on a GPU by its own bench, set beside published figures; writes docs/benchmarks/gpu.md.

    python -m scripts.gpu_bench [--device cuda] [--max-time 240] [--output FILE]
    python -m scripts.gpu_bench --dry          rehearses every command without a GPU, and prints the page

Weights are random: a step takes as long with them. It has not run on a GPU yet, and until it has there is no gpu.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from sdcli.bench import result as results
from sdcli.bench import screen, statistics

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Published:
    """Steps a second with guidance, batch 1, fp16, as published by others."""

    what: str
    steps_per_second: float


@dataclass(frozen=True)
class Task:
    name: str
    words: tuple[str, ...]
    small: tuple[str, ...]  # what a rehearsal asks for instead, later words winning
    published: tuple[Published, ...] = ()


SWEEP = ("--sweep", "dtype=fp16,bf16")
TASKS = (
    Task(
        "SD1.5, 512×512", ("-m", "sd15", "-s", "25", *SWEEP), ("--size", "64x64", "-s", "5"),
        (
            Published("H100, diffusers (stable-fast README)", 54.5),
            Published("H100, diffusers compiled (stable-fast README)", 66.0),
            Published("H100, stable-fast (its README)", 104.6),
            Published("A100, diffusers (stable-fast README)", 35.6),
            Published("RTX 4090, diffusers (OneDiff README)", 38.32),
            Published("RTX 3090, diffusers (OneDiff README)", 21.25),
        ),
    ),
    Task(
        "SDXL, 1024×1024", ("-m", "sdxl", "-s", "30", *SWEEP), ("--size", "64x64", "-s", "5"),
        (
            Published("H100, diffusers (stable-fast README)", 14.9),
            Published("H100, diffusers compiled (stable-fast README)", 18.5),
            Published("H100, stable-fast (its README)", 21.6),
            Published("A100, diffusers (stable-fast README)", 8.7),
            Published("RTX 4090, diffusers (OneDiff README)", 8.44),
            Published("RTX 3090, diffusers (OneDiff README)", 3.97),
        ),
    ),
    Task("SDXL as MLPerf asks for it", ("--preset", "mlperf"), ("--size", "64x64", "-s", "5")),
    Task(
        "SDXL where memory is short",
        ("-m", "sdxl", "-s", "10", "--sweep", "placement=resident,model-offload,group-offload"),
        ("--size", "64x64", "-s", "5"),
    ),
)  # fmt: skip


def measure(task: Task, device: str, max_time: int, dry: bool, folder: Path) -> results.BenchResult | None:
    """None where no row could be measured; bench has said why."""
    file = folder / f"{TASKS.index(task)}.json"
    how = ("--device", device, "--max-time", str(max_time), "--save", str(file))
    rehearsal = ("--engine", "fake", "--quick", *task.small) if dry else ()
    words = [sys.executable, "-m", "sdcli", "bench", "--random-weights", *task.words, *how, *rehearsal]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, stdout=subprocess.DEVNULL, env=environment, check=False)
    return results.read(file) if done.returncode == 0 else None


def page(measured: dict[Task, results.BenchResult | None], dry: bool) -> str:
    lines = ["# Steps on a GPU", ""]
    if dry:
        lines += ["**A rehearsal with an engine that draws nothing: no figure below means anything.**", ""]
    first = next((result for result in measured.values() if result is not None), None)
    if first is not None:
        about = first.environment
        where = f"{results.machine_text(about)}, driver {about['driver'] or 'unknown'}, CUDA {about['cuda'] or 'none'}"
        lines += [
            f"Recorded {date.today().isoformat()} by `python -m scripts.gpu_bench` on {where}. Random weights.",
            "",
        ]
    for task, result in measured.items():
        lines += [f"## {task.name}", "", f"`sdcli bench --random-weights {' '.join(task.words)}`", ""]
        lines += [*screen.markdown(result), ""] if result is not None else ["Not measured here.", ""]
        lines += beside(task, result)
    return "\n".join(lines).rstrip() + "\n"


def beside(task: Task, result: results.BenchResult | None) -> list[str]:
    """Others' figures, and ours divided by them. Theirs come from other days, machines and versions: no verdict."""
    steps = [case.summary for case in result.measured] if result is not None else []
    if not task.published or not steps:
        return []
    fastest = min(steps, key=lambda step: step.median)
    lines = ["| published | a step | ours, fastest, takes |", "|---|---|---|"]
    for other in task.published:
        theirs = 1 / other.steps_per_second
        spread = [f"{seconds / theirs:.3f}" for seconds in (fastest.median, fastest.low, fastest.high)]
        lines.append(f"| {other.what} | {screen.time_text(theirs)} | ×{spread[0]} ({spread[1]}–{spread[2]}) |")
    ours = f"{statistics.CONFIDENCE:.0%} interval of ours; theirs came without one, on other machines and versions."
    return [*lines, "", f"In brackets the {ours}", ""]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--max-time", type=int, default=240, help="seconds for each of the tasks")
    parser.add_argument("--dry", action="store_true", help="without a GPU; the page is printed")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "gpu.md")
    asked = parser.parse_args(words)
    device, most = ("cpu", min(asked.max_time, 1)) if asked.dry else (asked.device, asked.max_time)
    measured: dict[Task, results.BenchResult | None] = {}
    with tempfile.TemporaryDirectory(prefix="sdcli-gpu-") as folder:
        for task in TASKS:
            print(task.name, file=sys.stderr)
            measured[task] = measure(task, device, most, asked.dry, Path(folder))
    text = page(measured, asked.dry)
    if asked.dry:
        sys.stdout.write(text)
        return
    if not any(measured.values()):
        raise SystemExit("nothing was measured; gpu.md stays as it was")
    asked.output.write_text(text, encoding="utf-8")
    print(asked.output)


if __name__ == "__main__":
    main()
