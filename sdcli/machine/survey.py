"""One look at this machine, and what follows from it: the devices torch can use, and why it cannot use a GPU."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sdcli.errors import DeviceUnusable, Usage
from sdcli.machine import dtypes, installation, memories, memory, nvml, processor
from sdcli.machine.hardware import Hardware, Notice, Probe
from sdcli.machine.installation import Installation, Torch
from sdcli.machine.memories import ProbeKey
from sdcli.machine.memory import Memory
from sdcli.machine.nvml import Gpu
from sdcli.machine.processor import Processor
from sdcli.terminal import show


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Everything read from this machine, once; all decisions follow from it."""

    processor: Processor
    memory: Memory
    nvidia: nvml.Nvidia
    visible: tuple[Gpu, ...]  # in CUDA's order
    torch: Torch | None
    installation: Installation
    probes: Mapping[ProbeKey, Probe] = field(default_factory=dict)  # what was tried on this machine before
    apple: bool = False
    driverless: bool = False  # an NVIDIA GPU is in the machine, but no driver

    @property
    def hidden(self) -> bool:
        """Whether the environment hides every GPU there is."""
        return bool(self.nvidia.gpus) and not self.visible

    def probe(self, name: str, detail: str) -> Probe | None:
        """Of the device of this name, with the ISA or driver that it has now and the torch that is installed."""
        return self.probes.get((name, detail, self.torch.version if self.torch is not None else ""))


def look() -> Survey:
    """Read this machine. Takes milliseconds: torch is not imported, and no GPU is woken."""
    nvidia = nvml.read()
    return Survey(
        processor=processor.read(),
        memory=memory.read(),
        nvidia=nvidia,
        visible=nvml.visible(nvidia.gpus, os.environ),
        torch=installation.torch_build(),
        installation=installation.find(),
        probes=memories.probes(),
        apple=_is_apple(),
        driverless=not nvidia.gpus and nvml.on_the_bus(),
    )


def choose(device: str, survey: Survey) -> Hardware:
    """The device that was asked for, or the reason why it is unavailable. auto: the first GPU torch can use, else
    Apple's GPU, else the CPU."""
    name = device.strip().lower()
    if not re.fullmatch(r"auto|cpu|mps|cuda(?::\d{1,3})?", name, re.ASCII):
        raise Usage(
            f'--device: "{show(device, 60)}" is not a device; use auto, cpu, cuda, cuda:1 or mps',
            hint="--device auto",
        )
    devices = usable(survey)
    if name == "auto":
        return devices[0]
    for hardware in devices:
        if name in (hardware.device, hardware.kind):
            return hardware
    raise _missing(name, devices, survey)


def gpu_warning(hardware: Hardware, asked: str = "auto", survey: Survey | None = None) -> Notice | None:
    """Why the plan is for the CPU although there is an NVIDIA GPU; None where the CPU was asked for."""
    if hardware.kind != "cpu" or hardware.source == "as-if" or asked.strip().lower() == "cpu":
        return None
    return gpu_problem(survey or look())


def gpu_problem(survey: Survey) -> Notice | None:
    """An NVIDIA GPU that cannot be used, with the command that fixes it."""
    if survey.hidden or any(_unusable(gpu, survey) is None for gpu in survey.visible):
        return None
    if not survey.visible:
        return _no_driver(survey)
    gpu = survey.visible[0]
    message = f"{show(short_name(gpu.name), 60)} is not used: {_unusable(gpu, survey)}"
    command = installation.fix(survey.installation, survey.torch, gpu, survey.nvidia)
    if command is None:
        message += f"; {installation.why_no_build(gpu)}"
    return Notice(code="gpu-unusable", message=message, hint=command or "sdcli doctor")


def _no_driver(survey: Survey) -> Notice | None:
    if survey.nvidia.broken:
        message = f"the NVIDIA GPU is not used: {show(survey.nvidia.reason)}"
    elif survey.driverless:
        message = "this machine has an NVIDIA GPU, but no driver for it (in a container: start it with --gpus all)"
    else:
        return None
    return Notice(code="gpu-no-driver", message=message, hint="sdcli doctor")


# --- devices


