"""Seconds and bytes, measured: read late on a GPU, which works while Python runs ahead."""

from __future__ import annotations

import time
from typing import Any

import torch

from sdcli.events import Memory
from sdcli.machine import memory


class Meter:
    """The clock and the memory peaks of one device. Peaks are per phase: each reading starts the next count."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_cuda = device.type == "cuda"
        self.lag = 1 if self.on_cuda else 0  # steps that may still be running when the next one is launched
        self._reset()

    def mark(self) -> Any:
        """A moment; on CUDA the moment the GPU gets there."""
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, first: Any, last: Any) -> float:
        """Seconds between two marks; waits until the GPU has passed the second."""
        if not self.on_cuda:
            return float(last - first)
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000

    def wait(self) -> None:
        """Waits until all work is done, so that the host's clock is right."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def now(self) -> tuple[int | None, int | None]:
        """Bytes the device holds for this process, and the most since the phase began."""
        if self.on_cuda:
            return torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.current_allocated_memory(), None
        return memory.resident(), None

    def reserved(self) -> int:
        """Bytes the device would regain from this process, its context excluded."""
        if self.on_cuda:
            return int(torch.cuda.memory_reserved(self.device))
        return int(torch.mps.driver_allocated_memory()) if self.device.type == "mps" else 0

    def read(self, phase: str) -> Memory:
        """The phase's peaks; starts the next count."""
        host = memory.peak()
        if not self.on_cuda:
            on_mps = torch.mps.driver_allocated_memory() if self.device.type == "mps" else None
            self._reset()
            return Memory(phase=phase, host_peak=host, device_peak=on_mps, driver_peak=on_mps)
        free, total = torch.cuda.mem_get_info(self.device)
        reserved = torch.cuda.max_memory_reserved(self.device)
        pinned = torch.cuda.host_memory_stats().get("allocated_bytes.peak")
        peaks = Memory(
            phase=phase, host_peak=host, device_peak=reserved, reserved_peak=reserved,
            allocated_peak=torch.cuda.max_memory_allocated(self.device), driver_peak=total - free, pinned_peak=pinned,
        )  # fmt: skip
        self._reset()
        return peaks

    def _reset(self) -> None:
        memory.reset_peak()
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
