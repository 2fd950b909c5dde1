"""attention: softmax(QKᵀ)V by the fused kernel, in blocks of queries, or in slices of heads."""

from __future__ import annotations

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques.technique import Situation, Technique

BLOCK = 128  # queries a block: the best of those measured
# Time of the UNet relative to fused attention.
BLOCKED = 0.75  # measured, 2-core Zen 5, SD1.5 512² in bf16: 2.6 s a step against 3.3-3.8 s
SLICED = (
    1.9  # measured on a CPU: 1430-1539 ms a 4096-token layer against 541 ms; attention is a third to half of a step
)


def slowdown(choice: str) -> float:
    return {"blocked": BLOCKED, "sliced": SLICED}.get(choice, 1.0)


def illegal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    if setup.attention == "blocked" and (hardware.kind != "cpu" or setup.dtype != "bf16"):
        return "blocks beat the fused kernel only on a CPU in bf16"
    if setup.attention == "sliced" and hardware.kind == "mps":
        return "slicing gives up the fused kernel and is never faster nor smaller on a Mac"
    return None


def because(setup: Setup, situation: Situation) -> str:
    if setup.attention == "blocked":
        return f"blocks of {BLOCK} queries: about a quarter faster than torch's fused kernel on a CPU in bf16"
    if setup.attention == "sliced":
        return "sliced as pinned: slower than the fused kernel, and larger"
    return "attention is fused, so slicing it would be slower and larger"


TECHNIQUE = Technique(
    slot="attention",
    choices=("fused", "blocked", "sliced"),
    without="fused",
    illegal=illegal,
    because=because,
    phrases={"sliced": "attention sliced"},
    by_pin=frozenset({"sliced"}),
)
