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
from sdcli.plan.forecast import budget
from sdcli.plan.plan import Plan, PlanWarning, WorkerPlan
from sdcli.plan.planner import plan_alike
from sdcli.plan.refusal import refused
from sdcli.terminal import show

LEFT_OUT, UNLIKE = "left-out", "unlike-devices"  # codes of warnings


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
        groups: list[list[Plan]] = []  # of those that draw alike, the first one decides
        for name, hardware in sorted(seats, key=lambda seat: seat[1].free):
            if hardware.backend != backend:
                continue
            own, group = _among(groups, hardware, remembered, more)
            if own is None:
                own = plan if not groups and hardware.device == plan.hardware.device else anew(hardware)
            if not own.fits:
                warnings.append(PlanWarning(code=LEFT_OUT, message=f"{name} is left out: {refused(own).message}"))
                continue
            if not group:
                groups.append(group)
            group.append(own)
            workers[name] = own.worker(name)
        leads += [group[0] for group in groups]
    if not leads:
        return plan
    ordered = tuple(workers[name] for name, _ in seats if name in workers)
    warnings += _unlike(ordered)
    return replace(leads[0], workers=ordered, warnings=(*leads[0].warnings, *warnings))


def drawn_by(plan: Plan, name: str) -> Plan | None:
    """The plan where one of its workers draws everything, with what was decided and warned of that holds for it too;
    None where that worker cannot. A plan of one device is that device's."""
    own = next((worker for worker in plan.workers if worker.name == name), None)
    if own is None:
        return None if plan.workers else plan
    same = tuple(one for one in plan.decisions if getattr(plan.setup, one.slot) == getattr(own.setup, one.slot))
    return replace(
        plan.of(own), request=replace(plan.request, devices=None, device=own.hardware.device), decisions=same,
        warnings=tuple(warning for warning in plan.warnings if warning.code not in (LEFT_OUT, UNLIKE)),
    )  # fmt: skip


def fallen_back(plan: Plan, after: Mapping[str, str]) -> Plan:
    """A worker's plan with what it gave up for want of memory: it does without from now on."""
    given: dict[str, Any] = {slot: choice for slot, choice in after.items() if slot != "upscaler_tile"}
    if "upscaler_tile" in after:
        given["upscaler_tile"] = int(after["upscaler_tile"].replace("whole", "0"))
    return replace(plan, setup=replace(plan.setup, **given))


def _among(
    groups: Sequence[list[Plan]], hardware: Hardware, remembered: Callable[[Hardware], Mapping[str, Any]], more: bool
) -> tuple[Plan | None, list[Plan]]:  # fmt: skip
    """Its plan as one of those that draw alike, and these; None and a new group, where it can be among none."""
    for group in groups:
        own = _alike(group, hardware, remembered, more)
        if own is not None:
            return own, group
    return None, []


def _alike(
    group: Sequence[Plan], hardware: Hardware, remembered: Callable[[Hardware], Mapping[str, Any]], more: bool
) -> Plan | None:  # fmt: skip
    if hardware.device == group[0].hardware.device and not hardware.elsewhere:  # another process on the same CPU
        return group[0]
    for before in group:
        if before.slowdown == 1.0 and _as_good(hardware, before.hardware):  # it has the fastest setup there is
            return _moved(before, hardware)
    return plan_alike(group[0], hardware, remembered(hardware), more=more)


def _as_good(hardware: Hardware, other: Hardware) -> bool:
    """Whether it is the same card again, with no less memory free."""
    more = hardware.free >= other.free and hardware.ram_free >= other.ram_free
    same = replace(hardware, device=other.device, uuid=other.uuid, free=other.free, ram_free=other.ram_free)
    return more and same == other


def _moved(lead: Plan, hardware: Hardware) -> Plan:
    fallbacks = tuple(replace(one, setup=replace(one.setup, device=hardware.device)) for one in lead.fallbacks)
    return replace(
        lead, hardware=hardware, budget=budget(hardware, lead.request.max_vram, lead.request.max_ram),
        setup=replace(lead.setup, device=hardware.device), fallbacks=fallbacks,
    )  # fmt: skip


def _unlike(workers: Sequence[WorkerPlan]) -> list[PlanWarning]:
    """Where equal jobs may give images that differ in a few levels, and with what."""
    kinds = list(dict.fromkeys((worker.hardware.backend, worker.hardware.name) for worker in workers))
    if len(kinds) < 2:
        return []
    named = " and ".join(show(name, 60) for _, name in kinds)
    message = f"{named} do not compute alike to the last bit: which of them draws an image may move its pixels slightly"
    return [PlanWarning(code=UNLIKE, message=message)]
