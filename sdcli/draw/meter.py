"""Seconds and bytes, measured: read late on a GPU, which works while Python runs ahead."""

from __future__ import annotations

from typing import Any

import torch

from sdcli.draw import devices
from sdcli.events import Memory
from sdcli.machine import memory


class Meter:
    """The clock and the memory peaks of one device. Peaks are per phase: each reading starts the next count."""

    def __init__(self, device: torch.device) -> None:
        self._device = devices.functions(device)
        self.lag = 1 if self._device.streams else 0  # steps that may still be running when the next one is launched
        self._reset()

    def mark(self) -> Any:
        """A moment; on a GPU the moment it gets there."""
        return self._device.mark()

    def between(self, first: Any, last: Any) -> float:
        """Seconds between two marks; waits until the GPU has passed the second."""
        return self._device.between(first, last)

    def wait(self) -> None:
        """Waits until all work is done, so that the host's clock is right."""
        self._device.wait()

    def now(self) -> tuple[int | None, int | None]:
        """Bytes the device holds for this process, and the most since the phase began."""
        return self._device.held()

    def reserved(self) -> int:
        """Bytes the device would regain from this process, its context excluded."""
        return self._device.reserved()

    def free(self) -> int | None:
        """Bytes free on the device, where that is known."""
        return self._device.free()

    def read(self, phase: str) -> Memory:
        """The phase's peaks; starts the next count."""
        peaks = self._device.peaks(phase)
        self._reset()
        return peaks

    def _reset(self) -> None:
        memory.reset_peak()
        self._device.reset_peaks()
