"""--devices cpu:auto: which division of the CPU's threads among processes is the fastest, measured once on this machine
for a model's layers, and remembered."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from sdcli.asking import probing
from sdcli.machine import memories
from sdcli.plan.plan import Plan
from sdcli.plan.processes import Division, soonest


def chosen(plan: Plan, possible: Sequence[Division], batches: int | None, may_try: bool) -> tuple[Division, str]:
    """And why. `plan` is that of the whole CPU in one process, `batches` None where more may follow."""
    alone = possible[0] if possible else Division(1, plan.hardware.threads)
    if len(possible) < 2:
        return alone, "there are no threads, no batches or not enough memory for more processes"
    machine, work = memories.machine_of(plan.hardware), probing.work_of(plan.model, plan.jobs, plan.request)
    key = f"{work.key} {plan.setup.dtype}"
    known = memories.side_by_side(machine, key)
    calls: Mapping[Division, float] = {one: known[str(one)] for one in possible if str(one) in known}
    if len(calls) < len(possible):  # what is compared is measured at one time
        if not may_try:
            return alone, "which division of the threads is the fastest was not measured here yet: generate does it"
        calls = importlib.import_module("sdcli.draw.local").side_by_side(work, plan.setup.dtype, possible)
        memories.remember_side_by_side(machine, key, {str(one): rate for one, rate in calls.items()})
    return soonest(calls, batches)
