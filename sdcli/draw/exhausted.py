"""Out of memory with no fallback left: what was needed, what is free, and the mildest change that would fit."""

from __future__ import annotations

import sys

from sdcli.errors import OutOfMemory
from sdcli.machine import memory
from sdcli.plan.plan import Plan, Setup
from sdcli.plan.refusal import remedy
from sdcli.plan.techniques.technique import gib


def exhausted(
    plan: Plan, where: str, because: str, *, setup: Setup | None = None, phase: str | None = None,
    step: int | None = None,
) -> OutOfMemory:  # fmt: skip
    """`setup` is the one that failed last; `need` and `free` refer to its device."""
    need, free = _need(plan, setup or plan.setup), _free(setup or plan.setup)
    numbers = f"{gib(need)} needed" + (f", {gib(free)} free now" if free is not None else "")
    end = "nothing smaller is left to try" if plan.request.fallback else "--no-fallback is set"
    return OutOfMemory(
        f"out of memory {where}: {numbers}; {end} ({because})",
        hint=_hint(plan, need, phase),
        phase=phase, step=step, need=need, free=free,
    )  # fmt: skip


def _hint(plan: Plan, need: int, phase: str | None) -> str:
    if not plan.request.fallback and (plan.fallbacks or phase == "decode"):
        return "the same command without --no-fallback"
    if memory.address_space_left() is not None:
        return "ulimit -v unlimited, then the same command"
    return remedy(plan, below=need) if plan.jobs else "sdcli doctor"


def _need(plan: Plan, setup: Setup) -> int:
    peaks = [fallback.device_peak for fallback in plan.fallbacks if fallback.setup == setup]
    return peaks[0] if peaks else plan.footprint.device_peak


def _free(setup: Setup) -> int | None:
    """Bytes free on the device; on a GPU as torch reports it, if it has been imported."""
    if setup.device in ("cpu", "mps"):
        host = memory.read()
        return host.available if host.total else None
    if "torch" not in sys.modules:
        return None
    from sdcli.draw import devices

    return devices.functions(setup.device).free()
