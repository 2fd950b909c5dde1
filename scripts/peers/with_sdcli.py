"""sdcli itself, by its command line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from scripts.peers.peer import GUIDANCE, PROMPT, SEED, Job, Peer, Said, weights_of
from sdcli.machine import installation


def generate(job: Job) -> list[str]:
    return [
        sys.executable, "-P", "-m", "sdcli", "generate", PROMPT, "-m", job.model, "-s", str(job.steps), "--size",
        f"{job.width}x{job.height}", "--seed", str(SEED), "-g", str(GUIDANCE), "--sampler", "DPM++ 2M Karras",
        "--device", "cpu", "--overwrite", "-o", job.image, "--json",
    ]  # fmt: skip


def plan(job: Job) -> list[str]:
    """For what is tried once on every machine, and remembered."""
    return [sys.executable, "-P", "-m", "sdcli", "plan", PROMPT, "-m", job.model, "--device", "cpu", "--json"]


def compiled(job: Job) -> list[str]:
    return [*generate(job), "--compile", "on"]


def compile_first(job: Job) -> list[str]:
    """Fills the cache."""
    return compiled(replace(job, steps=1))


def _compiler() -> str | None:
    return None if installation.compiler("cpu") else "there is no C++ compiler"


def read(line: str) -> Said:
    report = json.loads(line)
    phases = {phase["name"]: phase["seconds"] for phase in report["phases"]}
    setup, steps = report["plan"]["setup"], report["batches"][0]["step_seconds"]
    return {
        "import": phases["import"], "load": phases["load"], "first": steps[0], "steps": steps[1:],
        "decode": phases["decode"], "dtype": setup["dtype"], "threads": setup["threads"],
        # the kernel is asked to count anew with each phase, so the highest of the phases may be above the last
        "peak": report["memory"]["measured"]["host_peak"] or 0,
    }  # fmt: skip


PEERS = (
    Peer(
        name="sdcli",
        how="`sdcli generate`, as it plans by itself",
        packages=("torch", "diffusers", "transformers"),
        command=generate,
        prepare=plan,
        missing=lambda: None,
        files=weights_of,
        read=read,
        accepts=(0, 5),  # of random weights an image may be of one colour: suspect, but drawn
    ),
    Peer(
        name="sdcli-compiled",
        how="`sdcli generate --compile on`, its cache filled before",
        packages=("torch", "diffusers", "transformers"),
        command=compiled,
        prepare=compile_first,
        prepared="compiled",
        missing=_compiler,
        files=weights_of,
        read=read,
        accepts=(0, 5),
        only_if_named=True,  # what it measures is remembered, and sdcli's own plan goes by it
    ),
)
