"""Smaller setups to continue with after out-of-memory: part of the plan, each strictly smaller than the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from sdcli.plan.footprint import Sizes
from sdcli.plan.legality import legal
from sdcli.plan.pins import BY_SLOT, read_pins
from sdcli.plan.plan import Fallback, Plan, Setup
from sdcli.plan.stages import stages
from sdcli.plan.techniques import TECHNIQUES
from sdcli.plan.techniques import vae as vae_technique
from sdcli.plan.techniques.execution import layer_by_layer
from sdcli.plan.upscaler_tile import smaller_tiles

FIXED = ("dtype", "storage", "attention", "execution")  # changing these needs other weights, or draws another image
ONE_WAY = ("vae", "guidance")  # a fallback never takes back the memory saved here
WORTH_IT = 0.95  # a fallback that saves less than 5 % would soon run out again
SAME_PIXELS = 1.25  # how much longer a fallback may take that leaves the image unchanged
DECODING = ("tile-512", "tile-256", "cpu")


def changes_pixels(before: Setup, after: Setup) -> bool:
    """Whether some image would not be the same under both."""
    choices = [(t, {t.of(before), t.of(after)}) for t in TECHNIQUES if t.moves_pixels]
    moved = any(len(pair) > 1 and not pair <= technique.alike for technique, pair in choices)
    return moved or before.upscaler_tile != after.upscaler_tile


def fallbacks_of(
    chosen: Setup,
    setups: Iterable[Setup],
    peaks: Callable[[Setup], tuple[int, int]],
    seconds: Callable[[Setup], float],
    host_budget: int,
) -> tuple[Fallback, ...]:
    """Largest first, each smaller than the one before; those that keep the same pixels are preferred. A graph is given
    up before anything else."""
    setups = list(setups)
    plain = without_graph(chosen)
    if plain is not None and plain in setups:
        first = Fallback(setup=plain, device_peak=peaks(plain)[0], changes_pixels=changes_pixels(chosen, plain))
        return (first, *fallbacks_of(plain, setups, peaks, seconds, host_budget))
    top = peaks(chosen)[0]
    smaller = []
    for setup in setups:
        device, host = peaks(setup)
        if device < top and host <= host_budget and _leads_down(chosen, setup):
            moved = changes_pixels(chosen, setup)
            smaller.append((seconds(setup) * (SAME_PIXELS if moved else 1.0), device, moved, setup))
    smaller.sort(key=lambda row: row[:3])
    fallbacks: list[Fallback] = []
    for _, device, moved, setup in smaller:
        if device <= (fallbacks[-1].device_peak if fallbacks else top) * WORTH_IT:
            fallbacks.append(Fallback(setup=setup, device_peak=device, changes_pixels=moved))
    return tuple(fallbacks)


def without_graph(setup: Setup) -> Setup | None:
    return layer_by_layer(setup) if setup.execution == "graph" else None


def _leads_down(chosen: Setup, setup: Setup) -> bool:
    if any(getattr(setup, slot) != getattr(chosen, slot) for slot in FIXED):
        return False
    ranks = [BY_SLOT[slot].choices.index for slot in ONE_WAY]
    return all(
        rank(getattr(setup, slot)) >= rank(getattr(chosen, slot)) for rank, slot in zip(ranks, ONE_WAY, strict=True)
    )


def after_out_of_memory(plan: Plan, batch: int, current: Setup, phase: str) -> tuple[Fallback, ...]:
    """What to continue with instead of `current` when `phase` of a batch ran out of memory, nearest first.

    Every fallback needs less than `current` in that phase. A decode first changes only how it decodes: its latents are
    done.
    """
    batch_stages = stages(plan.model, plan.batch(batch), alone=plan.request.batch_invariant)
    sizes = Sizes(plan.model, batch_stages, plan.hardware)

    def needs(setup: Setup) -> int:
        return next(row.device for row in sizes.phases(setup) if row.name == phase)

    plain = without_graph(current)
    fallbacks = [fallback for fallback in plan.fallbacks if fallback.setup == plain and needs(plain) < needs(current)]
    if phase == "upscale":
        fallbacks += _smaller_tiles(plan, plain if fallbacks and plain is not None else current, needs)
    if phase == "decode":
        fallbacks += _decoders(plan, plain if fallbacks and plain is not None else current, needs)
    least = needs(fallbacks[-1].setup) if fallbacks else needs(current)
    for fallback in plan.fallbacks:
        if needs(fallback.setup) < least and sizes.peaks(fallback.setup)[0] <= sizes.peaks(current)[0]:
            fallbacks.append(Fallback(
                setup=fallback.setup, device_peak=fallback.device_peak,
                changes_pixels=changes_pixels(current, fallback.setup),
            ))  # fmt: skip
            least = needs(fallback.setup)
    return tuple(fallbacks)


def _smaller_tiles(plan: Plan, current: Setup, needs: Callable[[Setup], int]) -> Iterable[Fallback]:
    """What was drawn is enlarged again in tiles half as large, and so on; nothing else changes."""
    for tile in smaller_tiles(current.upscaler_tile, lambda one: needs(replace(current, upscaler_tile=one))):
        setup = replace(current, upscaler_tile=tile)
        yield Fallback(setup=setup, device_peak=needs(setup), changes_pixels=changes_pixels(current, setup))


def _decoders(plan: Plan, current: Setup, needs: Callable[[Setup], int]) -> Iterable[Fallback]:
    """Setups that decode the same latents in less memory, everything else unchanged."""
    pins = read_pins(plan.request.pins)
    if "vae" in pins:
        return
    least = needs(current)
    for choice in DECODING:
        setup = vae_technique.TECHNIQUE.put(current, choice)
        if choice == "cpu" and "vae_dtype" not in pins:
            setup = replace(setup, vae_dtype="same" if setup.dtype == "fp32" else "fp32")
        if legal(setup, plan.hardware, plan.model) is None and needs(setup) < least:
            least = needs(setup)
            yield Fallback(setup=setup, device_peak=least, changes_pixels=changes_pixels(current, setup))
