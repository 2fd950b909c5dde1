"""What resume and verify share: a plan under a setup that was recorded, on this machine as it is now."""

from __future__ import annotations

from sdcli import __version__
from sdcli.asking import probing
from sdcli.asking.planning import remembered
from sdcli.machine import survey
from sdcli.machine.hardware import Hardware
from sdcli.plan.plan import Plan
from sdcli.plan.planner import plan_as_recorded


def hardware_for(device: str, dtype: str | None) -> tuple[Hardware, float]:
    """The machine's device of this name, and the seconds that asking torch took: about its number types, unless the
    one that is needed is fp32, which every device computes."""
    hardware, imported = probing.sized(survey.choose(device, survey.look()))
    if dtype == "fp32":
        return hardware, imported
    hardware, more = probing.probed(hardware)
    return hardware, imported + more


def as_recorded(plan: Plan) -> tuple[Plan, float]:
    """The plan under its own setup; DoesNotFit or DeviceUnusable where this machine cannot draw so."""
    hardware, imported = hardware_for(plan.setup.device, plan.setup.dtype)
    return plan_as_recorded(plan, hardware, remembered(hardware), version=__version__), imported
