"""vae-dtype: the VAE's number format, where it has to differ from the UNet's."""

from __future__ import annotations

from sdcli.machine.hardware import Hardware
from sdcli.models.families import find
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques import dtype
from sdcli.plan.techniques.technique import Situation, Technique


def effective(setup: Setup) -> str:
    return setup.dtype if setup.vae_dtype == "same" else setup.vae_dtype


def overflows(model: Model) -> bool:
    """SDXL's VAE exceeds fp16's range and decodes to black; repaired ones have force_upcast = false. SD1.5's config is
    ignored, as in diffusers' pipeline."""
    vae = model.components.get("vae")
    return find(model.family).vae_overflows and (vae is None or vae.config.get("force_upcast", True) is True)


def illegal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    if effective(setup) == "fp16" and overflows(model):
        return "this model's VAE overflows in fp16 and decodes to black"
    if setup.vae_dtype == "bf16" and setup.dtype != "fp16":
        return "vae-dtype=bf16 is only for dtype=fp16"
    if setup.vae_dtype == "bf16" and not dtype.native_bf16(hardware):
        return "this device has no bf16 units"
    return None


def because(setup: Setup, situation: Situation) -> str:
    if setup.vae_dtype == "same":
        return f"the VAE computes in {setup.dtype} like the UNet"
    if setup.vae == "cpu":
        return "the VAE in fp32: the CPU decodes only in fp32"
    if setup.dtype == "fp16" and overflows(situation.model):
        cost = "twice the memory of fp16" if setup.vae_dtype == "fp32" else "the same memory"
        return f"the VAE in {setup.vae_dtype}: it overflows in fp16; {setup.vae_dtype} has the range, at {cost}"
    return f"the VAE in {setup.vae_dtype}, not the UNet's {setup.dtype}"


TECHNIQUE = Technique(
    slot="vae_dtype",
    choices=("same", "bf16", "fp32"),
    without="same",
    illegal=illegal,
    beside=frozenset({"dtype"}),
    because=because,
    phrases={"fp32": "VAE in fp32"},
)
