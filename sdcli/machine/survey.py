"""One look at this machine, and what follows from it: the devices torch can use, and why it cannot use a GPU."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sdcli.errors import DeviceUnusable, Usage
from sdcli.machine import dtypes, installation, memories, memory, nvml, packages, processor, sysfs
from sdcli.machine.hardware import Hardware, Notice, Probe
from sdcli.machine.installation import Installation
from sdcli.machine.memories import ProbeKey
from sdcli.machine.memory import Memory
from sdcli.machine.nvml import Gpu
from sdcli.machine.packages import Torch
from sdcli.machine.processor import Processor
from sdcli.machine.sysfs import AMD, SysfsGpu
from sdcli.terminal import show


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Everything read from this machine, once; all decisions follow from it."""

    processor: Processor
    memory: Memory
    nvidia: nvml.Nvidia
    visible: tuple[Gpu, ...]  # NVIDIA's, in CUDA's order
    torch: Torch | None
    installation: Installation
    openvino: bool = False  # whether it is installed
    compilers: frozenset[str] = frozenset()  # kinds of device that torch.compile finds a compiler for
    probes: Mapping[ProbeKey, Probe] = field(default_factory=dict)  # what was tried on this machine before
    apple: bool = False
    driverless: bool = False  # an NVIDIA GPU is in the machine, but no driver
    others: tuple[SysfsGpu, ...] = ()  # AMD's and Intel's

    @property
    def hidden(self) -> bool:
        """Whether the environment hides every NVIDIA GPU there is."""
        return bool(self.nvidia.gpus) and not self.visible

    def probe(self, name: str, detail: str) -> Probe | None:
        """Of the device of this name, with the ISA or driver that it has now and the torch that is installed."""
        return self.probes.get((name, detail, self.torch.version if self.torch is not None else ""))


@dataclass(frozen=True, kw_only=True)
class Found:
    """A GPU in this machine."""

    hardware: Hardware
    unusable: str | None = None  # why torch cannot use it
    fix: str | None = None  # a line to paste
    expected: bool = True  # to be used: an unused one is a problem


def look() -> Survey:
    """Read this machine. Takes milliseconds: torch is not imported, and no GPU is woken."""
    nvidia = nvml.read()
    return Survey(
        processor=processor.read(),
        memory=memory.read(),
        nvidia=nvidia,
        visible=nvml.visible(nvidia.gpus, os.environ),
        torch=packages.torch_build(),
        installation=installation.find(),
        openvino=packages.has("openvino"),
        compilers=frozenset(filter(packages.compiler, ("cpu", "cuda"))),
        probes=memories.probes(),
        apple=_is_apple(),
        driverless=not nvidia.gpus and nvml.on_the_bus(),
        others=sysfs.read(),
    )


