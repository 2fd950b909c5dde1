"""This machine's earlier measurements, by setup: peaks that replace predicted ones, and seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.stages import sides
from sdcli.plan.techniques import TECHNIQUES
from sdcli.request.request import Job
from sdcli.schema import renamed
from sdcli.terminal import show


def key_of(model: Model, setup: Setup, batch: Sequence[Job], alone: bool = False) -> str:
    """Model, size, batch and every slot. The caller adds the machine and the versions."""
    job = batch[0]
    parts = (
        show(model.name),
        model.hash or model.revision or model.family,
        str(sum(part.parameters for part in model.components.values())),
        f"{job.width}x{job.height}",
        f"batch={len(batch)}" + (" alone" if alone and len(batch) > 1 else ""),
        *(["from-image"] if job.start is not None else []),
        *(["controls=" + ",".join(str(control.net) for control in job.controls)] if job.controls else []),
        *([f"references={len(job.references)}"] if job.references else []),
        *(["second={}x{}".format(*job.size), job.second.upscaler] if job.second is not None else []),
        *([f"refined={job.refined.share:g}"] if job.refined is not None else []),
        *([f"tile={setup.upscaler_tile}"] if setup.upscaler_tile else []),
        "guided" if sides(model, job) > 1 else "plain",
        setup.device,
        f"threads={setup.threads}",
        *[f"{technique.flag}={technique.of(setup)}" for technique in TECHNIQUES],
    )
    return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Measurements of one setup: the highest peaks in bytes; seconds of the newest run."""

    device_peak: int | None = None  # reserved by the allocator, what it merely keeps included; null on a CPU
    allocated_peak: int | None = None
    host_peak: int | None = None
    load: float | None = None  # everything before the first UNet call: imports, reading, encoding
    step: float | None = None  # one UNet call, guidance's pair counted once
    compile: float | None = None  # before the first call; the least of all runs: the first fills the others' cache
    image: float | None = renamed("picture", default=None)  # decode and save
    runs: int = 1  # that the peaks were measured in

    def total(self, calls: int, images: int) -> float | None:
        if self.load is None or self.step is None or self.image is None:
            return None
        return self.load + (self.compile or 0.0) + calls * self.step + images * self.image


def measures(data: Any) -> Measures | None:
    """Measures read from JSON, or None if nothing in it is usable: the file may be from any version."""
    if not isinstance(data, Mapping):
        return None
    result = Measures(
        device_peak=_count(data.get("device_peak")),
        allocated_peak=_count(data.get("allocated_peak")),
        host_peak=_count(data.get("host_peak")),
        load=_seconds(data.get("load")),
        step=_seconds(data.get("step")),
        compile=_seconds(data.get("compile")),
        image=_seconds(data.get("picture")),
        runs=_count(data.get("runs")) or 0,
    )
    if result.device_peak is None and result.host_peak is None:  # beside other models only time is measured
        return None if result.step is None else replace(result, allocated_peak=None, runs=0)
    return replace(result, runs=max(1, result.runs))


def merged(old: Any, new: Measures) -> Measures:
    """What to remember after another run of the same setup."""
    before = measures(old)
    if before is None:
        return new
    return Measures(
        device_peak=_larger(before.device_peak, new.device_peak),
        allocated_peak=_larger(before.allocated_peak, new.allocated_peak),
        host_peak=_larger(before.host_peak, new.host_peak),
        load=new.load if new.load is not None else before.load,
        step=new.step if new.step is not None else before.step,
        compile=min((each for each in (before.compile, new.compile) if each is not None), default=None),
        image=new.image if new.image is not None else before.image,
        runs=before.runs + new.runs,
    )


def _larger(a: int | None, b: int | None) -> int | None:
    return max((value for value in (a, b) if value is not None), default=None)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _seconds(value: Any) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    return None
