"""What a pretend GPU is like. Light: reading it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sdcli.machine.memory import apple_limit
from sdcli.plan.calibration import context
from sdcli.sizes import parse_size

BACKENDS = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "mps": "mps"}  # with what torch calls its devices
NAMES = {(6, 1): "GTX 1060", (7, 5): "RTX 2070", (8, 6): "RTX 3060", (8, 9): "RTX 4060", (9, 0): "H100"}


@dataclass(frozen=True, kw_only=True)
class Device:
    total: int  # bytes
    free: int  # before this process has done anything with it
    capability: tuple[int, int] = (8, 6)
    number: int = 0
    backend: str = "cuda"

    @property
    def kind(self) -> str:
        return BACKENDS[self.backend]

    @property
    def name(self) -> str:
        if self.backend != "cuda":
            return {"rocm": "Radeon RX 7900 XTX", "xpu": "Arc A770", "mps": "Apple M2"}[self.backend]
        return f"NVIDIA GeForce {NAMES.get(self.capability, 'RTX')}"

    @property
    def uuid(self) -> str:
        return f"GPU-00000000-0000-0000-0000-{self.number:012d}"

    @property
    def room(self) -> int:
        """For the allocator: what is free, less the context that the first call makes. Of a Mac's memory, which is the
        host's, as much as its GPU may hold."""
        if self.backend == "mps":
            return min(apple_limit(self.total), self.free)
        return max(0, self.free - context(self.backend))

    @property
    def workspace(self) -> int:
        """What torch gives the matrix library on such a GPU."""
        return 32 << 20 if self.capability >= (9, 0) else (8 << 20) + (128 << 10)


def device(total: str, free: str | None = None, capability: str = "8.6", kind: str = "cuda") -> Device:
    """`kind`: cuda, rocm, xpu, or mps, which is a Mac of that size."""
    major, minor = map(int, capability.split("."))
    size = parse_size(total)
    return Device(total=size, free=parse_size(free) if free else size, capability=(major, minor), backend=kind)


def numbered(devices: list[Device]) -> list[Device]:
    return [replace(one, number=number) for number, one in enumerate(devices)]
