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
        """The plan that generate would make of it for the worker of that name, once what is not known yet was tried."""
        if worker.engine == "local" and planning.untried(plan):
            again = drawn_by(self._tried(plan, worker), name)
            if again is not None and again.fits:
                return again
        own = drawn_by(plan, name)
        assert own is not None  # it took it since it can draw it
        return own

    def loaded(self, plan: Plan, worker: Worker, name: str) -> None:
        """Leaves the plan's model in memory, where all of it is to stay there."""
        try:
            for _ in worker.run(self.settled(plan, worker, name), []):
                pass
        except Died as died:
            raise died.error from None

    def _tried(self, plan: Plan, worker: Worker) -> Plan:
        with self._trying, contextlib.suppress(SdcliError, Died):  # a trial that fails decides nothing
            worker.try_out(plan)
            return planning.surveyed(plan, self._without_own)
        return plan
