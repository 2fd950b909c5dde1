"""Decisions that were made before: a request like an earlier one needs no new weighing of every setup."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.batches import in_batches
from sdcli.plan.forecast import budget
from sdcli.plan.plan import Adapter, Budget, Plan
from sdcli.plan.planner import make_plan
from sdcli.request.request import Job, Request

FRESH = 60.0  # seconds after which everything is weighed anew: measurements and free memory may say something else
MOST = 64

# Of a request and its jobs, what moves no byte and no second.
_OF_REQUEST = ("prompts", "negative_prompt", "seeds", "output")
_OF_JOB: Mapping[str, Any] = {"prompt": "", "negative_prompt": "", "seed": 0, "index": 0}


class Decided:
    """Takes make_plan's place. Only a setup that is the fastest there is, and still fits, is taken again: more memory
    could not change it, and less has not."""

    def __init__(self) -> None:
        self._plans: dict[str, tuple[float, Plan]] = {}

    def __call__(
        self, request: Request, model: Model, hardware: Hardware, remembered: Mapping[str, Any], *,
        jobs: Sequence[Job], adapters: Sequence[Adapter], **more: Any,
    ) -> Plan:  # fmt: skip
        if any(job.start is not None or job.controls or job.references for job in jobs):
            return make_plan(request, model, hardware, remembered, jobs=jobs, adapters=adapters, **more)
        key = _key(request, model, hardware, jobs, adapters)
        made, plan = self._plans.get(key, (0.0, None))
        now = budget(hardware, request.max_vram, request.max_ram)
        if plan is not None and time.monotonic() - made < FRESH and _still_fits(plan, now):
            batches, origins = in_batches(jobs, request.batch_size), dict(more["origins"])
            return replace(plan, request=request, budget=now, jobs=tuple(jobs), batches=batches, origins=origins)
        plan = make_plan(request, model, hardware, remembered, jobs=jobs, adapters=adapters, **more)
        if plan.fits and plan.slowdown == 1.0:
            while len(self._plans) >= MOST:
                self._plans.pop(next(iter(self._plans)), None)
            self._plans[key] = time.monotonic(), plan
        return plan


def _key(
    request: Request, model: Model, hardware: Hardware, jobs: Sequence[Job], adapters: Sequence[Adapter]
) -> str:  # fmt: skip
    asked = {name: value for name, value in vars(request).items() if name not in _OF_REQUEST}
    shapes = [replace(job, **_OF_JOB) for job in jobs]
    machine = replace(hardware, free=0, ram_free=0)
    files = {name: part.files for name, part in model.components.items()}
    return repr((asked, model.name, model.hash, files, machine, shapes, [vars(adapter) for adapter in adapters]))


def _still_fits(plan: Plan, now: Budget) -> bool:
    return plan.footprint.device_peak <= now.device and plan.footprint.host_peak <= now.host
