"""GPUs by hand, since the tests run without an NVIDIA driver: a stand-in for the functions of pynvml that are called,
and a driver's library from a few lines of C, for the real pynvml to load."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pynvml

GIB = 1 << 30


@dataclass
class Fake:
    """One GPU as NVML would report it."""

    name: str = "NVIDIA GeForce RTX 4060"
    uuid: str = "GPU-11111111-aaaa-bbbb-cccc-000000000001"
    total: int = 8 * GIB
    free: int = 7 * GIB
    capability: tuple[int, int] | None = (8, 9)
    cores: int = 3072
    clock: int = 3105
    lost: bool = False
    split: bool = False
    slices: tuple[Fake, ...] = ()


class FakeNvml:
    """pynvml with these GPUs; counts how often it was opened and closed. `lacks`: functions an old driver has not."""

    NVMLError = pynvml.NVMLError
    nvmlMemory_v2 = pynvml.nvmlMemory_v2
    NVML_CLOCK_SM = pynvml.NVML_CLOCK_SM

    def __init__(self, *gpus: Fake, driver: str = "581.42", init: int = 0, lacks: Sequence[str] = ()) -> None:
        self.gpus, self.driver, self.init = gpus, driver, init
        self.opened = self.closed = 0
        for name in lacks:
            setattr(self, name, self._lacking)

    def _lacking(self, *_: object) -> None:
        raise self.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    def nvmlInit(self) -> None:
        if self.init:
            raise self.NVMLError(self.init)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.closed += 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13000

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Fake:
        if self.gpus[index].lost:
            raise self.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.gpus[index]

    def nvmlDeviceGetName(self, handle: Fake) -> str:
        return handle.name

    def nvmlDeviceGetUUID(self, handle: Fake) -> str:
        return handle.uuid

    def nvmlDeviceGetMemoryInfo(self, handle: Fake, version: int | None = None) -> Fake:
        if version and "nvmlDeviceGetMemoryInfo_v2" in vars(self):
            self._lacking()
        if not handle.total:
            raise self.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return handle

    def nvmlDeviceGetCudaComputeCapability(self, handle: Fake) -> tuple[int, int]:
        if handle.capability is None:
            raise self.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return handle.capability

    def nvmlDeviceGetNumGpuCores(self, device: Fake) -> int:
        return device.cores

    def nvmlDeviceGetMaxClockInfo(self, handle: Fake, type: int) -> int:
        return handle.clock

    def nvmlDeviceGetMigMode(self, device: Fake) -> list[int]:
        return [int(device.split), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Fake) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Fake, index: int) -> Fake:
        if index >= len(device.slices):
            raise self.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return device.slices[index]


SOURCE = r"""
#include <stdio.h>
typedef unsigned long long u64;
static int gpus[1];
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "581.42"); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = gpus; return 0; }
int nvmlDeviceGetName(void *gpu, char *text, unsigned size) { snprintf(text, size, "%(name)s"); return 0; }
int nvmlDeviceGetUUID(void *gpu, char *text, unsigned size) { snprintf(text, size, "%(uuid)s"); return 0; }
typedef struct { unsigned version; u64 total, reserved, free, used; } memory2;
int nvmlDeviceGetMemoryInfo_v2(void *gpu, memory2 *memory) {
  if (memory->version != (sizeof(memory2) | 2u << 24)) return 25;
  memory->total = %(total)dull; memory->free = %(free)dull; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor) { *major = 8; *minor = 9; return 0; }
int nvmlDeviceGetNumGpuCores(void *gpu, unsigned *count) { *count = %(cores)d; return 0; }
int nvmlDeviceGetMaxClockInfo(void *gpu, int which, unsigned *mhz) { *mhz = which == 1 ? %(clock)d : 0; return 0; }
"""


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compiled(folder: Path) -> None:
    """A libnvidia-ml.so.1 that reports one GPU, `Fake()`."""
    (folder / "nvml.c").write_text(SOURCE % vars(Fake()))
    command = [str(compiler()), "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(folder / "nvml.c")]
    subprocess.run(command, check=True)
