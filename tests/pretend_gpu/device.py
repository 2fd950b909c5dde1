"""What a pretend GPU is like. Light: reading it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sdcli.plan.calibration import CUDA_CONTEXT
from sdcli.sizes import parse_size

NAMES = {(6, 1): "GTX 1060", (7, 5): "RTX 2070", (8, 6): "RTX 3060", (8, 9): "RTX 4060", (9, 0): "H100"}


@dataclass(frozen=True, kw_only=True)
class Device:
    total: int  # bytes
    free: int  # before this process has done anything with it
    capability: tuple[int, int] = (8, 6)
    number: int = 0

    @property
    def name(self) -> str:
        return f"NVIDIA GeForce {NAMES.get(self.capability, 'RTX')}"

    @property
    def uuid(self) -> str:
        return f"GPU-00000000-0000-0000-0000-{self.number:012d}"

    @property
    def room(self) -> int:
        """For the allocator: what is free, less the context that the first call makes."""
        return max(0, self.free - CUDA_CONTEXT)

    @property
    def workspace(self) -> int:
        """What torch gives the matrix library on such a GPU."""
        return 32 << 20 if self.capability >= (9, 0) else (8 << 20) + (128 << 10)


def device(total: str, free: str | None = None, capability: str = "8.6") -> Device:
    major, minor = map(int, capability.split("."))
    size = parse_size(total)
    return Device(total=size, free=parse_size(free) if free else size, capability=(major, minor))


def numbered(devices: list[Device]) -> list[Device]:
    return [replace(one, number=number) for number, one in enumerate(devices)]
