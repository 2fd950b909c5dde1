"""One look at this machine, and what follows from it: the devices torch can use, and why it cannot use a card."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sdcli.errors import DeviceUnusable, Usage
from sdcli.machine import dtypes, installation, memory, nvml, processor, state
from sdcli.machine.hardware import Hardware, Notice
from sdcli.machine.installation import Installation, Torch
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
    apple: bool = False
    driverless: bool = False  # an NVIDIA card is in the machine, its driver is not

    @property
    def hidden(self) -> bool:
        """Whether the environment hides every card there is."""
        return bool(self.nvidia.cards) and not self.visible


def look(environment: Mapping[str, str] | None = None) -> Survey:
    """Read this machine. Some milliseconds; nothing of torch is imported and no GPU is woken."""
    environment = os.environ if environment is None else environment
    nvidia = nvml.read()
    return Survey(
        processor=processor.read(environment=environment),
        memory=memory.read(),
        nvidia=nvidia,
        visible=nvml.visible(nvidia.cards, environment),
        torch=installation.torch_build(),
        installation=installation.find(),
        apple=_is_apple(),
        driverless=not nvidia.cards and nvml.on_the_bus(),
    )


def choose(device: str, survey: Survey) -> Hardware:
    """The device that was asked for, or the reason why it cannot be had."""
    wanted = device.strip().lower()
    if not re.fullmatch(r"auto|cpu|mps|cuda(?::\d{1,3})?", wanted, re.ASCII):
        raise Usage(
            f'--device: there is no "{show(device, 60)}"; it is auto, cpu, cuda, cuda:1 or mps',
            hint="--device auto",
        )
    found = usable(survey)
    if wanted == "auto":
        return found[0]
    for hardware in found:
        if wanted in (hardware.device, hardware.kind):
            return hardware
    raise _missing(wanted, found, survey)


def gpu_problem(survey: Survey) -> Notice | None:
    """An NVIDIA card that cannot be used, with the line that mends it."""
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
        message = f"the NVIDIA card is not used: {show(survey.nvidia.reason)}"
    elif survey.driverless:
        message = "an NVIDIA card is in this machine, but its driver is not (in a container: start it with --gpus all)"
    else:
        return None
    return Notice(code="gpu-no-driver", message=message, hint="sdcli doctor")


# --- what is found


def usable(survey: Survey) -> tuple[Hardware, ...]:
    """Cards first, the CPU last."""
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
    version = survey.torch.version if survey.torch is not None else ""
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
        dtypes=_probed(dtypes.cpu(chip.isa), chip.name, chip.isa, version),
    )


def _cuda(number: int, card: Card, survey: Survey) -> Hardware:
    host, chip = survey.memory, survey.processor
    version = survey.torch.version if survey.torch is not None else ""
    shared = not card.total  # cards that live in the host's memory have none of their own to tell
    known = _probed(dtypes.cuda(card.capability), card.name, survey.nvidia.driver or "", version)
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
        dtypes=known,
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
    """Cards that are there but cannot be used, with every dtype unavailable: for doctor."""
    return tuple(
        replace(_cuda(number, card, survey), dtypes=dict.fromkeys(dtypes.NAMES, "unavailable"))
        for number, card in enumerate(survey.visible)
        if _unusable(card, survey) is not None
    )


def _missing(wanted: str, found: tuple[Hardware, ...], survey: Survey) -> DeviceUnusable:
    names = " or ".join(hardware.device for hardware in found)
    if wanted == "mps":
        return DeviceUnusable("mps is the GPU of an Apple silicon Mac, and this is none", hint=_try(found[0].device))
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


def _probed(assumed: dict[str, str], name: str, detail: str, version: str) -> dict[str, str]:
    """What a probe on this machine found replaces what is assumed."""
    probe = state.remembered_probe(name, detail, version)
    if probe is None:
        return assumed
    return {dtype: probe.dtypes.get(dtype, known) for dtype, known in assumed.items()}


# --- names


def short_name(name: str) -> str:
    """`RTX 4060` from `NVIDIA GeForce RTX 4060`."""
    return re.sub(r"^(NVIDIA\s+)?(GeForce\s+)?", "", name.strip()) or "NVIDIA GPU"


def _is_apple() -> bool:
    import platform

    return sys.platform == "darwin" and platform.machine() == "arm64"
