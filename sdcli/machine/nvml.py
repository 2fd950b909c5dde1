"""NVIDIA GPUs through the driver's own library (NVML): no torch, no CUDA context.

NVML counts GPUs in the order of the PCI bus. CUDA by default puts the fastest first, so numbers differ; the
UUID identifies a GPU.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdcli.machine import sysfs

_REASONS = {
    4: "this user may not talk to the NVIDIA driver",
    9: "the NVIDIA driver is not loaded",
    12: "there is no NVIDIA driver",
    13: "the NVIDIA driver is too old to report its GPUs",
    15: "the GPU was lost: restart the machine",
    18: "the NVIDIA driver was updated while in use: restart the machine",
}
_GPU_IS_THERE = (4, 13, 15, 18)  # errors that do not occur on machines without a GPU


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, or one slice of a GPU that is split (MIG). Bytes; 0 where the GPU shares the host's memory."""

    index: int  # in PCI order
    uuid: str
    name: str
    total: int
    free: int
    capability: str | None = None  # "8.6"
    speed: int = 0  # cores × MHz, only to guess CUDA's order
    split: bool = False  # into slices; CUDA then shows a slice instead of the GPU
    slices: tuple[Gpu, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Nvidia:
    """What NVML reported; without GPUs there is a reason."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None  # the newest CUDA this driver can run, "12.8"
    reason: str | None = None
    broken: bool = False  # there is a GPU, but it does not answer


def read(library: Any = None) -> Nvidia:
    """All GPUs, through NVIDIA's own bindings. Never raises: whatever goes wrong becomes the reason."""
    try:
        if library is None and _without_driver():
            return Nvidia(reason=_REASONS[12])
        import pynvml

        return _read(pynvml if library is None else library)
    except Exception as error:  # a foreign library: nothing it does may stop a plan for the CPU
        return Nvidia(reason=f"NVML failed: {type(error).__name__}: {error}")


def _without_driver() -> bool:
    """Loading the driver's library is faster than importing the bindings, which would add 30 ms to every start."""
    if sys.platform != "linux":
        return False
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return True
    return False


def _read(library: Any) -> Nvidia:
    session = _Session(library)
    try:
        library.nvmlInit()
        try:
            return session.read()
        finally:
            session.ask(library.nvmlShutdown)
    except library.NVMLError as error:
        return Nvidia(reason=_because(error), broken=error.value in _GPU_IS_THERE)


def _because(error: Any) -> str:
    return _REASONS.get(error.value, f"NVML answered with error {error.value}")


@dataclass(frozen=True)
class _Session:
    """NVML while it is open."""

    library: Any  # pynvml

    def read(self) -> Nvidia:
        nvml = self.library
        gpus, reason = [], None
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                gpus.append(self.gpu(nvml.nvmlDeviceGetHandleByIndex(index), index))
            except nvml.NVMLError as error:
                reason = f"GPU {index}: {_because(error)}"
        broken = reason is not None
        if not gpus and reason is None:
            reason = "the NVIDIA driver sees no GPU"
        driver = self.ask(nvml.nvmlSystemGetDriverVersion) or None
        return Nvidia(gpus=tuple(gpus), driver=driver, cuda=self.cuda(), reason=reason, broken=broken)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """None where this driver or this GPU does not support the function."""
        try:
            return function(*arguments)
        except (self.library.NVMLError, UnicodeError):
            return None

    def gpu(self, handle: Any, index: int) -> Gpu:
        whole = self.device(handle, index)
        mode = self.ask(self.library.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != 1:
            return whole
        slices = (self.device(part, index) for part in self.slices(handle))
        # Not every driver reports a slice's name and capability; the whole GPU has both.
        named = tuple(replace(part, name=part.name or whole.name, capability=whole.capability) for part in slices)
        return replace(whole, split=True, slices=named)

    def device(self, handle: Any, index: int) -> Gpu:
        nvml = self.library
        memory_info = nvml.nvmlDeviceGetMemoryInfo
        # The second version leaves out what the driver keeps for itself; old drivers have the first.
        memory = self.ask(memory_info, handle, nvml.nvmlMemory_v2) or self.ask(memory_info, handle)
        capability = self.ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        cores = self.ask(nvml.nvmlDeviceGetNumGpuCores, handle) or 0
        clock = self.ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM) or 0
        return Gpu(
            index=index,
            uuid=self.ask(nvml.nvmlDeviceGetUUID, handle) or "",
            name=(self.ask(nvml.nvmlDeviceGetName, handle) or "").strip(),
            total=memory.total if memory else 0,
            free=memory.free if memory else 0,
            capability="{}.{}".format(*capability) if capability else None,
            speed=cores * clock,
        )

    def slices(self, handle: Any) -> Iterator[Any]:
        for number in range(self.ask(self.library.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            part = self.ask(self.library.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            if part is not None:
                yield part

    def cuda(self) -> str | None:
        nvml = self.library
        version = self.ask(nvml.nvmlSystemGetCudaDriverVersion_v2) or self.ask(nvml.nvmlSystemGetCudaDriverVersion)
        return f"{version // 1000}.{version % 1000 // 10}" if version else None


# --- the GPUs that CUDA shows to this process


def visible(gpus: tuple[Gpu, ...], environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs in CUDA's order: the position in this tuple is the number in `cuda:N`.

    CUDA_VISIBLE_DEVICES holds numbers, or UUIDs, or beginnings of UUIDs; the list ends at the first invalid entry
    (so -1 and nonsense hide all that follow), and naming a GPU twice hides all of them.
    """
    ordered = in_cuda_order(gpus, environment.get("CUDA_DEVICE_ORDER"))
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return _shown(ordered)
    entries = [entry.strip() for entry in named.split(",")]
    by_uuid = entries[0].startswith(("GPU-", "MIG-"))
    chosen: list[Gpu] = []
    for entry in entries:
        gpu = _by_uuid(ordered, entry) if by_uuid else _by_number(ordered, entry)
        if gpu is None:
            break
        if gpu in chosen:
            return ()
        chosen.append(gpu)
    return _shown(tuple(chosen))


def in_cuda_order(gpus: tuple[Gpu, ...], order: str | None) -> tuple[Gpu, ...]:
    """PCI_BUS_ID is exact. CUDA's default, fastest first, is undocumented: cores × clock is a guess, and equal GPUs
    stay in PCI order. Before drawing, the device's UUID is compared."""
    if order == "PCI_BUS_ID":
        return tuple(sorted(gpus, key=lambda gpu: gpu.index))
    return tuple(sorted(gpus, key=lambda gpu: (-gpu.speed, gpu.index)))


def _shown(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """CUDA shows the first slice of a split GPU, and nothing of one that has no slices yet."""
    return tuple(gpu.slices[0] if gpu.split else gpu for gpu in gpus if gpu.slices or not gpu.split)


def _by_number(gpus: tuple[Gpu, ...], entry: str) -> Gpu | None:
    match = re.match(r"\+?(\d{1,9})", entry, re.ASCII)  # CUDA reads a number and ignores what follows it
    number = int(match[1]) if match else -1
    return gpus[number] if 0 <= number < len(gpus) else None


def _by_uuid(gpus: tuple[Gpu, ...], entry: str) -> Gpu | None:
    candidates = gpus if entry.startswith("GPU-") else tuple(part for gpu in gpus for part in gpu.slices)
    matches = [gpu for gpu in candidates if len(entry) > len("GPU-") and gpu.uuid.startswith(entry)]
    exact = [gpu for gpu in matches if gpu.uuid == entry]
    return (exact or matches)[0] if exact or len(matches) == 1 else None


# --- a GPU without its driver


def on_the_bus(root: Path = Path("/")) -> bool:
    """Whether the PCI bus holds an NVIDIA display controller (Linux): a GPU whose driver may be missing."""
    return bool(sysfs.on_the_bus(root, "0x10de"))
