"""sdcli itself, by its command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from scripts.peers.peer import GUIDANCE, MODES, PROMPT, SEED, STRENGTH, WEIGHT, Job, Peer, Said, weights_of, without
from sdcli.machine import packages


def generate(job: Job, *flags: str) -> list[str]:
    return [
        sys.executable, "-P", "-m", "sdcli", "generate", PROMPT, "-m", job.model, "-s", str(job.steps), "--size",
        f"{job.width}x{job.height}", "--seed", str(SEED), "-g", str(GUIDANCE), "--sampler", "DPM++ 2M Karras",
        "--device", "cpu", "--overwrite", "-o", job.image, "--json", *flags, *_of_mode(job),
    ]  # fmt: skip


def _of_mode(job: Job) -> list[str]:
    if job.mode == "image":
        return ["--image", str(job.picture), "--strength", str(STRENGTH)]
    if job.mode == "reference":
        return ["--reference", f"{job.picture}:{WEIGHT}", "--reference-model", str(job.adapter)]
    return ["--control", f"{job.net}={job.picture}"] if job.mode == "control" else []


def once(job: Job, *flags: str) -> list[str]:
    """An image of two steps: what is tried, converted or compiled for the model is kept for later runs."""
    image = str(Path(job.made) / "first.png")
    return generate(replace(job, steps=2, image=image), *flags)


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


def peer(
    name: str, how: str, *flags: str, missing: Callable[[], str | None] = lambda: None, packages: Sequence[str] = (),
    prepared: str = "", only_if_named: bool = False, modes: tuple[str, ...] = ("text",),
) -> Peer:  # fmt: skip
    return Peer(
        name=name,
        how=how,
        packages=("torch", "diffusers", "transformers", *packages),
        command=lambda job: generate(job, *flags),
        prepare=lambda job: once(job, *flags),
        prepared=prepared,
        missing=missing,
        files=_files,
        read=read,
        accepts=(0, 5),  # of random weights an image may be of one colour: suspect, but drawn
        only_if_named=only_if_named,
        modes=modes,
    )


def _files(job: Job) -> list[Path]:
    """The model's, and what sdcli made of it."""
    made = Path(job.made) / "home" / "cache" / "openvino"
    return [*weights_of(job), *sorted(path for path in made.rglob("*") if path.is_file())]


def _compiler() -> str | None:
    return None if packages.compiler("cpu") else "there is no C++ compiler"


PEERS = (
    peer("sdcli", "`sdcli generate`, as it plans by itself", modes=MODES),
    peer(
        "sdcli-openvino", "`sdcli generate --pin execution=openvino`", "--pin", "execution=openvino",
        missing=lambda: without("openvino", "openvino"), packages=("openvino",), prepared="converted",
    ),
    peer(
        "sdcli-compiled", "`sdcli generate --compile on`, its cache filled before", "--compile", "on",
        missing=_compiler, prepared="compiled",
        only_if_named=True,  # what it measures is remembered, and sdcli's own plan goes by it
    ),
)  # fmt: skip
