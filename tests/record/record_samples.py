"""Hand-made plans and event streams: what an engine would say, without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sdcli.events import Decoded, Denoised, Done, Encoded, Event, Loaded, Memory, Planned, Step, Timed
from sdcli.machine.hardware import Hardware
from sdcli.models.model import Component, Model
from sdcli.plan.plan import Budget, Footprint, Phase, Plan, Setup
from sdcli.record.names import Destination
from sdcli.request.request import Job, Request
from sdcli.sizes import GIB

RUN = "20261103-142501-3f2a"
SIDE = 16


def job(index: int = 0, **fields: Any) -> Job:
    defaults: dict[str, Any] = {
        "index": index, "prompt": "a cat", "negative_prompt": "", "seed": 42 + index, "steps": 4, "unet_calls": 4,
        "guidance": 7.0, "width": SIDE, "height": SIDE, "sampler": "DPM++ 2M Karras",
    }  # fmt: skip
    return Job(**{**defaults, **fields})


def plan(images: int = 1, batch_size: int = 1, device: str = "cpu", jobs: Sequence[Job] | None = None) -> Plan:
    jobs = tuple(jobs) if jobs is not None else tuple(job(index) for index in range(images))
    indices = list(range(len(jobs)))
    gpu = device != "cpu"
    return Plan(
        version="0.1.0",
        request=Request(
            prompts=tuple(dict.fromkeys(j.prompt for j in jobs)), seeds=tuple(j.seed for j in jobs),
            steps=jobs[0].steps, width=SIDE, height=SIDE, num_images=len(jobs), batch_size=batch_size, model="sd15",
        ),
        model=Model(
            name="sd15", kind="sd15", family="sd15", source="hub", revision="451f4fe", hash="6ce0161689",
            components={
                name: Component(parameters=10, stored_bytes=20, stored_dtype="fp16")
                for name in ("text_encoder", "unet", "vae")
            },
        ),
        hardware=Hardware(
            device=device, name="NVIDIA GeForce RTX 4060" if gpu else "a CPU", source="as-if", total=8 * GIB,
            free=7 * GIB, ram_total=16 * GIB, ram_free=10 * GIB, threads=2,
        ),
        budget=Budget(device=6 * GIB, host=9 * GIB),
        setup=Setup(dtype="fp16" if gpu else "fp32", device=device, threads=2),
        jobs=jobs,
        batches=tuple(tuple(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)),
        footprint=Footprint(
            device_peak=2 * GIB, host_peak=2 * GIB if not gpu else GIB,
            phases=(
                Phase(name="load", device=GIB, host=GIB),
                Phase(name="encode", device=GIB, host=GIB),
                Phase(name="denoise", device=GIB + GIB // 2, host=GIB),
                Phase(name="decode", device=2 * GIB, host=GIB),
            ),
        ),
    )  # fmt: skip


def pixels(seed: int, side: int = SIDE) -> bytes:
    """An image that is not flat and differs with the seed."""
    return bytes((seed * 31 + n * 7 + n // side * 5) % 256 for n in range(side * side * 3))


def destination(folder: Path, **fields: Any) -> Destination:
    defaults: dict[str, Any] = {
        "folder": folder, "records": folder / "runs" / RUN, "run": RUN, "kind": "numbered", "model": "sd15"
    }  # fmt: skip
    return Destination(**{**defaults, **fields})


def stream(of: Plan) -> Iterator[Event]:
    """A run in which all goes well."""
    yield Timed(phase="import", seconds=3.1)
    yield Planned(plan=of)
    yield Memory(phase="before-load", host_peak=GIB // 4)
    yield Loaded(component="unet", bytes=2_130_000_000, seconds=1.9)
    for number, indices in enumerate(of.batches):
        yield Encoded(batch=number, tokens=tuple(3 for _ in indices), seconds=0.03)
        calls = of.jobs[indices[0]].unet_calls
        for step in range(1, calls + 1):
            yield Step(batch=number, step=step, of=calls, seconds=0.1)
        yield Denoised(batch=number, seconds=0.1 * calls)
        for index in indices:
            yield decoded(of, number, index)
    yield Memory(phase="denoise", host_peak=GIB, device_peak=None)
    yield Memory(phase="decode", host_peak=2 * GIB)
    yield Done(environment={"torch": "2.13.0"})


def decoded(of: Plan, batch: int, index: int, **fields: Any) -> Decoded:
    one = of.jobs[index]
    defaults: dict[str, Any] = {
        "batch": batch, "index": index, "job": one, "width": one.width, "height": one.height, "seconds": 0.14,
        "pixels": pixels(one.seed), "scheduler": {"_class_name": "DPMSolverMultistepScheduler"},
    }  # fmt: skip
    return Decoded(**{**defaults, **fields})
