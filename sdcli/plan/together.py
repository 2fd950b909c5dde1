"""Which models may stay loaded beside the one that is drawn with next: counted by their plans, before it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sdcli.plan import calibration
from sdcli.plan.plan import Phase, Plan


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes that stay taken between two runs. On a CPU both are the same."""

    device: int
    host: int


def held(plan: Plan) -> Held:
    """What a model keeps once it was drawn with: its weights, as its plan has predicted them, not its work."""
    phases, hardware = plan.footprint.phases, plan.hardware
    # OpenVINO's graphs, which stay, are counted as work
    kept = [
        phase.weights + phase.parked + (phase.work if plan.setup.execution == "openvino" else 0) for phase in phases
    ]
    device = max(kept, default=0)
    imports = calibration.IMPORTS + calibration.libraries(hardware.backend)  # once in a process, whatever it holds
    aside = [phase.host - imports - (_on_the_device(phase) if hardware.shares_memory else 0) for phase in phases]
    host = max(0, *aside) + (device if hardware.shares_memory else 0)
    return Held(device=host if hardware.kind == "cpu" else device, host=host)


def _on_the_device(phase: Phase) -> int:
    return phase.weights + phase.parked + phase.work


def leaving(others: Mapping[str, Held], plan: Plan) -> tuple[str, ...]:
    """Of the models that are loaded, least recently used first, those that have to go before this plan is drawn: as few
    as its predicted peaks leave no room for."""
    names = tuple(others)
    for count in range(len(names)):
        if _fit(total(others[name] for name in names[count:]), plan):
            return names[:count]
    return names


def total(models: Iterable[Held]) -> Held:
    known = list(models)
    return Held(device=sum(one.device for one in known), host=sum(one.host for one in known))


def _fit(beside: Held, plan: Plan) -> bool:
    peaks, budget = plan.footprint, plan.budget
    return beside.device + peaks.device_peak <= budget.device and beside.host + peaks.host_peak <= budget.host
