"""One look at this machine, and what follows from it: the devices torch can use, and why it cannot use a GPU."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sdcli.errors import DeviceUnusable, Usage
from sdcli.machine import dtypes, installation, memories, memory, nvml, processor
from sdcli.machine.hardware import Hardware, Notice, Probe
from sdcli.machine.installation import Installation, Torch
from sdcli.machine.memories import ProbeKey
from sdcli.machine.memory import Memory
from sdcli.machine.nvml import Card
from sdcli.machine.processor import Processor
from sdcli.terminal import show


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Everything read from this machine once; all else is decided from it."""

    processor: Processor
    memory: Memory
    nvidia: nvml.Report
    visible: tuple[Card, ...]  # in CUDA's order
    torch: Torch | None
    installation: Installation
    probes: Mapping[ProbeKey, Probe] = field(default_factory=dict)  # what was tried on this machine before
    apple: bool = False
    driverless: bool = False  # an NVIDIA card is in the machine, but no driver

    @property
    def hidden(self) -> bool:
        """Whether the environment hides every card there is."""
        return bool(self.nvidia.cards) and not self.visible

    def probe(self, name: str, detail: str) -> Probe | None:
        """Of the device of this name, with the ISA or driver that it has now and the torch that is installed."""
        return self.probes.get((name, detail, self.torch.version if self.torch is not None else ""))


def look() -> Survey:
    """Read this machine. Some milliseconds; nothing of torch is imported and no GPU is woken."""
    nvidia = nvml.read()
    return Survey(
        processor=processor.read(),
        memory=memory.read(),
        nvidia=nvidia,
        visible=nvml.visible(nvidia.cards, os.environ),
        torch=installation.torch_build(),
        installation=installation.find(),
        probes=memories.probes(),
        apple=_is_apple(),
        driverless=not nvidia.cards and nvml.on_the_bus(),
    )


def choose(device: str, survey: Survey) -> Hardware:
    """The device that was asked for, or the reason why it is unavailable. auto: the first GPU torch can use, else
    Apple's GPU, else the CPU."""
    wanted = device.strip().lower()
    if not re.fullmatch(r"auto|cpu|mps|cuda(?::\d{1,3})?", wanted, re.ASCII):
        raise Usage(
            f'--device: "{show(device, 60)}" is not a device; use auto, cpu, cuda, cuda:1 or mps',
            hint="--device auto",
        )
    found = usable(survey)
    if wanted == "auto":
        return found[0]
    for hardware in found:
        if wanted in (hardware.device, hardware.kind):
            return hardware
    raise _missing(wanted, found, survey)


def gpu_warning(hardware: Hardware, asked: str = "auto", survey: Survey | None = None) -> Notice | None:
    """Why the plan is for the CPU although there is an NVIDIA GPU; None where the CPU was asked for."""
    if hardware.kind != "cpu" or hardware.source == "as-if" or asked.strip().lower() == "cpu":
        return None
    return gpu_problem(survey or look())


def gpu_problem(survey: Survey) -> Notice | None:
    """An NVIDIA GPU that cannot be used, with the command that fixes it."""
    if survey.hidden or any(_unusable(card, survey) is None for card in survey.visible):
        return None
    if not survey.visible:
        return _no_driver(survey)
    card = survey.visible[0]
    message = f"{show(short_name(card.name), 60)} is not used: {_unusable(card, survey)}"
    mend = installation.fix(survey.installation, survey.torch, card, survey.nvidia)
    if mend is None:
        message += f"; {installation.no_way(card)}"
    return Notice(code="gpu-unusable", message=message, hint=mend or "sdcli doctor")


def _no_driver(survey: Survey) -> Notice | None:
    if survey.nvidia.broken:
        message = f"the NVIDIA GPU is not used: {show(survey.nvidia.reason)}"
    elif survey.driverless:
        message = "this machine has an NVIDIA GPU, but no driver for it (in a container: start it with --gpus all)"
    else:
        return None
    return Notice(code="gpu-no-driver", message=message, hint="sdcli doctor")


# --- what is found


