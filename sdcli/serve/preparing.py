"""What is done in a worker before it draws: a trial of what this machine does best, as generate makes it before it
plans, and loading the model that most requests want. This process never loads torch, so it cannot try anything."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from sdcli.asking import planning
from sdcli.errors import SdcliError
from sdcli.machine.hardware import Hardware
from sdcli.plan.plan import Plan
from sdcli.plan.several import drawn_by
from sdcli.workers.worker import Died, Worker

PROMPT = "a cat"  # what a prompt says decides nothing


class Preparing:
    """Of all workers of a server: they try one at a time, and what one found out the others know."""

    def __init__(self, without_own: Callable[[Hardware], Hardware]) -> None:
        self._without_own = without_own
        self._trying = threading.Lock()

    def settled(self, plan: Plan, worker: Worker, name: str) -> Plan:
        """The plan that generate would make of it, once the worker of that name has tried what is not known yet."""
        if worker.engine != "local" or not planning.untried(plan):
            return plan
        again = self._tried(plan, worker)
        return again if again.fits and drawn_by(again, name) is not None else plan

    def loaded(self, plan: Plan, worker: Worker, name: str) -> None:
        """Leaves the plan's model in memory, where all of it is to stay there."""
        try:
            own = drawn_by(self.settled(plan, worker, name), name)
            for _ in worker.run(own, []) if own is not None else ():
                pass
        except Died as died:
            raise died.error from None

    def _tried(self, plan: Plan, worker: Worker) -> Plan:
        with self._trying, contextlib.suppress(SdcliError, Died):  # a trial that fails decides nothing
            worker.try_out(plan)
            return planning.surveyed(plan, self._without_own)
        return plan
