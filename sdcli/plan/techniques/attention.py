"""attention: softmax(QKᵀ)V with the fused kernel, in blocks of queries, or in slices of heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from sdcli.machine.hardware import Hardware, QueryBlock
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques.technique import Situation, Technique

SCORES = 1 << 20  # attention scores per thread at once: 2 MiB in bf16, about a core's cache
FEWEST_KEYS = 256  # with fewer, such as a prompt's 77, no blocks: the fused kernel is as fast
FEWEST_QUERIES = 64  # per block; with fewer, products are too small to be worth a call
# The UNet's time relative to fused attention.
SLICED = (
    1.9  # measured on a CPU: 1430-1539 ms a 4096-token layer against 541 ms; attention is a third to half of a step
)


class Blocks(NamedTuple):
    """How much of softmax(QKᵀ)V is computed at once where attention runs in blocks."""

    rows: int  # heads of images
    queries: int


def blocks(rows: int, keys: int, threads: int, measured: Sequence[QueryBlock] = ()) -> Blocks | None:
    """One rule for counting and drawing: a row per thread, and as many queries as were measured to be fastest; where
    nothing was measured, as many as keep the scores in the caches. None: fused."""
    together = rows_at_once(rows, threads)
    if keys < FEWEST_KEYS:
        return None
    if not measured:
        return Blocks(rows=together, queries=max(FEWEST_QUERIES, SCORES * threads // (together * keys)))
    return next((Blocks(rows=together, queries=block.queries) for block in measured if block.keys == keys), None)


def rows_at_once(rows: int, threads: int) -> int:
    return min(rows, max(2, threads))


def settled(setup: Setup, hardware: Hardware) -> Setup:
    """With the blocks that were measured to be fastest here."""
    trial = hardware.tried(setup.dtype)
    if setup.attention != "blocked" or trial is None:
        return setup
    return replace(setup, blocks=trial.blocks)


def of_vae(setup: Setup) -> str:
    """The VAE's only attention layer has a single head, so there is nothing to slice."""
    return "blocked" if setup.attention == "blocked" else "fused"


def illegal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    if setup.attention == "blocked" and (hardware.kind != "cpu" or setup.dtype != "bf16"):
        return "attention in blocks is for CPUs in bf16; elsewhere the fused kernel is faster"
    if setup.attention == "sliced" and model.sees_references:
        return "attention in slices knows no reference images"
    if setup.attention == "sliced" and hardware.kind == "mps":
        return "slicing gives up the fused kernel and is neither faster nor smaller on a Mac"
    return None


def because(setup: Setup, situation: Situation) -> str:
    if setup.attention == "sliced":
        return "sliced attention (pinned): slower than the fused kernel, and uses more memory"
    trial = situation.hardware.tried(setup.dtype)
    times = trial.attention if trial is not None else {}
    if "fused" in times and "blocked" in times:
        ratio = times["blocked"] / times["fused"]
        return f"{_NAMES[setup.attention]}: tried here, blocks take {ratio:.2f} times as long as the fused kernel"
    if setup.attention == "blocked":
        return "attention in blocks (pinned): not tried on this machine yet"
    return "fused attention: slicing would be slower and use more memory"


_NAMES = {"fused": "fused attention", "blocked": "attention in blocks"}


TECHNIQUE = Technique(
    slot="attention",
    choices=("fused", "blocked", "sliced"),
    without="fused",
    illegal=illegal,
    beside=frozenset({"dtype"}),
    because=because,
    phrases={"sliced": "attention sliced"},
    by_pin=frozenset({"sliced"}),
)
