"""guidance: both halves of classifier-free guidance in one UNet call (batched), or one after the other (in-turn)."""

from __future__ import annotations

from sdcli.machine.hardware import Hardware
from sdcli.plan.plan import Setup
from sdcli.plan.techniques.technique import NOISE, Situation, Technique, gib

# Assumed where it was not tried, none is published: two smaller calls use a device less well than one; price.py counts
# launches twice.
IN_TURN = 1.03


def slowdown(setup: Setup, hardware: Hardware) -> float:
    """Time of the UNet relative to that with the sides in one call."""
    if setup.guidance == "batched":
        return 1.0
    ratio = _tried(setup, hardware)
    if ratio is not None and ratio < NOISE:
        return ratio
    return max(IN_TURN, ratio or 0.0)  # a little faster may be noise, and where times are equal less memory decides


def _tried(setup: Setup, hardware: Hardware) -> float | None:
    trial = hardware.tried(setup.dtype)
    times = trial.guidance if trial is not None else {}
    return times["in-turn"] / times["batched"] if {"batched", "in-turn"} <= times.keys() else None


def because(setup: Setup, situation: Situation) -> str:
    if not situation.guided:
        return "guidance is off: one UNet call per step"
    ratio = _tried(setup, situation.hardware)
    if setup.guidance == "batched":
        tried = f"; tried here, one after the other takes {ratio:.2f} times as long" if ratio is not None else ""
        return f"with and without the prompt in one UNet call{tried or ': faster than one after the other'}"
    if ratio is not None and ratio < NOISE:
        return f"with and without the prompt one after the other: tried here, {ratio:.2f} times as long as in one call"
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
