"""NVML twice over: a Python object with its functions, and a shared library compiled from a few lines of C."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 1 << 30


@dataclass
class Fake:
    """One card as NVML would tell of it."""

    name: str = "NVIDIA GeForce RTX 4060"
    uuid: str = "GPU-11111111-aaaa-bbbb-cccc-000000000001"
    total: int = 8 * GIB
    free: int = 7 * GIB
    capability: tuple[int, int] = (8, 9)
    cores: int = 3072
    clock: int = 3105
    lost: bool = False
    split: bool = False
    slices: tuple[Fake, ...] = ()


class FakeLibrary:
    """Functions with NVML's signatures; counts how often it was opened and closed."""

    def __init__(
        self, *cards: Fake, driver: str = "581.42", cuda: int = 13000, init: int = 0, old: bool = False
    ) -> None:
        self.cards, self.driver, self.cuda, self.init = list(cards), driver, cuda, init
        self.opened = self.closed = 0
        self.handles: list[Fake] = [*cards, *(part for card in cards for part in card.slices)]
        if not old:  # drivers before 470 lack it
            self.nvmlDeviceGetMemoryInfo_v2 = self._memory_second

    def nvmlInit_v2(self) -> int:
        self.opened += self.init == 0
        return self.init

    def nvmlShutdown(self) -> int:
        self.closed += 1
        return 0

    def nvmlSystemGetDriverVersion(self, buffer: Any, size: Any) -> int:
        buffer.value = self.driver.encode()
        return 0

    def nvmlSystemGetCudaDriverVersion(self, out: Any) -> int:
        out._obj.value = self.cuda
        return 0 if self.cuda else 999

    def nvmlDeviceGetCount_v2(self, out: Any) -> int:
        out._obj.value = len(self.cards)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, out: Any) -> int:
        card = self.cards[index.value]
        out._obj.value = self.handles.index(card) + 1
        return 15 if card.lost else 0

    def _card(self, handle: Any) -> Fake:
        return self.handles[handle.value - 1]

    def nvmlDeviceGetName(self, handle: Any, buffer: Any, size: Any) -> int:
        buffer.value = self._card(handle).name.encode()
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, buffer: Any, size: Any) -> int:
        buffer.value = self._card(handle).uuid.encode()
        return 0

    def _memory_second(self, handle: Any, out: Any) -> int:
        if out._obj.version != ctypes.sizeof(out._obj) | 2 << 24:
            return 25  # what the driver answers to a struct of another version
        out._obj.total, out._obj.free = self._card(handle).total, self._card(handle).free
        return 0 if self._card(handle).total else 3

    def nvmlDeviceGetMemoryInfo(self, handle: Any, out: Any) -> int:
        out._obj.total, out._obj.free = self._card(handle).total, self._card(handle).free
        return 0 if self._card(handle).total else 3

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = self._card(handle).capability
        return 0 if self._card(handle) in self.cards else 3  # a slice does not answer

    def nvmlDeviceGetNumGpuCores(self, handle: Any, out: Any) -> int:
        out._obj.value = self._card(handle).cores
        return 0

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, which: Any, out: Any) -> int:
        out._obj.value = self._card(handle).clock
        return 0

    def nvmlDeviceGetMigMode(self, handle: Any, mode: Any, pending: Any) -> int:
        mode._obj.value = int(self._card(handle).split)
        return 0

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, out: Any) -> int:
        out._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, number: Any, out: Any) -> int:
        parts = self._card(handle).slices
        if number.value >= len(parts):
            return 6
        out._obj.value = self.handles.index(parts[number.value]) + 1
        return 0


SOURCE = r"""
#include <stdio.h>
#include <string.h>
typedef unsigned long long u64;
typedef struct { const char *name, *uuid; u64 total, free; int major, minor; unsigned cores, clock; } card;
static card cards[] = { %(cards)s };
static int opened = 0;
int nvmlInit_v2(void) { if (%(init)d == 0) opened++; return %(init)d; }
int nvmlShutdown(void) { opened--; return 0; }
int fake_open(void) { return opened; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "%%s", "%(driver)s"); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = %(cuda)d; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = opened > 0 ? sizeof cards / sizeof *cards : 0; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = &cards[index]; return 0; }
int nvmlDeviceGetName(card *c, char *text, unsigned size) { snprintf(text, size, "%%s", c->name); return 0; }
int nvmlDeviceGetUUID(card *c, char *text, unsigned size) { snprintf(text, size, "%%s", c->uuid); return 0; }
typedef struct { unsigned version; u64 total, reserved, free, used; } memory2;
typedef struct { u64 total, free, used; } memory1;
#if !%(old)d
int nvmlDeviceGetMemoryInfo_v2(card *c, memory2 *m) {
  if (m->version != (sizeof(memory2) | 2u << 24)) return 25;
  m->total = c->total; m->free = c->free; m->reserved = 1; m->used = c->total - c->free - 1; return 0; }
#endif
int nvmlDeviceGetMemoryInfo(card *c, memory1 *m) {
  m->total = c->total; m->free = c->free; m->used = c->total - c->free; return 0; }
int nvmlDeviceGetCudaComputeCapability(card *c, int *major, int *minor) {
  *major = c->major; *minor = c->minor; return 0; }
int nvmlDeviceGetNumGpuCores(card *c, unsigned *n) { *n = c->cores; return 0; }
int nvmlDeviceGetMaxClockInfo(card *c, int which, unsigned *n) { *n = which == 1 ? c->clock : 0; return 0; }
"""


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compiled(
    folder: Path, *cards: Fake, driver: str = "581.42", cuda: int = 13000, init: int = 0, old: bool = False
) -> Path:
    """A libnvidia-ml.so.1 that knows these cards."""
    rows = ",".join(
        f'{{"{c.name}", "{c.uuid}", {c.total}ull, {c.free}ull, '
        f"{c.capability[0]}, {c.capability[1]}, {c.cores}, {c.clock}}}"
        for c in cards
    )
    source = folder / "nvml.c"
    source.write_text(SOURCE % {"cards": rows, "driver": driver, "cuda": cuda, "init": init, "old": int(old)})
    library = folder / "libnvidia-ml.so.1"
    found = compiler()
    assert found is not None
    subprocess.run([found, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library
