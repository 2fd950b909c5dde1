"""Which mixes of choices cannot be: one question, answered by the techniques."""

from __future__ import annotations

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques import TECHNIQUES


def legal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    """None where the setup can run; else why it cannot."""
    for technique in TECHNIQUES:
        reason = technique.illegal(setup, hardware, model)
        if reason is not None:
            return reason
    return None
