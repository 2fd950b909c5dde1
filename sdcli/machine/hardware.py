"""Where it will run: devices, memory free now, cores and instruction sets; read without torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sdcli.errors import DeviceUnusable, Usage
from sdcli.machine import installation, memory, nvml, processor, state
from sdcli.machine.installation import Installation, Torch
from sdcli.machine.memory import Memory
from sdcli.machine.nvml import Card
from sdcli.machine.processor import Processor
from sdcli.schema import live
from sdcli.terminal import show

GIB = 1 << 30
DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device and the host around it. Bytes; on a CPU `total` and `free` are the host's."""

    device: str  # cpu | cuda:0 | mps
    name: str
    source: str  # nvml | os | as-if
    total: int
    free: int
    ram_total: int
    ram_free: int
    capability: str | None = None  # CUDA compute capability, "8.6"
    driver: str | None = None
    isa: str = ""  # avx2 | avx512 | avx512_bf16 | amx | neon …
    threads: int = 1  # physical cores this process may use
    dtypes: Mapping[str, str] = field(default_factory=dict)  # name → probed | assumed | unavailable
    uuid: str | None = live(default=None)
    notes: tuple[str, ...] = live(default=())  # what a person should know of this device
    executions: tuple[str, ...] = live(default=("eager", "compile"))  # ways to launch the UNet that are installed

    @property
    def kind(self) -> str:
        return self.device.split(":", 1)[0]


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


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One thing a person should hear, with a line to paste."""

    code: str
    message: str
    hint: str


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


def detect(
    device: str = "auto", environment: Mapping[str, str] | None = None, survey: Survey | None = None
) -> Hardware:
    """The device that was asked for. auto: the first card torch can use, else Apple's GPU, else the CPU."""
    wanted = device.strip().lower()
    if not re.fullmatch(r"auto|cpu|mps|cuda(?::\d{1,3})?", wanted, re.ASCII):
        raise Usage(
            f'--device: there is no "{show(device, 60)}"; it is auto, cpu, cuda, cuda:1 or mps',
            hint='sdcli generate "a cat" --device auto',
        )
    survey = look(environment) if survey is None else survey
    found = _found(survey)
    if wanted == "auto":
        return found[0]
    for hardware in found:
        if wanted in (hardware.device, hardware.kind):
            return hardware
    raise _missing(wanted, found, survey)


def devices(environment: Mapping[str, str] | None = None, survey: Survey | None = None) -> tuple[Hardware, ...]:
    """All devices that can be used, the one `auto` takes first, the CPU last."""
    return _found(look(environment) if survey is None else survey)


def gpu_warning(hardware: Hardware, survey: Survey | None = None) -> Notice | None:
    """Why the plan is for the CPU although there is an NVIDIA card; None where that is meant or there is none."""
    if hardware.kind != "cpu" or hardware.source == "as-if":
        return None
    return gpu_problem(look() if survey is None else survey)


def gpu_problem(survey: Survey) -> Notice | None:
    """An NVIDIA card that cannot be used, with the line that mends it."""
    if survey.hidden or any(_unusable(card, survey) is None for card in survey.visible):
        return None
    if not survey.visible:
        return _no_driver(survey)
    card = survey.visible[0]
    reason = _unusable(card, survey) or ""
    mend = installation.fix(survey.installation, survey.torch, card, survey.nvidia)
    name = show(short_name(card.name), 60)
    if mend is None:
        lowest = installation.LOWEST_DRIVER
        older = card.capability is not None and float(card.capability) < 5.0
        way = "no torch supports this card any more" if older else f"a driver from {lowest} on is needed"
        return Notice(code="gpu-unusable", message=f"{name} is not used: {reason}; {way}", hint="sdcli doctor")
    return Notice(code="gpu-unusable", message=f"{name} is not used: {reason}", hint=mend)


def _no_driver(survey: Survey) -> Notice | None:
    if survey.nvidia.driver is not None or survey.driverless:
        reason = survey.nvidia.reason or "the driver shows no card"
        return Notice(code="gpu-no-driver", message=f"an NVIDIA card is not used: {show(reason)}", hint="sdcli doctor")
    return None


