"""guidance: both halves of classifier-free guidance in one UNet call (batched), or one after the other (in-turn)."""

from __future__ import annotations

from sdcli.plan.plan import Setup
from sdcli.plan.techniques.technique import Situation, Technique, gib

# Assumed, none is published: two smaller calls use a device less well than one; price.py counts launches twice.
IN_TURN = 1.03


def slowdown(choice: str) -> float:
    return IN_TURN if choice == "in-turn" else 1.0


def because(setup: Setup, situation: Situation) -> str:
    if not situation.guided:
        return "guidance is off: one UNet call per step"
    if setup.guidance == "batched":
        return "with and without the prompt in one UNet call: faster than one after the other"
    saved = situation.peaks(TECHNIQUE.put(setup, "batched"))[0] - situation.peaks(setup)[0]
    if saved <= 0:
        return "with and without the prompt one after the other; saves nothing at this size"
    return f"with and without the prompt one after the other: halves the UNet's work memory, saves {gib(saved)}"


TECHNIQUE = Technique(
    slot="guidance",
    choices=("batched", "in-turn"),
    without="batched",
    because=because,
    phrases={"in-turn": "guidance in turn"},
)
