"""What torch has to be asked before the plan: number types, tried once since flags and versions alone mislead; and the
memory of GPUs that nobody else tells."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from dataclasses import replace

from sdcli.machine import installation, memories
from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.stages import guided
from sdcli.plan.techniques import dtype
from sdcli.plan.workload import workload
from sdcli.request.request import Job


def sized(hardware: Hardware) -> tuple[Hardware, float]:
    """The hardware with its memory, and the seconds that loading torch for it took. Intel's GPUs need it: a plan for a
    size that is guessed would be worth nothing."""
    if hardware.source != "sysfs" or hardware.total:
        return hardware, 0.0
    started = time.perf_counter()
    asked = importlib.import_module("sdcli.draw.local").sized(hardware)
    return asked, time.perf_counter() - started


def tried(
    hardware: Hardware, model: Model, job: Job, pins: Mapping[str, str], *, images: int = 1, again: bool = True
) -> tuple[Hardware, float]:  # fmt: skip
    """The hardware with what a trial of this model's layers showed, remembered per machine, software and shapes; and
    the seconds that loading torch for it took. Without `again` only what is remembered counts."""
    torch = installation.torch_build()
    if hardware.device != "cpu" or hardware.source != "os" or torch is None:
        return hardware, 0.0
    number_type = pins.get("dtype") or ("bf16" if dtype.native_bf16(hardware) else "fp32")
    sides = 2 if guided(model, job) and pins.get("guidance") != "in-turn" else 1
    work = workload(model, job, images * sides)
    machine, key = memories.machine_of(hardware), f"{work.key} {number_type}"
    found = memories.trial(machine, key)
    decided = {"attention", "execution"} <= pins.keys() or pins.get("execution") == "openvino"
    if found is not None or not again or decided:
        return replace(hardware, trial=found), 0.0
    started = time.perf_counter()
    found = importlib.import_module("sdcli.draw.local").tried(work, number_type, hardware.threads)
    memories.remember_trial(machine, key, found)
    return replace(hardware, trial=found), max(0.0, time.perf_counter() - started - found.seconds)


def probed(hardware: Hardware) -> tuple[Hardware, float]:
    """The hardware with what a trial of a second showed, remembered per processor, instruction set and torch version;
    and the seconds that loading torch for it took, which every other run spends later.

    Only a CPU that claims bf16 is tried: elsewhere the trial would decide nothing.
    """
    torch = installation.torch_build()
    if hardware.device != "cpu" or hardware.source != "os" or torch is None or hardware.dtypes.get("bf16") != "assumed":
        return hardware, 0.0
    key = (hardware.name, hardware.isa, torch.version)
    if key in memories.probes():
        return hardware, 0.0
    started = time.perf_counter()
    probe = importlib.import_module("sdcli.draw.local").probe(hardware.device, hardware.threads)
    memories.remember_probe(key, probe)
    tried = replace(hardware, dtypes={**hardware.dtypes, **probe.dtypes})
    return tried, max(0.0, time.perf_counter() - started - probe.seconds)