def choose(device: str, survey: Survey) -> Hardware:
    """The device that was asked for, or the reason why it is unavailable. auto: the first GPU torch can use, else
    Apple's GPU, else the CPU."""
    name = device.strip().lower()
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(?::\d{1,3})?", name, re.ASCII):
        raise Usage(
            f'--device: "{show(device, 60)}" is not a device; use auto, cpu, cuda, cuda:1, xpu or mps',
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
    """Why the plan is for the CPU although there is a GPU; None where the CPU was asked for."""
    if hardware.kind != "cpu" or hardware.source == "as-if" or hardware.elsewhere or asked.strip().lower() == "cpu":
        return None
    return gpu_problem(survey or look())


def gpu_problem(survey: Survey) -> Notice | None:
    """A GPU that cannot be used, with the command that fixes it; None where another one can."""
    found = gpus(survey)
    if survey.hidden or any(gpu.unusable is None for gpu in found):
        return None
    expected = [gpu for gpu in found if gpu.expected]
    if not survey.visible and (survey.nvidia.broken or survey.driverless):
        return _no_driver(survey)
    return _unused(expected[0]) if expected else None


def _unused(gpu: Found) -> Notice:
    message = f"{show(gpu.hardware.name, 60)} is not used: {gpu.unusable}"
    without = "sdcli doctor" if gpu.hardware.backend == "cuda" else "--device cpu"
    return Notice(code="gpu-unusable", message=message, hint=gpu.fix or without)


def _no_driver(survey: Survey) -> Notice:
    if survey.nvidia.broken:
        message = f"the NVIDIA GPU is not used: {show(survey.nvidia.reason)}"
    else:
        message = "this machine has an NVIDIA GPU, but no driver for it (in a container: start it with --gpus all)"
    return Notice(code="gpu-no-driver", message=message, hint="sdcli doctor")


# --- devices


def usable(survey: Survey) -> tuple[Hardware, ...]:
    """All devices that can be used: the one `auto` takes first, the CPU last."""
    ready = tuple(gpu.hardware for gpu in gpus(survey) if gpu.unusable is None)
    return (*ready, *((_mps(survey),) if survey.apple else ()), _cpu(survey))


def unusable_gpus(survey: Survey) -> tuple[Hardware, ...]:
    """GPUs that exist but cannot be used, with every dtype unavailable: for doctor."""
    return tuple(gpu.hardware for gpu in gpus(survey) if gpu.unusable is not None)


def gpus(survey: Survey) -> tuple[Found, ...]:
    """Every GPU with memory of its own to plan for, Apple's apart. NVIDIA's in CUDA's order; of the others those that
    have memory of their own first, the one with most of it free before the rest."""
    nvidia = [_nvidia(number, gpu, survey) for number, gpu in enumerate(survey.visible)]
    others = [_other(gpu, survey) for gpu in survey.others]
    others.sort(key=lambda gpu: (gpu.hardware.integrated, -gpu.hardware.free))
    return (*nvidia, *others)


def _nvidia(number: int, gpu: Gpu, survey: Survey) -> Found:
    reason = installation.unusable(survey.torch, gpu, survey.nvidia)
    hardware = _cuda(number, gpu, survey)
    if reason is None:
        return Found(hardware=hardware)
    fix = installation.fix(survey.installation, survey.torch, gpu, survey.nvidia)
    because = reason if fix is not None else f"{reason}; {installation.why_no_build(gpu)}"
    return Found(hardware=_without_dtypes(hardware), unusable=because, fix=fix)


def _other(gpu: SysfsGpu, survey: Survey) -> Found:
    """Every second processor has a GPU built in, and old ones no torch supports: that these are not used is a problem
    only where the torch for them is installed."""
    torch = survey.torch
    reason = installation.unusable_by_others(torch, gpu)
    hardware = _amd(gpu, survey) if gpu.vendor == AMD else _xpu(gpu, survey)
    if reason is None:
        return Found(hardware=hardware)
    for_it = torch is not None and bool(torch.hip if gpu.vendor == AMD else torch.xpu)
    shown = gpu.lacking is not None or gpu.number is not None
    return Found(
        hardware=_without_dtypes(hardware),
        unusable=reason,
        fix=installation.fix_for_others(survey.installation, torch, gpu),
        expected=shown and (for_it or installation.worthwhile(gpu)),
    )


def _without_dtypes(hardware: Hardware) -> Hardware:
    return replace(hardware, dtypes=dict.fromkeys(dtypes.NAMES, "unavailable"))


def _device(survey: Survey, **facts: Any) -> Hardware:
    """A device in this host."""
    host, chip = survey.memory, survey.processor
    return Hardware(
        ram_total=host.total,
        ram_free=host.available,
        isa=chip.isa,
        threads=chip.threads,
        fast_threads=chip.fast,
        **facts,
    )


def _cpu(survey: Survey) -> Hardware:
    host, chip = survey.memory, survey.processor
    return _device(
        survey, device="cpu", name=chip.name, source="os", total=host.total, free=host.available,
        dtypes=_probed(dtypes.cpu(chip.isa), survey.probe(chip.name, chip.isa)), openvino=survey.openvino,
        compiler="cpu" in survey.compilers,
    )  # fmt: skip


def _cuda(number: int, gpu: Gpu, survey: Survey) -> Hardware:
    host = survey.memory
    shared = not gpu.total  # a GPU that uses the host's memory reports none of its own
    probe = survey.probe(gpu.name, survey.nvidia.driver or "")
    return _device(
        survey,
        device=f"cuda:{number}",
        name=short_name(gpu.name),
        source="nvml",
        total=host.total if shared else gpu.total,
        free=host.available if shared else gpu.free,
        integrated=shared,
        capability=gpu.capability,
        driver=survey.nvidia.driver,
        dtypes=_probed(dtypes.cuda(gpu.capability), probe),
        compiler="cuda" in survey.compilers,
        uuid=gpu.uuid or None,
        notes=dtypes.notes(gpu.name, gpu.capability),
    )


def _amd(gpu: SysfsGpu, survey: Survey) -> Hardware:
    host = survey.memory
    return _device(
        survey,
        device="cuda" if gpu.number is None else f"cuda:{gpu.number}",
        name=gpu.name,
        source="sysfs",
        total=gpu.total,
        free=min(gpu.free, host.available) if gpu.integrated else gpu.free,
        amd=True,
        integrated=gpu.integrated,
        dtypes=dtypes.rocm(gpu.architecture),
    )


def _xpu(gpu: SysfsGpu, survey: Survey) -> Hardware:
    """Its memory is torch's to tell: 0 until it was asked."""
    device = "xpu" if gpu.number is None else f"xpu:{gpu.number}"
    return _device(
        survey, device=device, name=gpu.name, source="sysfs", total=gpu.total, free=gpu.free,
        integrated=gpu.integrated, dtypes=dtypes.xpu(),
    )  # fmt: skip


def _mps(survey: Survey) -> Hardware:
    host = survey.memory
    most = memory.apple_limit(host.total)
    return _device(
        survey, device="mps", name=survey.processor.name, source="os", total=most, free=min(most, host.available),
        dtypes=dtypes.mps(),
    )  # fmt: skip


_MAKERS = {"cuda": "NVIDIA or AMD", "xpu": "Intel"}


def _missing(name: str, devices: tuple[Hardware, ...], survey: Survey) -> DeviceUnusable:
    names = " or ".join(hardware.device for hardware in devices)
    kind = name.partition(":")[0]
    if name == "mps":
        return DeviceUnusable("mps is the GPU of an Apple silicon Mac; this is not one", hint=_try(devices[0].device))
    if any(hardware.kind == kind for hardware in devices):
        return DeviceUnusable(f"{name} is not available here; use {names}", hint=_try(devices[0].device))
    found = [gpu for gpu in gpus(survey) if gpu.hardware.kind == kind]
    if kind == "cuda" and not found and survey.hidden:
        return DeviceUnusable("CUDA_VISIBLE_DEVICES hides every NVIDIA GPU of this machine", hint=_unset())
    problem = _unused(found[0]) if found else gpu_problem(survey) if kind == "cuda" else None
    if problem is None:
        return DeviceUnusable(f"there is no {_MAKERS[kind]} GPU for --device {name}", hint=_try(devices[0].device))
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
