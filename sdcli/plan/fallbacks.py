"""The way down after out-of-memory: part of the plan, strictly smaller at every rung."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from sdcli.plan import calibration
from sdcli.plan.footprint import Sizes
from sdcli.plan.legality import legal
from sdcli.plan.pins import BY_SLOT, read_pins
from sdcli.plan.plan import Plan, Rung, Setup
from sdcli.plan.stages import stages
from sdcli.plan.techniques import TECHNIQUES
from sdcli.plan.techniques import vae as vae_technique

FIXED = ("dtype", "storage", "attention", "execution")  # changing these needs other weights, or draws another picture
KEPT = ("vae", "guidance")  # what was already given up here is not taken back
WORTH_IT = 0.95  # a rung that saves less than 5 % would soon run out again
SAME_PIXELS = 1.25  # how much longer a rung may take that leaves the picture as it is
DECODING = ("tile-512", "tile-256", "cpu")


def changes_pixels(before: Setup, after: Setup) -> bool:
    return any(t.moves_pixels and t.of(before) != t.of(after) for t in TECHNIQUES)


def ladder(
    chosen: Setup,
    ways: Iterable[Setup],
    peaks: Callable[[Setup], tuple[int, int]],
    seconds: Callable[[Setup], float],
    host_budget: int,
) -> tuple[Rung, ...]:
    """From `chosen` downwards, each rung smaller than the one before; those that leave the pixels alone come first."""
    top = peaks(chosen)[0]
    below = []
    for setup in ways:
        device, host = peaks(setup)
        if device < top and host <= host_budget and _leads_down(chosen, setup):
            moved = changes_pixels(chosen, setup)
            below.append((seconds(setup) * (SAME_PIXELS if moved else 1.0), device, moved, setup))
    below.sort(key=lambda row: row[:3])
    rungs: list[Rung] = []
    for _, device, moved, setup in below:
        if device <= (rungs[-1].device_peak if rungs else top) * WORTH_IT:
            rungs.append(Rung(setup=setup, device_peak=device, changes_pixels=moved))
    return tuple(rungs)


def _leads_down(chosen: Setup, setup: Setup) -> bool:
    if any(getattr(setup, slot) != getattr(chosen, slot) for slot in FIXED):
        return False
    ranks = [BY_SLOT[slot].choices.index for slot in KEPT]
    return all(
        rank(getattr(setup, slot)) >= rank(getattr(chosen, slot)) for rank, slot in zip(ranks, KEPT, strict=True)
    )


def after_out_of_memory(
    plan: Plan, batch: int, current: Setup, phase: str, imports_bytes: int = calibration.IMPORTS
) -> tuple[Rung, ...]:
    """Where to go from `current` when `phase` of a batch ran out of memory, nearest first.

    Every rung needs less than `current` in that phase. A decode first changes how it decodes: its latents are done.
    """
    gone_through = stages(plan.model, plan.batch(batch), alone=plan.request.batch_invariant)
    sizes = Sizes(plan.model, gone_through, plan.hardware, imports_bytes)

    def needs(setup: Setup) -> int:
        return next(row.device for row in sizes.phases(setup) if row.name == phase)

    rungs = [*_decoders(plan, current, needs)] if phase == "decode" else []
    least = needs(rungs[-1].setup) if rungs else needs(current)
    for rung in plan.ladder:
        if needs(rung.setup) < least and sizes.peaks(rung.setup)[0] <= sizes.peaks(current)[0]:
            rungs.append(Rung(
                setup=rung.setup, device_peak=rung.device_peak, changes_pixels=changes_pixels(current, rung.setup)
            ))  # fmt: skip
            least = needs(rung.setup)
    return tuple(rungs)


def _decoders(plan: Plan, current: Setup, needs: Callable[[Setup], int]) -> Iterable[Rung]:
    """Smaller ways to decode the same latents, everything else left as it is."""
    pins = read_pins(plan.request.pins)
    if "vae" in pins:
        return
    least = needs(current)
    for choice in DECODING:
        setup = vae_technique.TECHNIQUE.put(current, choice)
        if choice == "cpu" and "vae_dtype" not in pins:
            setup = _in_fp32(setup)
        if legal(setup, plan.hardware, plan.model) is None and needs(setup) < least:
            least = needs(setup)
            yield Rung(setup=setup, device_peak=least, changes_pixels=changes_pixels(current, setup))


def _in_fp32(setup: Setup) -> Setup:
    return replace(setup, vae_dtype="same" if setup.dtype == "fp32" else "fp32")
