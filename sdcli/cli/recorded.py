"""What resume and verify share: a plan under a setup that was recorded, on this machine as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sdcli import __version__
from sdcli.asking import probing
from sdcli.asking.planning import remembered
from sdcli.errors import DeviceUnusable, DoesNotFit, SdcliError
from sdcli.machine import several, survey
from sdcli.machine.hardware import Hardware
from sdcli.machine.several import Seat
from sdcli.plan.plan import Plan, PlanWarning, WorkerPlan
from sdcli.plan.planner import plan_alike, plan_as_recorded
from sdcli.plan.refusal import refused
from sdcli.plan.several import LEFT_OUT


def hardware_for(device: str, dtype: str | None) -> tuple[Hardware, float]:
    """The machine's device of this name, and the seconds that asking torch took: about its number types, unless the
    one that is needed is fp32, which every device computes."""
    hardware, imported = probing.sized(survey.choose(device, survey.look()))
    if dtype == "fp32":
        return hardware, imported
    hardware, more = probing.probed(hardware)
    return hardware, imported + more


def workers_as_recorded(plan: Plan) -> tuple[Plan, float]:
    """The same for a run that several devices drew: with those of them that can do it now. A device that is gone, or
    has too little memory, is left out with a warning; its error is the run's where none is left."""
    workers, warnings, imported = [], [], 0.0
    error: SdcliError | None = None
    for worker in plan.workers:
        own = plan.of(worker)
        try:
            hardware, more = hardware_for(worker.setup.device, worker.setup.dtype)
            hardware = replace(several.part(hardware, len(plan.workers)), threads=worker.hardware.threads)
            now = plan_as_recorded(own, hardware, remembered(hardware), version=__version__)
            if not now.fits:
                raise refused(now)
        except (DoesNotFit, DeviceUnusable) as failed:
            error = failed
            message = f"{worker.name} is left out: {failed.message}"
            warnings.append(PlanWarning(code=LEFT_OUT, message=message))
            continue
        imported += more
        workers.append(now.worker(worker.name))
    if not workers:
        assert error is not None
        raise error
    return replace(plan, version=__version__, workers=tuple(workers), warnings=tuple(warnings)), imported


def as_recorded(plan: Plan, cluster: Sequence[Seat] = ()) -> tuple[Plan, float]:
    """The plan under its own setup; DoesNotFit or DeviceUnusable where this machine, or the cluster, cannot draw so."""
    if cluster:
        return _by_cluster(plan, cluster), 0.0
    if any(worker.hardware.elsewhere for worker in plan.workers):
        plan = plan.of(plan.workers[0])
    if plan.workers:
        return workers_as_recorded(plan)
    hardware, imported = hardware_for(plan.setup.device, plan.setup.dtype)
    return plan_as_recorded(plan, hardware, remembered(hardware), version=__version__), imported


def _by_cluster(plan: Plan, seats: Sequence[Seat]) -> Plan:
    """With those of a cluster that can draw the pixels of the run's own."""
    workers, warnings = [], []
    error: SdcliError = DeviceUnusable(
        "the cluster has no device of the kind that the run was drawn on", hint="ray status"
    )
    for seat in seats:
        backend = seat.hardware.backend
        before = next((own for own in plan.workers or (plan,) if own.hardware.backend == backend), None)
        own = plan.of(before) if isinstance(before, WorkerPlan) else before
        now = own and plan_alike(own, seat.hardware, remembered(seat.hardware))
        if now is not None and now.fits:
            workers.append(now.worker(seat.name))
            continue
        error = refused(now) if now is not None else error
        warnings.append(PlanWarning(code=LEFT_OUT, message=f"{seat.name} is left out: {error.message}"))
    if not workers:
        raise error
    return replace(plan, version=__version__, fits=True, workers=tuple(workers), warnings=tuple(warnings))
