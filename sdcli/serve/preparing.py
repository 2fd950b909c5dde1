"""What is done in the worker before it draws: a trial of what this machine does best, as generate makes it before it
plans, and loading the model that most requests want. This process never loads torch, so it cannot try anything."""

from __future__ import annotations

import contextlib

from sdcli.asking import planning
from sdcli.errors import SdcliError
from sdcli.plan.plan import Plan
from sdcli.workers.worker import Died, Worker

PROMPT = "a cat"  # what a prompt says decides nothing


def settled(plan: Plan, worker: Worker) -> Plan:
    """The plan that generate would make of it, once the worker has tried what is not known yet."""
    if worker.engine != "local" or not planning.untried(plan):
        return plan
    with contextlib.suppress(SdcliError, Died):  # a trial that fails decides nothing
        worker.try_out(plan)
        again = planning.surveyed(plan, worker.without_own)
        return again if again.fits else plan
    return plan


def loaded(plan: Plan, worker: Worker) -> None:
    """Leaves the plan's model in memory, where all of it is to stay there."""
    try:
        for _ in worker.run(settled(plan, worker), []):
            pass
    except Died as died:
        raise died.error from None
