"""storage: the UNet's weights in the dtype it computes in (same), or in fp8 and widened a layer at a time."""

from __future__ import annotations

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques.technique import Situation, Technique, gib
from sdcli.sizes import GIB

# Published: one SDXL call on an L40 takes 149 ms instead of 74 ms with layerwise casting (diffusers' own benchmarks):
# 75 ms for 2.57 billion parameters, mostly the casts' launches.
WIDENING_SECONDS_PER_PARAMETER = 0.075 / 2.57e9


def widening(choice: str, parameters: int) -> float:
    """Seconds added to one UNet call."""
    return WIDENING_SECONDS_PER_PARAMETER * parameters if choice == "fp8" else 0.0


def illegal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    if setup.storage == "same":
        return None
    if hardware.backend != "cuda":
        return "fp8 storage is for NVIDIA GPUs; elsewhere widening every layer would be slow"
    if setup.dtype == "fp32":
        return "fp8 weights are widened to fp16 or bf16; dtype=fp32 would spend four bytes on eight bits"
    return None


def because(setup: Setup, situation: Situation) -> str:
    if setup.storage == "fp8":
        return "fp8: half the UNet's memory, but eight bits per weight change the image"
    if situation.hardware.backend != "cuda":
        return f"weights stay in {setup.dtype}: fp8 storage is for NVIDIA GPUs"
    saved = situation.peaks(setup)[0] - situation.peaks(TECHNIQUE.put(setup, "fp8"))[0]
    if saved < 0.1 * GIB:
        return f"weights stay in {setup.dtype}: fp8 would save nothing here"
    return (
        f"weights stay in {setup.dtype}: fp8 would save {gib(saved)} but change the image; only with --pin storage=fp8"
    )


TECHNIQUE = Technique(
    slot="storage",
    choices=("same", "fp8"),
    without="same",
    illegal=illegal,
    beside=frozenset({"dtype"}),
    because=because,
    phrases={"fp8": "fp8 weights"},
    lossy=frozenset({"fp8"}),
)
