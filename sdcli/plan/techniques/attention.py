"""attention: softmax(QKᵀ)V with the fused kernel, in blocks of queries, or in slices of heads."""

from __future__ import annotations

from dataclasses import dataclass

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques.technique import Situation, Technique

SCORES = 1 << 20  # attention scores per thread at once: 2 MiB in bf16, about a core's cache
FEWEST_KEYS = 256  # with fewer, such as a prompt's 77, no blocks: the fused kernel is as fast
FEWEST_QUERIES = 64  # per block; with fewer, products are too small to be worth a call
# The UNet's time relative to fused attention.
BLOCKED = 0.75  # measured, 2-core Zen 5, SD1.5 512² in bf16: 2.6 s a step against 3.3-3.8 s
BLOCKED_AMX = 1.2  # measured on a CPU with AMX, whose fused kernel uses it: 5.4 s a step against 4.7 s
SLICED = (
    1.9  # measured on a CPU: 1430-1539 ms a 4096-token layer against 541 ms; attention is a third to half of a step
)


@dataclass(frozen=True)
class Blocks:
    """How much of softmax(QKᵀ)V is computed at once where attention runs in blocks."""

    rows: int  # heads of images
    queries: int


def blocks(rows: int, keys: int, threads: int) -> Blocks:
    """One rule for counting and drawing: a row per thread, and as many queries as keep the scores in the caches."""
    together = min(rows, max(2, threads))
    return Blocks(rows=together, queries=max(FEWEST_QUERIES, SCORES * threads // (together * keys)))


def slowdown(choice: str, hardware: Hardware) -> float:
    blocked = BLOCKED_AMX if "amx" in hardware.isa else BLOCKED
    return {"blocked": blocked, "sliced": SLICED}.get(choice, 1.0)


def of_vae(setup: Setup) -> str:
    """The VAE's only attention layer has a single head, so there is nothing to slice."""
    return "blocked" if setup.attention == "blocked" else "fused"


def illegal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    if setup.attention == "blocked" and (hardware.kind != "cpu" or setup.dtype != "bf16"):
        return "attention in blocks is for CPUs in bf16; elsewhere the fused kernel is faster"
    if setup.attention == "sliced" and hardware.kind == "mps":
        return "slicing gives up the fused kernel and is neither faster nor smaller on a Mac"
    return None


def because(setup: Setup, situation: Situation) -> str:
    if setup.attention == "blocked":
        if slowdown("blocked", situation.hardware) > 1.0:
            return "attention in blocks (pinned): slower than the fused kernel, which uses this CPU's AMX units"
        return "attention in blocks: about a quarter faster than torch's fused kernel on a CPU in bf16"
    if setup.attention == "sliced":
        return "sliced attention (pinned): slower than the fused kernel, and uses more memory"
    return "fused attention: slicing would be slower and use more memory"


TECHNIQUE = Technique(
    slot="attention",
    choices=("fused", "blocked", "sliced"),
    without="fused",
    illegal=illegal,
    because=because,
    phrases={"sliced": "attention sliced"},
    by_pin=frozenset({"sliced"}),
)