def usable(survey: Survey) -> tuple[Hardware, ...]:
    """All devices that can be used: the one `auto` takes first, the CPU last."""
    gpus = tuple(
        _cuda(number, gpu, survey)
        for number, gpu in enumerate(survey.visible)
        if _unusable(gpu, survey) is None
    )  # fmt: skip
    return (*gpus, *((_mps(survey),) if survey.apple else ()), _cpu(survey))


def _unusable(gpu: Gpu, survey: Survey) -> str | None:
    return installation.unusable(survey.torch, gpu, survey.nvidia)


def _cpu(survey: Survey) -> Hardware:
    host, chip = survey.memory, survey.processor
    return Hardware(
        device="cpu",
        name=chip.name,
        source="os",
        total=host.total,
        free=host.available,
        dtypes=_probed(dtypes.cpu(chip.isa), survey.probe(chip.name, chip.isa)),
        **_around(survey),
    )


def _cuda(number: int, gpu: Gpu, survey: Survey) -> Hardware:
    host = survey.memory
    shared = not gpu.total  # a GPU that uses the host's memory reports none of its own
    probe = survey.probe(gpu.name, survey.nvidia.driver or "")
    return Hardware(
        device=f"cuda:{number}",
        name=short_name(gpu.name),
        source="nvml",
        total=host.total if shared else gpu.total,
        free=host.available if shared else gpu.free,
        capability=gpu.capability,
        driver=survey.nvidia.driver,
        dtypes=_probed(dtypes.cuda(gpu.capability), probe),
        uuid=gpu.uuid or None,
        notes=dtypes.notes(gpu.name, gpu.capability),
        **_around(survey),
    )


def _mps(survey: Survey) -> Hardware:
    host = survey.memory
    most = memory.apple_limit(host.total)
    return Hardware(
        device="mps",
        name=survey.processor.name,
        source="os",
        total=most,
        free=min(most, host.available),
        dtypes=dtypes.mps(),
        **_around(survey),
    )


def _around(survey: Survey) -> dict[str, Any]:
    """The host, whatever the device."""
    host, chip = survey.memory, survey.processor
    return {"ram_total": host.total, "ram_free": host.available, "isa": chip.isa, "threads": chip.threads}


def unusable_gpus(survey: Survey) -> tuple[Hardware, ...]:
    """GPUs that exist but cannot be used, with every dtype unavailable: for doctor."""
    return tuple(
        replace(_cuda(number, gpu, survey), dtypes=dict.fromkeys(dtypes.NAMES, "unavailable"))
        for number, gpu in enumerate(survey.visible)
        if _unusable(gpu, survey) is not None
    )


def _missing(name: str, devices: tuple[Hardware, ...], survey: Survey) -> DeviceUnusable:
    names = " or ".join(hardware.device for hardware in devices)
    if name == "mps":
        return DeviceUnusable("mps is the GPU of an Apple silicon Mac; this is not one", hint=_try(devices[0].device))
    if any(hardware.kind == "cuda" for hardware in devices):
        return DeviceUnusable(f"{name} is not available here; use {names}", hint=_try(devices[0].device))
    if survey.hidden:
        return DeviceUnusable("CUDA_VISIBLE_DEVICES hides every NVIDIA GPU of this machine", hint=_unset())
    problem = gpu_problem(survey)
    if problem is None:
        return DeviceUnusable(f"there is no NVIDIA GPU for --device {name}", hint=_try(devices[0].device))
    return DeviceUnusable(problem.message, hint=problem.hint if problem.hint != "sdcli doctor" else _try("cpu"))


def _try(device: str) -> str:
    return f"--device {device}"


def _unset() -> str:
    return "set CUDA_VISIBLE_DEVICES=" if os.name == "nt" else "unset CUDA_VISIBLE_DEVICES"


def _probed(assumed: dict[str, str], probe: Probe | None) -> dict[str, str]:
    """A probe on this machine replaces what is assumed."""
    return assumed if probe is None else {dtype: probe.dtypes.get(dtype, trust) for dtype, trust in assumed.items()}


# --- names


def short_name(name: str) -> str:
    """`RTX 4060` from `NVIDIA GeForce RTX 4060`."""
    return re.sub(r"^(NVIDIA\s+)?(GeForce\s+)?", "", name.strip()) or "NVIDIA GPU"


def _is_apple() -> bool:
    import platform

    return sys.platform == "darwin" and platform.machine() == "arm64"
