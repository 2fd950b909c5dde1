"""--devices cpu:auto: into how many processes the CPU's threads are divided, so that a list is drawn soonest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from sdcli.terminal import counted

MOST = 8  # processes that are tried: each has its own copy of the model


class Division(NamedTuple):
    """As many processes, each with as many threads."""

    processes: int
    threads: int

    def __str__(self) -> str:
        """As --devices takes it."""
        return f"cpu:{self.processes}x{self.threads}"

    @property
    def words(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{processes} of {counted(self.threads, 'thread')}"


def divisions(threads: int, batches: int | None) -> tuple[Division, ...]:
    """Every one that uses all threads, and has a batch for each process. `batches` is None where more may follow."""
    most = min(threads, MOST, MOST if batches is None else batches)
    return tuple(Division(count, threads // count) for count in range(1, most + 1) if threads % count == 0)


def soonest(calls: Mapping[Division, float], batches: int | None) -> tuple[Division, str]:
    """And why. `calls`: UNet calls a second of all processes together, as measured on this machine."""

    def seconds(one: Division) -> float:
        rounds = 1.0 if batches is None else math.ceil(batches / one.processes) * one.processes / batches
        return rounds / calls[one]

    best, *others = sorted(calls, key=lambda one: (seconds(one), one.processes))
    if not others:
        return best, f"{best.words}: no other division has a batch and memory for each"
    share = seconds(best) / seconds(others[0])
    take = "takes" if best.processes == 1 else "take"
    return best, f"{best.words} {take} {share:.0%} of the time of {others[0].words}, as measured on this machine"