# --- what is found


def _found(survey: Survey) -> tuple[Hardware, ...]:
    usable = tuple(
        _cuda(number, card, survey)
        for number, card in enumerate(survey.visible)
        if _unusable(card, survey) is None
    )  # fmt: skip
    return (*usable, *((_mps(survey),) if survey.apple else ()), _cpu(survey))


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
        dtypes=_probed(cpu_dtypes(chip.isa), chip.name, chip.isa, version),
    )


def _cuda(number: int, card: Card, survey: Survey) -> Hardware:
    host, chip = survey.memory, survey.processor
    version = survey.torch.version if survey.torch is not None else ""
    shared = not card.total  # cards that live in the host's memory have none of their own to tell
    dtypes = _probed(cuda_dtypes(card.capability), card.name, survey.nvidia.driver or "", version)
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
        dtypes=dtypes,
        uuid=card.uuid or None,
        notes=cuda_notes(card.name, card.capability),
    )


def _mps(survey: Survey) -> Hardware:
    host, chip = survey.memory, survey.processor
    most = apple_limit(host.total)
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
        dtypes=mps_dtypes(),
    )


def unusable_cards(survey: Survey) -> tuple[Hardware, ...]:
    """Cards that are there but cannot be used, with every dtype unavailable: for doctor."""
    return tuple(
        replace(_cuda(number, card, survey), dtypes=dict.fromkeys(DTYPES, "unavailable"))
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
    return f'sdcli generate "a cat" --device {device}'


def _unset() -> str:
    return "set CUDA_VISIBLE_DEVICES=" if os.name == "nt" else "unset CUDA_VISIBLE_DEVICES"


# --- number types


def cpu_dtypes(isa: str) -> dict[str, str]:
    """bf16 only where the CPU has instructions for it: emulated it is 3 to 500 times slower than fp32."""
    native = "bf16" in isa or isa == "amx"
    return {"fp32": "assumed", "bf16": "assumed" if native else "unavailable", "fp16": "unavailable"}


def cuda_dtypes(capability: str | None) -> dict[str, str]:
    """fp16 from 5.3 on, bf16 from Ampere (8.0) on; an unknown card is taken for a recent one."""
    known = float(capability) if capability else 8.6
    return {
        "fp32": "assumed",
        "bf16": "assumed" if known >= 8.0 else "unavailable",
        "fp16": "assumed" if known >= 5.3 else "unavailable",
    }


def mps_dtypes() -> dict[str, str]:
    return {"fp32": "assumed", "bf16": "unavailable", "fp16": "assumed"}


def cuda_notes(name: str, capability: str | None) -> tuple[str, ...]:
    """GTX 16xx are Turing without tensor cores; half precision gives black or green pictures on some of them."""
    if capability == "7.5" and re.search(r"GTX 16\d\d", name):
        return ("fp16 can fail on GTX 16xx cards: black pictures are drawn again in fp32, or use --dtype fp32",)
    return ()


def _probed(dtypes: dict[str, str], name: str, detail: str, version: str) -> dict[str, str]:
    """What a probe on this machine found replaces what is assumed."""
    probe = state.remembered_probe(name, detail, version)
    if probe is None:
        return dtypes
    return {dtype: probe.dtypes.get(dtype, assumed) for dtype, assumed in dtypes.items()}


# --- names and limits


def short_name(name: str) -> str:
    """`RTX 4060` from `NVIDIA GeForce RTX 4060`."""
    return re.sub(r"^(NVIDIA\s+)?(GeForce\s+)?", "", name.strip()) or "NVIDIA GPU"


def apple_limit(total: int) -> int:
    """What macOS lets the GPU hold of the shared memory unless told otherwise: two thirds up to 36 GiB, then 3/4."""
    return total * 2 // 3 if total <= 36 * GIB else total * 3 // 4


def _is_apple() -> bool:
    import platform

    return sys.platform == "darwin" and platform.machine() == "arm64"
