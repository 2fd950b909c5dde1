"""One plan for several workers: what can move a pixel is decided once, the rest for each device by itself.

Among devices of one kind the one with the least memory decides, for what it can do the others can too: so an image has
the same pixels whichever of them draws it, as far as they compute alike. A CPU and a GPU never do, nor does a GPU that
cannot compute in the others' number type: there the least of those decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdcli.machine.hardware import Hardware
from sdcli.plan.plan import Plan, PlanWarning, WorkerPlan
from sdcli.plan.planner import plan_alike
from sdcli.plan.refusal import refused
from sdcli.terminal import show


def together(
    plan: Plan, seats: Sequence[tuple[str, Hardware]], anew: Callable[[Hardware], Plan],
    remembered: Callable[[Hardware], Mapping[str, Any]], *, more: bool = False,
) -> Plan:  # fmt: skip
    """`plan` is one device's alone; `anew` makes that of another. Devices on which nothing fits are left out, with a
    warning; where nothing fits on any, the plan does not."""
    workers: dict[str, WorkerPlan] = {}
    leads: list[Plan] = []
    warnings: list[PlanWarning] = []
    backends = dict.fromkeys(hardware.backend for _, hardware in seats)
    for backend in sorted(backends, key=lambda one: one != plan.hardware.backend):
        own_leads: list[Plan] = []
        for name, hardware in sorted(seats, key=lambda seat: seat[1].free):
            if hardware.backend != backend:
                continue
            alike = (_own(lead, hardware, remembered, more) for lead in own_leads)
            own = next((one for one in alike if one is not None), None)
            first = own is None
            if own is None:
                own = plan if not own_leads and hardware.device == plan.hardware.device else anew(hardware)
            if not own.fits:
                warnings.append(PlanWarning(code="left-out", message=f"{name} is left out: {refused(own).message}"))
                continue
            own_leads += [own] if first else []
            workers[name] = own.worker(name)
        leads += own_leads
    if not leads:
        return plan
    ordered = tuple(workers[name] for name, _ in seats if name in workers)
    warnings += _unlike(ordered)
    return replace(leads[0], workers=ordered, warnings=(*leads[0].warnings, *warnings))


def _own(
    lead: Plan, hardware: Hardware, remembered: Callable[[Hardware], Mapping[str, Any]], more: bool
) -> Plan | None:  # fmt: skip
    if hardware.device == lead.hardware.device:  # another process on the same CPU
        return lead
    return plan_alike(lead, hardware, remembered(hardware), more=more)


def _unlike(workers: Sequence[WorkerPlan]) -> list[PlanWarning]:
    """Where equal jobs may give images that differ in a few levels, and with what."""
    kinds = list(dict.fromkeys((worker.hardware.backend, worker.hardware.name) for worker in workers))
    if len(kinds) < 2:
        return []
    named = " and ".join(show(name, 60) for _, name in kinds)
    message = f"{named} do not compute alike to the last bit: which of them draws an image may move its pixels slightly"
    return [PlanWarning(code="unlike-devices", message=message)]
