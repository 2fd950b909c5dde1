"""vae: the image decoded whole, in overlapping tiles, or on the CPU."""

from __future__ import annotations

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.plan import Setup
from sdcli.plan.techniques.technique import Situation, Technique, gib
from sdcli.plan.techniques.vae_dtype import effective

TILES = {"tile-512": 512, "tile-256": 256}  # side in pixels; a quarter of each overlaps its neighbour
SHAPES = 4  # of tiles at most: inner ones, the last of a row, of a column, and of both
BLENDING = 1.1  # assumed: blending, and more launches; the pixels decoded twice are counted exactly


def illegal(setup: Setup, hardware: Hardware, model: Model) -> str | None:
    if setup.vae != "cpu":
        return None
    if hardware.kind == "cpu":
        return "the VAE is on the CPU already"
    if effective(setup) != "fp32":
        return "a VAE on the CPU computes in fp32: add --pin vae-dtype=fp32"
    return None


def because(setup: Setup, situation: Situation) -> str:
    whole = TECHNIQUE.put(setup, "whole")
    if setup.vae == "whole":
        return "decoded whole: tiles would cost time and change pixels slightly"
    saved = situation.peaks(whole)[0] - situation.peaks(setup)[0]
    if saved <= 0:
        return f"vae={setup.vae} saves nothing at this size"
    how = "decoding it on the CPU" if setup.vae == "cpu" else f"tiles of {setup.vae.removeprefix('tile-')}"
    verb = "saves" if setup.vae == "cpu" else "save"
    if situation.heaviest(whole) == "decode":
        return f"the VAE's decode, not the UNet, sets the peak: {how} {verb} {gib(saved)}"
    return f"{how} {verb} {gib(saved)}"


TECHNIQUE = Technique(
    slot="vae",
    choices=("whole", "tile-512", "tile-256", "cpu"),
    without="whole",
    illegal=illegal,
    beside=frozenset({"dtype", "vae_dtype"}),
    because=because,
    phrases={"tile-512": "VAE in tiles of 512", "tile-256": "VAE in tiles of 256", "cpu": "VAE on the CPU"},
)