def usable(survey: Survey) -> tuple[Hardware, ...]:
    """All devices that can be used: the one `auto` takes first, the CPU last."""
    cards = tuple(
        _cuda(number, card, survey)
        for number, card in enumerate(survey.visible)
        if _unusable(card, survey) is None
    )  # fmt: skip
    return (*cards, *((_mps(survey),) if survey.apple else ()), _cpu(survey))


def _unusable(card: Card, survey: Survey) -> str | None:
    return installation.unusable(survey.torch, card, survey.nvidia)


def _cpu(survey: Survey) -> Hardware:
    host, chip = survey.memory, survey.processor
    return Hardware(
        device="cpu",
        name=chip.name,
        source="os",
        total=host.total,
        free=host.available,
        ram_total=host.total,
        ram_free=host.available,
        isa=chip.isa,
        threads=chip.threads,
        dtypes=_probed(dtypes.cpu(chip.isa), survey.probe(chip.name, chip.isa)),
    )


def _cuda(number: int, card: Card, survey: Survey) -> Hardware:
    host, chip = survey.memory, survey.processor
    shared = not card.total  # cards that live in the host's memory have none of their own to tell
    probe = survey.probe(card.name, survey.nvidia.driver or "")
    return Hardware(
        device=f"cuda:{number}",
        name=short_name(card.name),
        source="nvml",
        total=host.total if shared else card.total,
        free=host.available if shared else card.free,
        ram_total=host.total,
        ram_free=host.available,
        capability=card.capability,
        driver=survey.nvidia.driver,
        isa=chip.isa,
        threads=chip.threads,
        dtypes=_probed(dtypes.cuda(card.capability), probe),
        uuid=card.uuid or None,
        notes=dtypes.notes(card.name, card.capability),
    )


def _mps(survey: Survey) -> Hardware:
    host, chip = survey.memory, survey.processor
    most = memory.apple_limit(host.total)
    return Hardware(
        device="mps",
        name=chip.name,
        source="os",
        total=most,
        free=min(most, host.available),
        ram_total=host.total,
        ram_free=host.available,
        isa=chip.isa,
        threads=chip.threads,
        dtypes=dtypes.mps(),
    )


def unusable_cards(survey: Survey) -> tuple[Hardware, ...]:
    """GPUs that exist but cannot be used, with every dtype unavailable: for doctor."""
    return tuple(
        replace(_cuda(number, card, survey), dtypes=dict.fromkeys(dtypes.NAMES, "unavailable"))
        for number, card in enumerate(survey.visible)
        if _unusable(card, survey) is not None
    )


def _missing(wanted: str, found: tuple[Hardware, ...], survey: Survey) -> DeviceUnusable:
    names = " or ".join(hardware.device for hardware in found)
    if wanted == "mps":
        return DeviceUnusable("mps is the GPU of an Apple silicon Mac, which this is not", hint=_try(found[0].device))
    if any(hardware.kind == "cuda" for hardware in found):
        return DeviceUnusable(f"there is no usable {wanted}; there is {names}", hint=_try(found[0].device))
    if survey.hidden:
        return DeviceUnusable("CUDA_VISIBLE_DEVICES hides every NVIDIA GPU of this machine", hint=_unset())
    problem = gpu_problem(survey)
    if problem is None:
        return DeviceUnusable(f"there is no NVIDIA GPU for --device {wanted}", hint=_try(found[0].device))
    return DeviceUnusable(problem.message, hint=problem.hint if problem.hint != "sdcli doctor" else _try("cpu"))


def _try(device: str) -> str:
    return f"--device {device}"


def _unset() -> str:
    return "set CUDA_VISIBLE_DEVICES=" if os.name == "nt" else "unset CUDA_VISIBLE_DEVICES"


def _probed(assumed: dict[str, str], probe: Probe | None) -> dict[str, str]:
    """What a probe on this machine found replaces what is assumed."""
    return assumed if probe is None else {dtype: probe.dtypes.get(dtype, trust) for dtype, trust in assumed.items()}


# --- names


def short_name(name: str) -> str:
    """`RTX 4060` from `NVIDIA GeForce RTX 4060`."""
    return re.sub(r"^(NVIDIA\s+)?(GeForce\s+)?", "", name.strip()) or "NVIDIA GPU"


def _is_apple() -> bool:
    import platform

    return sys.platform == "darwin" and platform.machine() == "arm64"
