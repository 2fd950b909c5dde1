"""What sdcli asks without torch, answered for pretend GPUs: the NVIDIA driver, and which torch is installed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from sdcli.machine import installation, nvml
from sdcli.machine.installation import Torch
from sdcli.plan.calibration import CUDA_CONTEXT
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
        number = self.gpus.index(handle)
        reserved = self.machine.memories[number].allocator.reserved.now
        used = reserved + CUDA_CONTEXT if reserved else 0
        return SimpleNamespace(total=handle.total, free=handle.free - used)


@contextlib.contextmanager
def answered(machine: Machine, devices: list[Device]) -> Iterator[None]:
    import torch

    build = Torch(version=torch.__version__.split("+")[0] + "+cu130", cuda="13.0")
    with (
        _module("pynvml", PretendNvml(machine, devices)),
        mock.patch.object(nvml, "_without_driver", lambda: False),
        mock.patch.object(installation, "torch_build", lambda folder=None: build),
    ):
        yield


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
