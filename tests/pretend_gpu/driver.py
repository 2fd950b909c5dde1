"""What sdcli asks without torch, answered for pretend GPUs: the NVIDIA driver or Linux's folders of AMD's and Intel's
GPUs, a Mac's memory, and which torch is installed."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from sdcli.machine import installation, memory, nvml, packages, survey, sysfs
from sdcli.machine.packages import Torch
from sdcli.plan.calibration import context
from tests.machine import sysfs_by_hand
from tests.machine.nvml_by_hand import Fake, FakeNvml
from tests.pretend_gpu.device import Device
from tests.pretend_gpu.tensors import Machine


class PretendNvml(FakeNvml):
    """Tells of memory as it is while the GPUs are in use."""

    def __init__(self, machine: Machine, devices: list[Device]) -> None:
        self.machine, self.devices = machine, devices
        super().__init__(*(
            Fake(name=one.name, uuid=one.uuid, total=one.total, free=one.free, capability=one.capability)
            for one in devices
        ))  # fmt: skip

    def nvmlDeviceGetMemoryInfo(self, handle: Fake, version: int | None = None) -> Any:
        used = _used(self.machine, self.devices[self.gpus.index(handle)])
        return SimpleNamespace(total=handle.total, free=handle.total - used)


@contextlib.contextmanager
def answered(machine: Machine, devices: list[Device]) -> Iterator[None]:
    backend = devices[0].backend
    with contextlib.ExitStack() as stack:
        build = _torch_for(backend)
        stack.enter_context(mock.patch.object(packages, "torch_build", lambda folder=None: build))
        if backend == "cuda":
            stack.enter_context(_module("pynvml", PretendNvml(machine, devices)))
            stack.enter_context(mock.patch.object(nvml, "_without_driver", lambda: False))
        else:
            stack.enter_context(mock.patch.object(nvml, "read", lambda: nvml.Nvidia()))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        read = _sysfs(folder, machine, devices)
        stack.enter_context(mock.patch.object(sysfs, "read", read))
        stack.enter_context(mock.patch.object(installation, "_loads", lambda library: True))
        if backend == "mps":
            stack.enter_context(mock.patch.object(survey, "_is_apple", lambda: True))
            stack.enter_context(mock.patch.object(memory, "read", lambda *_: _shared(machine, devices[0])))
        yield


def _torch_for(backend: str) -> Torch:
    import torch

    version = torch.__version__.split("+")[0]
    return {
        "cuda": Torch(version=f"{version}+cu130", cuda="13.0"),
        "rocm": Torch(version=f"{version}+rocm7.2", hip="7.2"),
        "xpu": Torch(version=f"{version}+xpu", xpu=True),
        "mps": Torch(version=version),
    }[backend]


def _used(machine: Machine, one: Device) -> int:
    """Of the device's memory, this process's included."""
    reserved = machine.memories[one.number].allocator.reserved.now
    return one.total - one.free + (reserved + context(one.backend) if reserved else 0)


def _sysfs(root: Path, machine: Machine, devices: list[Device]) -> Callable[[], tuple[sysfs.SysfsGpu, ...]]:
    """Reads the real files of a folder that shows these GPUs."""
    folders = []
    for one in devices:
        if one.backend == "rocm":
            folders.append((one, sysfs_by_hand.amd(root, one.number, total=one.total, used=0)))
        elif one.backend == "xpu":
            sysfs_by_hand.intel(root, one.number)
    real = sysfs.read

    def read() -> tuple[sysfs.SysfsGpu, ...]:
        for one, folder in folders:
            (folder / "mem_info_vram_used").write_text(f"{_used(machine, one)}\n")
        return real(root, {})

    return read


def _shared(machine: Machine, mac: Device) -> memory.Memory:
    return memory.Memory(total=mac.total, available=max(0, mac.total - _used(machine, mac)))


@contextlib.contextmanager
def _module(name: str, instead: Any) -> Iterator[None]:
    """Only this one: what is imported meanwhile stays."""
    before = sys.modules.get(name)
    sys.modules[name] = instead
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
