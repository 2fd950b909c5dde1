"""AMD and Intel GPUs as Linux lists them in sysfs: no torch, no library of theirs.

torch's ROCm build numbers AMD's GPUs as the kernel's compute driver (KFD) does. Of Intel's, sysfs tells neither size
nor free memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sdcli.machine import cgroups

AMD, INTEL = "0x1002", "0x8086"
_COMPUTES = ("0x03", "0x12")  # PCI classes: display controllers, processing accelerators
# What AMD builds into processors; they use the host's memory.
_IN_A_PROCESSOR = re.compile(r"gfx(902|909|90c|1013|103[3567]|1103|115.)")
_ON_THE_PROCESSORS_BUS = "0000:00:"  # where Intel's are
_DRIVERS = {AMD: ("amdgpu",), INTEL: ("xe", "i915")}


@dataclass(frozen=True, kw_only=True)
class SysfsGpu:
    """One GPU. Bytes; 0 where Linux does not tell."""

    vendor: str  # AMD | INTEL
    address: str  # on the PCI bus
    name: str
    integrated: bool  # uses the host's memory
    number: int | None = None  # torch's; None where the environment hides it, or nothing computes on it
    total: int = 0
    free: int = 0
    architecture: str | None = None  # AMD's: gfx1100
    uuid: str | None = None  # AMD's, as ROCm spells it
    lacking: str | None = None  # why nothing can compute on it, whichever torch is installed
    remedy: str | None = None  # a line to paste


def read(
    root: Path = Path("/"),
    environment: Mapping[str, str] | None = None,
    may_open: Callable[[Path], bool] = lambda path: os.access(path, os.R_OK | os.W_OK),
) -> tuple[SysfsGpu, ...]:
    """AMD's first, then Intel's, each in torch's order; nothing where there is no sysfs."""
    environment = os.environ if environment is None else environment
    amd = _numbered(list(_amd(root, environment, may_open)), environment)
    return (*amd, *_without_compute(root, {gpu.address for gpu in amd}), *_intel(root, may_open))


# --- AMD


def _amd(root: Path, environment: Mapping[str, str], may_open: Callable[[Path], bool]) -> Iterator[SysfsGpu]:
    """The GPUs among KFD's nodes; the others are processors."""
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("[0-9]*")
    for node in sorted(nodes, key=lambda folder: int(folder.name)):
        facts = _properties(node / "properties")
        target = facts.get("gfx_target_version", 0)
        if not target:
            continue
        architecture = (
            environment.get("HSA_OVERRIDE_GFX_VERSION") or f"{target // 10000}.{target // 100 % 100}.{target % 100}"
        )
        render = f"renderD{facts.get('drm_render_minor', 0)}"
        device = root / "sys/class/drm" / render / "device"
        gfx = _gfx(architecture)
        integrated = _IN_A_PROCESSOR.fullmatch(gfx) is not None
        total, used = _amd_memory(node, device)
        reason, remedy = _closed([root / "dev/kfd", root / "dev/dri" / render], may_open)
        yield SysfsGpu(
            vendor=AMD,
            address=device.resolve().name,
            name=cgroups.read_text(device / "product_name").strip() or _listed_name(device, root) or f"AMD GPU ({gfx})",
            integrated=integrated,
            total=total,
            free=max(0, total - used),
            architecture=gfx,
            uuid=f"GPU-{facts['unique_id']:016x}" if facts.get("unique_id") else None,
            lacking=reason,
            remedy=remedy,
        )


def _gfx(version: str) -> str:
    """gfx90a from 9.0.10."""
    parts = [int(part) if part.isdigit() else 0 for part in f"{version}.0.0".split(".")[:3]]
    return f"gfx{parts[0]}{parts[1]:x}{parts[2]:x}"


def _properties(path: Path) -> dict[str, int]:
    lines = [line.split() for line in cgroups.read_text(path).splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}


def _amd_memory(node: Path, device: Path) -> tuple[int, int]:
    """What HIP reports as the size, and what is in use of it: of a GPU in a processor, the host's memory too."""
    own = cgroups.number(device, "mem_info_vram_total") or 0
    used = cgroups.number(device, "mem_info_vram_used") or 0
    banks = [_properties(bank / "properties") for bank in (node / "mem_banks").glob("[0-9]*")]
    total = sum(bank.get("size_in_bytes", 0) for bank in banks if bank.get("heap_type") in (1, 2)) or own
    if total > own:
        used += cgroups.number(device, "mem_info_gtt_used") or 0
    return total, used


