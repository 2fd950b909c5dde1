"""What torch has to be asked before the plan: number types, tried once since flags and versions alone mislead; and the
memory of GPUs that nobody else tells."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from sdcli.machine import memories, packages
from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.pins import pins_of
from sdcli.plan.plan import Plan
from sdcli.plan.stages import sides
from sdcli.plan.techniques import dtype
from sdcli.plan.workload import Workload, workload
from sdcli.request.request import Job, Request


def sized(hardware: Hardware) -> tuple[Hardware, float]:
    """The hardware with its memory, and the seconds that loading torch for it took. Intel's GPUs need it: a plan for a
    size that is guessed would be worth nothing."""
    if hardware.source != "sysfs" or hardware.total:
        return hardware, 0.0
    started = time.perf_counter()
    asked = importlib.import_module("sdcli.draw.local").sized(hardware)
    return asked, time.perf_counter() - started


class Question(NamedTuple):
    """What there is to try of a model's layers on a CPU."""

    work: Workload
    dtype: str
    sides: int = 1  # of guidance that the work has

    @property
    def key(self) -> str:
        return f"{self.work.key} {self.dtype}"


def question(hardware: Hardware, model: Model, jobs: Sequence[Job], request: Request) -> Question | None:
    """None where a trial would decide nothing: on a GPU, on a described machine, and where all it decides is pinned."""
    pins = pins_of(request)
    here = hardware.device == "cpu" and hardware.source == "os" and packages.torch_build() is not None
    decided = {"attention", "execution"} <= pins.keys() or pins.get("execution") in ("openvino", "compile")
    decided = decided and not hardware.fast_threads
    if not here or not jobs or decided:
        return None
    rows = _rows(model, jobs, request)
    number_type = pins.get("dtype") or ("bf16" if dtype.native_bf16(hardware) else "fp32")
    return Question(work_of(model, jobs, request), number_type, rows)


def work_of(model: Model, jobs: Sequence[Job], request: Request) -> Workload:
    """What a UNet call of the largest job computes."""
    return workload(model, _largest(jobs), request.batch_size * _rows(model, jobs, request))


def _rows(model: Model, jobs: Sequence[Job], request: Request) -> int:
    return 1 if pins_of(request).get("guidance") == "in-turn" else sides(model, _largest(jobs))


def _largest(jobs: Sequence[Job]) -> Job:
    return max(jobs, key=lambda job: job.width * job.height)


def remembered(hardware: Hardware, question: Question | None) -> Hardware:
    """The hardware with what an earlier trial showed, remembered per machine, software and shapes."""
    if question is None:
        return hardware
    return replace(hardware, trial=memories.trial(memories.machine_of(hardware), question.key))


def tried(plan: Plan, question: Question) -> tuple[Hardware, float]:
    """The plan's hardware with what a trial of two seconds showed, which is remembered; and the seconds that loading
    torch for it took, which drawing spends otherwise."""
    started = time.perf_counter()
    found = importlib.import_module("sdcli.draw.local").tried(plan, question.work, question.dtype, question.sides)
    memories.remember_trial(memories.machine_of(plan.hardware), question.key, found)
    return replace(plan.hardware, trial=found), max(0.0, time.perf_counter() - started - found.seconds)


def unprobed(hardware: Hardware) -> bool:
    """Whether a trial of this CPU's number types would decide something, and was not made yet."""
    return _probe_key(hardware) is not None


def _probe_key(hardware: Hardware) -> tuple[str, str, str] | None:
    torch = packages.torch_build()
    if hardware.device != "cpu" or hardware.source != "os" or torch is None or hardware.dtypes.get("bf16") != "assumed":
        return None
    key = (hardware.name, hardware.isa, torch.version)
    return None if key in memories.probes() else key


def probed(hardware: Hardware) -> tuple[Hardware, float]:
    """The hardware with what a trial of a second showed, remembered per processor, instruction set and torch version;
    and the seconds that loading torch for it took, which every other run spends later.

    Only a CPU that claims bf16 is tried: elsewhere the trial would decide nothing.
    """
    key = _probe_key(hardware)
    if key is None:
        return hardware, 0.0
    started = time.perf_counter()
    probe = importlib.import_module("sdcli.draw.local").probe(hardware.device, hardware.threads)
    memories.remember_probe(key, probe)
    tried = replace(hardware, dtypes={**hardware.dtypes, **probe.dtypes})
    return tried, max(0.0, time.perf_counter() - started - probe.seconds)
