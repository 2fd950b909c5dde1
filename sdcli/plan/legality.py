"""Which combinations of choices are legal: every technique decides for its slot."""

from __future__ import annotations

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques import TECHNIQUES


def legal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    """None if the setup can run, else the reason why it cannot."""
    for technique in TECHNIQUES:
        reason = technique.illegal(setup, hardware, model)
        if reason is not None:
            return reason
    return None