def _numbered(gpus: list[SysfsGpu], environment: Mapping[str, str]) -> tuple[SysfsGpu, ...]:
    """Numbers as HIP gives them: ROCR_VISIBLE_DEVICES chooses among all that can be opened, HIP_VISIBLE_DEVICES (or
    CUDA's) among these."""
    shown = [gpu for gpu in gpus if gpu.lacking is None]
    hip = environment.get("HIP_VISIBLE_DEVICES", environment.get("CUDA_VISIBLE_DEVICES"))
    for names in (environment.get("ROCR_VISIBLE_DEVICES"), hip):
        shown = shown if names is None else _chosen(shown, names)
    numbers = {gpu.address: number for number, gpu in enumerate(shown)}
    return tuple(replace(gpu, number=numbers.get(gpu.address)) for gpu in gpus)


def _chosen(gpus: list[SysfsGpu], names: str) -> list[SysfsGpu]:
    """By numbers or UUIDs; the list ends at the first that is neither."""
    chosen: list[SysfsGpu] = []
    for name in map(str.strip, names.split(",")):
        known = next((gpu for number, gpu in enumerate(gpus) if name in (str(number), gpu.uuid)), None)
        if known is None:
            break
        chosen.append(known)
    return chosen


def _without_compute(root: Path, known: set[str]) -> Iterator[SysfsGpu]:
    """AMD's GPUs on the bus that KFD does not list."""
    for device in on_the_bus(root, AMD):
        if device.name not in known:
            driver = _driver(device)
            reason, remedy = _wrong_driver(driver, AMD)
            if driver == "amdgpu":
                reason = "its driver amdgpu does not offer it to ROCm"
            name = _listed_name(device, root) or "AMD GPU"
            yield SysfsGpu(
                vendor=AMD, address=device.name, name=name, integrated=False, lacking=reason, remedy=remedy
            )  # fmt: skip


# --- Intel


def _intel(root: Path, may_open: Callable[[Path], bool]) -> Iterator[SysfsGpu]:
    gpus = []
    for device in on_the_bus(root, INTEL):
        driver = _driver(device)
        nodes = [root / "dev/dri" / node.name for node in sorted((device / "drm").glob("renderD*"))]
        reason, remedy = _closed(nodes, may_open)
        if driver not in _DRIVERS[INTEL] or not nodes:
            reason, remedy = _wrong_driver(driver, INTEL)
        gpus.append(SysfsGpu(
            vendor=INTEL,
            address=device.name,
            name=_listed_name(device, root) or "Intel GPU",
            integrated=device.name.startswith(_ON_THE_PROCESSORS_BUS),
            lacking=reason,
            remedy=remedy,
        ))  # fmt: skip
    gpus.sort(key=lambda gpu: gpu.integrated)
    numbers = iter(range(len(gpus)))
    for gpu in gpus:
        yield gpu if gpu.lacking else replace(gpu, number=next(numbers))


# --- both


def on_the_bus(root: Path, vendor: str) -> list[Path]:
    """The folders of a vendor's GPUs on the PCI bus."""
    devices = sorted((root / "sys/bus/pci/devices").glob("*"))
    return [
        device
        for device in devices
        if cgroups.read_text(device / "vendor").strip() == vendor
        and cgroups.read_text(device / "class").startswith(_COMPUTES)
    ]


def _driver(device: Path) -> str:
    link = device / "driver"
    return link.resolve().name if link.exists() else ""


def _wrong_driver(driver: str, vendor: str) -> tuple[str, str | None]:
    wanted = " or ".join(_DRIVERS[vendor])
    if driver:
        return f"its driver is {driver}, torch needs {wanted}", None
    return f"no driver holds it; torch needs {wanted}", f"sudo modprobe {_DRIVERS[vendor][0]}"


def _closed(nodes: list[Path], may_open: Callable[[Path], bool]) -> tuple[str | None, str | None]:
    """Which of the files that a GPU is used through this user cannot open, and what helps."""
    for node in nodes:
        shown = "/" + "/".join(node.parts[node.parts.index("dev") :])
        if not node.exists():
            folders = [folder for folder in ("/dev/kfd", "/dev/dri") if any(folder in str(one) for one in nodes)]
            return f"{shown} is missing, as in a container that was not given it", (
                f"start the container with {' '.join(f'--device {folder}' for folder in folders)}"
            )
        if not may_open(node):
            return f"this user may not open {shown}", "sudo usermod -aG render,video $USER   (then log in again)"
    return None, None


def _listed_name(device: Path, root: Path) -> str:
    """The name in the system's list of PCI devices: `Arc A770` of `DG2 [Arc A770]`."""
    vendor, number = (cgroups.read_text(device / name).strip().removeprefix("0x") for name in ("vendor", "device"))
    for place in ("usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids"):
        section = re.search(rf"^{vendor}  .*\n((?:\t.*\n|#.*\n)*)", cgroups.read_text(root / place), re.MULTILINE)
        line = re.search(rf"^\t{number}  (.*)$", section[1], re.MULTILINE) if vendor and section and number else None
        if line is not None:
            bracket = re.search(r"\[(.+)\]", line[1])
            return bracket[1] if bracket else line[1]
    return ""
