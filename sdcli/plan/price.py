"""The time a setup takes for one batch, from counted work and assumed rates. Only its ratios are shown: slowdowns."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

from sdcli.machine.hardware import Hardware
from sdcli.models.model import BYTES
from sdcli.plan.footprint import Sizes
from sdcli.plan.plan import Setup
from sdcli.plan.rates import CAPTURES, rates
from sdcli.plan.stages import Stage, parts_of
from sdcli.plan.techniques import dtype, execution, guidance, placement, storage, vae
from sdcli.plan.techniques.vae_dtype import effective

FLOP = 2  # a multiply-add
# The slots that the time of each kind of work depends on.
_SLOTS = {
    "text": attrgetter("dtype"),
    "reference": attrgetter("dtype"),
    "unet": attrgetter("dtype", "storage", "placement", "attention", "execution", "guidance"),
    "pixels": attrgetter("dtype", "vae", "vae_dtype"),
    "enlarge": attrgetter("dtype", "vae", "vae_dtype", "upscaler_tile"),
    "image": attrgetter("dtype", "vae", "vae_dtype"),
}


class RunSize(NamedTuple):
    """How many batches and windows the run has."""

    batches: int = 1
    windows: int = 1  # groups of batches whose prompts are encoded together


class Price:
    """Seconds of one batch for any setup; parts of the sum are cached, so that a product of setups is cheap."""

    def __init__(self, sizes: Sizes, work: RunSize, hardware: Hardware) -> None:
        self.sizes = sizes
        self.work = work
        self.hardware = hardware
        self.rates = rates(hardware)
        self._parts: dict[tuple[object, ...], float] = {}
        self._layers = {stage: self._count(stage) for stage in sizes.stages if stage.work == "unet"}

    def _count(self, stage: Stage) -> int:
        """Layers that are launched in one call of the stage's UNet."""
        call = self.sizes.call(stage.shape, stage.parts[0])
        return sum(1 for leaf in call.leaves if leaf.parameters and leaf.kind != "norm")

    def seconds(self, setup: Setup) -> float:
        total = sum(self._stage(stage, setup) for stage in self.sizes.stages) + self._moving(setup)
        return total * placement.DROPPING if setup.placement in placement.ENCODERS_LEAVE else total

    def denoising(self, setup: Setup) -> float:
        """The part of it in the UNet."""
        return sum(self._stage(stage, setup) for stage in self.sizes.stages if stage.work == "unet")

    def _stage(self, stage: Stage, setup: Setup) -> float:
        key = (stage.name, _SLOTS[stage.work](setup))
        if key not in self._parts:
            price = {
                "text": self._text, "reference": self._reference, "pixels": self._pixels, "unet": self._unet,
                "enlarge": self._enlarge, "image": self._image,
            }[stage.work]  # fmt: skip
            self._parts[key] = price(stage, setup)
        return self._parts[key]

    def _text(self, stage: Stage, setup: Setup) -> float:
        macs = sum(self.sizes.encoder(stage.shape, part).macs for part in stage.parts)
        passes = min(stage.shape.sides, 2)
        return passes * FLOP * macs / self.rates.compute * dtype.slowdown(setup.dtype, self.hardware)

    def _reference(self, stage: Stage, setup: Setup) -> float:
        """Mostly the same images for the whole run, each encoded once; and nothing, which is encoded too."""
        macs = (stage.references + 1) * self.sizes.image_reader().macs + self.sizes.referring(stage).macs
        seconds = FLOP * macs / self.rates.compute * dtype.slowdown(setup.dtype, self.hardware)
        return seconds / self.work.batches

    def _unet(self, stage: Stage, setup: Setup) -> float:
        return stage.steps * self._step(stage, setup) + self._capturing(stage, setup)

    def _capturing(self, stage: Stage, setup: Setup) -> float:
        """The call before a graph is captured, and the capture: once, and again whenever the UNet was read anew."""
        if setup.execution != "graph":
            return 0.0
        times = self.work.windows if setup.placement in placement.ENCODERS_LEAVE else 1
        plain = replace(setup, execution="eager", guidance="batched")
        once = self._call(stage, plain) + CAPTURES * self.rates.launch * self._layers[stage]
        return once * times / self.work.batches

    def _step(self, stage: Stage, setup: Setup) -> float:
        calls = stage.shape.sides if setup.guidance == "in-turn" else 1
        return calls * self._call(stage, setup)

    def _call(self, stage: Stage, setup: Setup) -> float:
        sides = stage.shape.sides
        batch = stage.shape.batch * (sides if setup.guidance == "batched" else 1)
        one = self.sizes.call(stage.shape, stage.parts[0])
        nets = [self.sizes.control(stage.shape, part) for part in stage.called]
        rate = self.rates.replay if setup.execution == "graph" else self.rates.launch
        launched = rate * self._layers[stage] + self.rates.launch * sum(net.layers for net in nets)
        factors = (
            dtype.slowdown(setup.dtype, self.hardware)
            * execution.slowdown(setup, self.hardware)
            * (guidance.slowdown(setup, self.hardware) if sides > 1 else 1.0)
        )
        macs = one.macs + sum(net.macs for net in nets)
        computing = max(launched, FLOP * macs * batch / self.rates.compute * factors)
        call = computing + storage.widening(setup.storage, one.parameters)
        if placement.streamed(setup.placement, "unet"):
            size = 1 if setup.storage == "fp8" else BYTES[setup.dtype]
            call = placement.STREAMING * max(call, one.parameters * size / self.rates.pinned)
        return call

    def _pixels(self, stage: Stage, setup: Setup) -> float:
        return self._through_the_vae(self.sizes.image_encoder(stage.shape, setup.vae).macs, stage, setup)

    def _enlarge(self, stage: Stage, setup: Setup) -> float:
        assert stage.smaller is not None
        macs = sum(self.sizes.upscaler(stage, part, setup.upscaler_tile).macs for part in stage.parts if part != "vae")
        enlarging = FLOP * macs * stage.shape.batch / self.rates.compute * dtype.slowdown(setup.dtype, self.hardware)
        return self._image(replace(stage, shape=stage.smaller), setup) + enlarging + self._pixels(stage, setup)

    def _image(self, stage: Stage, setup: Setup) -> float:
        return self._through_the_vae(self.sizes.decoder(stage.shape, setup.vae).macs, stage, setup)

    def _through_the_vae(self, macs: int, stage: Stage, setup: Setup) -> float:
        """All images of the batch, one by one."""
        work = FLOP * macs * stage.shape.batch
        if setup.vae == "cpu":
            return work / self.rates.host
        larger = max(stage.shape.height, stage.shape.width)
        split = vae.BLENDING if larger > vae.TILES.get(setup.vae, larger) else 1.0
        return split * work / self.rates.compute * dtype.slowdown(effective(setup), self.hardware)

    def _moving(self, setup: Setup) -> float:
        """Seconds per batch for reading weights again, or moving them to the device again."""
        key = ("moving", setup.dtype, setup.storage, setup.placement, setup.vae, setup.vae_dtype)
        if key not in self._parts:
            self._parts[key] = self._reading(setup) if setup.placement == "drop-encoders" else self._fetching(setup)
        return self._parts[key]

    def _reading(self, setup: Setup) -> float:
        """All weights once per window after the first: encoders and UNet make room for each other."""
        whole = sum(self.sizes.weights(part, setup) for part in parts_of(self.sizes.stages))
        return whole / self.rates.disk * (self.work.windows - 1) / self.work.batches

    def _fetching(self, setup: Setup) -> float:
        if setup.placement == "resident":
            return 0.0
        rate = self.rates.disk if setup.placement == "disk" else self.rates.pageable
        seconds = 0.0
        for stage in self.sizes.stages:
            share = self.work.windows / self.work.batches if stage.ahead else 1.0
            for part in (*stage.parts, *stage.beside):
                streamed = placement.streamed(setup.placement, part)
                if self.sizes.on_host(part, setup) or (streamed and stage.work == "unet"):  # included in the step
                    continue
                size = self.sizes.weights(part, setup)
                seconds += share * size / (self.rates.pinned if streamed else rate)
        return seconds
