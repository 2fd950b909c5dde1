"""A pretend GPU: the whole path of drawing on it runs, on the CPU's numbers, and every byte of it is counted.

`pretend(device("8GiB"))` is a context in which torch, the driver and so all of sdcli believe in it: one of NVIDIA, or
with `kind=` of AMD ("rocm"), Intel ("xpu") or Apple ("mps", in the host's memory). It cannot tell time, nor what the
driver and cuDNN take for themselves. With `blank=True` nothing is computed and all images are black: enough to count
the bytes of a full-size model in seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.pretend_gpu.allocator import Allocator
from tests.pretend_gpu.device import Device, device, numbered

if TYPE_CHECKING:
    from tests.pretend_gpu.tensors import Machine, Traffic

__all__ = ["Device", "Pretended", "device", "pretend"]


@dataclass(frozen=True)
class Pretended:
    """The counts, while it lasts and after."""

    machine: Machine

    @property
    def traffic(self) -> Traffic:
        return self.machine.traffic

    def restart(self) -> Traffic:
        """Counts anew; gives what was counted until now."""
        counted, self.machine.traffic = self.machine.traffic, type(self.machine.traffic)()
        return counted

    def allocator(self, number: int = 0) -> Allocator:
        return self.machine.memories[number].allocator

    def held(self, number: int = 0) -> int:
        """Bytes of tensors now, the matrix library's workspace not among them."""
        return self.machine.memories[number].held

    def workspace(self, number: int = 0) -> int:
        """What the matrix library keeps."""
        return self.allocator(number).allocated.now - self.held(number)

    def fail_at(self, allocation: int) -> None:
        """Lets the first GPU find no memory at one allocation, counted from now."""
        self.machine.memories[0].fail_at = allocation


@contextlib.contextmanager
def pretend(*devices: Device, blank: bool = False) -> Iterator[Pretended]:
    from tests.pretend_gpu import driver, runtime
    from tests.pretend_gpu.tensors import Bindings, Machine, Memory, Operators

    chosen = numbered(list(devices) or [device("8GiB")])
    machine = Machine(chosen[0].kind, (Memory(Allocator(one.room), one.workspace) for one in chosen), blank)
    with (
        runtime.answered(machine, chosen),
        driver.answered(machine, chosen),
        Bindings(machine),
        Operators(machine),
    ):
        yield Pretended(machine)
