"""What torch has to be asked before the plan: number types, tried once since flags and versions alone mislead; and the
memory of GPUs that nobody else tells."""

from __future__ import annotations

import importlib
import time
from dataclasses import replace

from sdcli.machine import installation, memories
from sdcli.machine.hardware import Hardware


def sized(hardware: Hardware) -> tuple[Hardware, float]:
    """The hardware with its memory, and the seconds that loading torch for it took. Intel's GPUs need it: a plan for a
    size that is guessed would be worth nothing."""
    if hardware.source != "sysfs" or hardware.total:
        return hardware, 0.0
    started = time.perf_counter()
    asked = importlib.import_module("sdcli.draw.local").sized(hardware)
    return asked, time.perf_counter() - started


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
