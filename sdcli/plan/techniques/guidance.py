"""guidance: both halves of classifier-free guidance in one UNet call (batched), or one after the other (in-turn)."""

from __future__ import annotations

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques.technique import Situation, Technique, gib

# No figure is published: two smaller calls fill a device less well than one; a launch-bound GPU pays twice (price.py).
IN_TURN = 1.03


def slowdown(choice: str) -> float:
    return IN_TURN if choice == "in-turn" else 1.0


def illegal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    return None


def because(setup: Setup, situation: Situation) -> str:
    if not situation.guided:
        return "guidance is off: one UNet call a step"
    if setup.guidance == "batched":
        return "with and without the prompt in one UNet call: the faster way"
    saved = situation.peaks(TECHNIQUE.put(setup, "batched"))[0] - situation.peaks(setup)[0]
    if saved <= 0:
        return "with and without the prompt one after the other, as pinned; it saves nothing at this size"
    return f"with and without the prompt one after the other: halves the UNet's work memory, {gib(saved)} less"


TECHNIQUE = Technique(
    slot="guidance",
    choices=("batched", "in-turn"),
    without="batched",
    illegal=illegal,
    because=because,
    phrases={"in-turn": "guidance in turn"},
)
