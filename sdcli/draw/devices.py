"""What torch offers for each kind of device, in one place: waiting, clocks, memory.

NVIDIA's and AMD's GPUs are both torch.cuda; Intel's are torch.xpu, which answers to the same names.
"""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from sdcli.events import Memory
from sdcli.machine import memory


class Functions:
    """A CPU's: what is asked for is done when the call returns, and its memory is the host's."""

    streams = False  # whether the device works while Python runs ahead, and copies while it computes

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        """Until all work is done."""

    def mark(self) -> Any:
        """A moment; of a device that works on its own, the moment it gets there."""
        return time.perf_counter()

    def between(self, first: Any, last: Any) -> float:
        """Seconds between two marks; waits until the device has passed the second."""
        return float(last - first)

    def empty_cache(self) -> None:
        """Returns what the allocator keeps for later. With the GNU C library that is what the UNet's calls leave
        behind: holes in the heap that the VAE's larger tensors cannot fill. Dropped weights would leave such holes
        too."""
        trim = _trim()
        if trim is not None:
            trim(0)

    def held(self) -> tuple[int | None, int | None]:
        """Bytes the device holds for this process, and the most since the last reset."""
        return memory.resident(), None

    def reserved(self) -> int:
        """Bytes the device would regain from this process, its context excluded."""
        return 0

    def free(self) -> int | None:
        """Bytes free on the device."""
        host = memory.read()
        return host.available if host.total else None

    def total(self) -> int:
        """Bytes of memory; 0 where it has none of its own."""
        return 0

    def peaks(self, phase: str) -> Memory:
        """The most since the last reset, as the event that tells it."""
        return Memory(phase=phase, host_peak=memory.peak())

    def reset_peaks(self) -> None:
        pass

    def keep_within(self, fraction: float) -> None:
        """The most that torch's allocator may take, as a share of the device's memory."""


class Apple(Functions):
    def wait(self) -> None:
        torch.mps.synchronize()

    def empty_cache(self) -> None:
        torch.mps.empty_cache()

    def held(self) -> tuple[int | None, int | None]:
        return torch.mps.current_allocated_memory(), None

    def reserved(self) -> int:
        return int(torch.mps.driver_allocated_memory())

    def peaks(self, phase: str) -> Memory:
        now = self.reserved()
        return replace(super().peaks(phase), device_peak=now, driver_peak=now)


class Gpu(Functions):
    """NVIDIA's, AMD's or Intel's."""

    streams = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._torch: Any = torch.get_device_module(device)

    def wait(self) -> None:
        self._torch.synchronize(self.device)

    def mark(self) -> Any:
        event = self._torch.Event(enable_timing=True)
        event.record(self._torch.current_stream(self.device))
        return event

    def between(self, first: Any, last: Any) -> float:
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000

    def empty_cache(self) -> None:
        self._torch.empty_cache()

    def held(self) -> tuple[int | None, int | None]:
        return self._torch.memory_allocated(self.device), self._torch.max_memory_allocated(self.device)

    def reserved(self) -> int:
        return int(self._torch.memory_reserved(self.device))

    def free(self) -> int | None:
        try:
            return int(self._torch.mem_get_info(self.device)[0])
        except (RuntimeError, AttributeError):  # the device was lost, or its driver does not tell
            return None

    def total(self) -> int:
        return int(self._torch.get_device_properties(self.device).total_memory)

    def peaks(self, phase: str) -> Memory:
        free, reserved = self.free(), self._torch.max_memory_reserved(self.device)
        return replace(
            super().peaks(phase),
            device_peak=reserved,
            reserved_peak=reserved,
            allocated_peak=self._torch.max_memory_allocated(self.device),
            driver_peak=None if free is None else self.total() - free,
            pinned_peak=self._pinned(),
        )

    def _pinned(self) -> int | None:
        counts = getattr(self._torch, "host_memory_stats", None)  # torch.xpu has none
        return None if counts is None else counts().get("allocated_bytes.peak")

    def reset_peaks(self) -> None:
        self._torch.reset_peak_memory_stats(self.device)

    def keep_within(self, fraction: float) -> None:
        limit = getattr(self._torch, "set_per_process_memory_fraction", None)  # torch.xpu has it in later versions
        if limit is not None:
            limit(fraction, self.device)


KINDS: dict[str, type[Functions]] = {"cpu": Functions, "mps": Apple, "cuda": Gpu, "xpu": Gpu}


def functions(device: torch.device | str) -> Functions:
    device = torch.device(device)
    return KINDS.get(device.type, Functions)(device)


def first_usable() -> torch.device:
    """The device that torch itself finds."""
    for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps)):
        if module.is_available():
            return torch.device(kind)
    return torch.device("cpu")


@functools.cache
def side_stream(device: torch.device) -> Any:
    """To capture graphs in. One for all: the matrix library keeps a workspace for each stream it has worked in."""
    return torch.get_device_module(device).Stream(device)


@functools.cache
def _trim() -> Any:
    """glibc's malloc_trim; None with every other C library."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    return getattr(ctypes.CDLL(None), "malloc_trim", None)
