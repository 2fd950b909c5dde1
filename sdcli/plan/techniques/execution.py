"""execution: how the UNet's layers are launched. Only one by one (eager) is implemented."""

from __future__ import annotations

from sdcli.plan.plan import Setup
from sdcli.plan.techniques.technique import Situation, Technique


def because(setup: Setup, situation: Situation) -> str:
    return "eager: starts at once"


TECHNIQUE = Technique(slot="execution", choices=("eager",), without="eager", because=because, phrases={})
