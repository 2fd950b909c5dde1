"""Machines by hand: surveys from which devices, reasons and screens follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sdcli.machine import nvml
from sdcli.machine.hardware import Probe
from sdcli.machine.installation import Installation
from sdcli.machine.memories import ProbeKey
from sdcli.machine.memory import Memory
from sdcli.machine.nvml import Gpu, Nvidia
from sdcli.machine.packages import Torch
from sdcli.machine.processor import Processor
from sdcli.machine.survey import Survey
from sdcli.machine.sysfs import SysfsGpu

GIB = 1 << 30
CPU_TORCH = Torch(version="2.13.0+cpu")
CUDA_TORCH = Torch(version="2.13.0+cu130", cuda="13.0")


def gpu(name: str = "NVIDIA GeForce RTX 4060", index: int = 0, capability: str | None = "8.9", gib: int = 8) -> Gpu:
    return Gpu(
        index=index, uuid=f"GPU-{index}", name=name, total=gib * GIB, free=max(0, gib - 1) * GIB, capability=capability,
    )  # fmt: skip


def machine(
    *gpus: Gpu,
    torch: Torch | None = CUDA_TORCH,
    isa: str = "avx2",
    ram: int = 16,
    apple: bool = False,
    environment: Mapping[str, str] | None = None,
    nvidia: Nvidia | None = None,
    driverless: bool = False,
    kind: str = "venv",
    probes: Mapping[ProbeKey, Probe] | None = None,
    others: tuple[SysfsGpu, ...] = (),
) -> Survey:
    nvidia = nvidia or Nvidia(gpus=gpus, driver="581.42" if gpus else None, cuda="13.0" if gpus else None)
    return Survey(
        processor=Processor(name="Apple M2" if apple else "Ryzen 5 5600", isa=isa, cores=6, threads=6, load=0.1),
        memory=Memory(total=ram * GIB, available=(ram - 6) * GIB),
        nvidia=nvidia,
        visible=nvml.visible(nvidia.gpus, environment or {}),
        torch=torch,
        installation=Installation(kind=kind, prefix=Path("/env"), python="/env/bin/python"),
        probes=probes or {},
        apple=apple,
        driverless=driverless,
        others=others,
    )
