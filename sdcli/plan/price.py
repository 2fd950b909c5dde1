"""Time a setup takes for one batch, from counted work and assumed rates. Only ratios of it are shown: the slowdown."""

from __future__ import annotations

from dataclasses import dataclass

from sdcli.machine.hardware import Hardware
from sdcli.plan.footprint import Sizes
from sdcli.plan.plan import Setup
from sdcli.plan.rates import rates
from sdcli.plan.techniques import attention, dtype, execution, guidance, placement, storage, vae
from sdcli.plan.techniques.dtype import BYTES
from sdcli.plan.techniques.vae_dtype import effective

FLOP = 2  # a multiply-add


@dataclass(frozen=True, kw_only=True)
class Work:
    """How often things happen in the run that is planned."""

    calls: int  # UNet calls of one batch, guidance's pair counted once
    batches: int = 1


class Price:
    """Seconds of one batch for any setup; parts are kept, so that a product of setups is cheap."""

    def __init__(self, sizes: Sizes, work: Work, hardware: Hardware) -> None:
        self.sizes = sizes
        self.work = work
        self.hardware = hardware
        self.rates = rates(hardware)
        self._parts: dict[tuple[str, ...], float] = {}
        self._layers = sum(1 for leaf in sizes.call(1).leaves if leaf.parameters and leaf.kind != "norm")

    def seconds(self, setup: Setup) -> float:
        total = self._denoise(setup) + self._decode(setup) + self._moving(setup) + self._encode(setup)
        return total * placement.DROPPING if setup.placement in placement.ENCODERS_LEAVE else total

    def _encode(self, setup: Setup) -> float:
        key = ("encode", setup.dtype)
        if key not in self._parts:
            macs = sum(self.sizes.encoder(name).macs for name in self.sizes.encoders)
            passes = 2 if self.sizes.shape.guided else 1
            self._parts[key] = passes * FLOP * macs / self.rates.compute * dtype.slowdown(setup.dtype, self.hardware)
        return self._parts[key]

    def _denoise(self, setup: Setup) -> float:
        key = ("denoise", setup.dtype, setup.storage, setup.placement, setup.attention, setup.guidance, setup.execution)
        if key not in self._parts:
            self._parts[key] = self.work.calls * self._step(setup)
        return self._parts[key]

    def _step(self, setup: Setup) -> float:
        guided = self.sizes.shape.guided
        calls = 2 if guided and setup.guidance == "in-turn" else 1
        batch = self.sizes.shape.batch * (2 if guided and setup.guidance == "batched" else 1)
        one = self.sizes.call(1)
        launched = self.rates.launch * self._layers * execution.slowdown(setup.execution, self.hardware)
        factors = (
            dtype.slowdown(setup.dtype, self.hardware)
            * attention.slowdown(setup.attention)
            * execution.slowdown(setup.execution, self.hardware)
            * (guidance.slowdown(setup.guidance) if guided else 1.0)
        )
        computing = max(launched, FLOP * one.macs * batch / self.rates.compute * factors)
        call = computing + storage.widening(setup.storage, one.parameters)
        if setup.placement in placement.STREAMED:
            size = 1 if setup.storage == "fp8" else BYTES[setup.dtype]
            call = placement.STREAMING * max(call, one.parameters * size / self.rates.pinned)
        return calls * call

    def _decode(self, setup: Setup) -> float:
        """All pictures of the batch, one by one."""
        numbers = effective(setup)
        key = ("decode", numbers, setup.vae)
        if key not in self._parts:
            work = FLOP * self.sizes.decoder(setup.vae).macs * self.sizes.shape.batch
            if setup.vae == "cpu":
                self._parts[key] = work / self.rates.host
            else:
                split = vae.BLENDING if self.sizes.split(setup.vae) else 1.0
                self._parts[key] = split * work / self.rates.compute * dtype.slowdown(numbers, self.hardware)
        return self._parts[key]

    def _moving(self, setup: Setup) -> float:
        """Bytes that reach the device again for every batch."""
        if setup.placement not in (*placement.ONE_AT_A_TIME, *placement.STREAMED):
            return 0.0
        key = ("moving", setup.dtype, setup.storage, setup.placement, setup.vae, setup.vae_dtype)
        if key not in self._parts:
            held = self.sizes.weigh(setup)
            whole = held.vae if setup.placement in placement.STREAMED else held.unet + held.vae
            rate = self.rates.disk if setup.placement == "disk" else self.rates.pageable
            # prompts are encoded once, ahead of all batches
            streamed = held.encoders / (self.rates.pinned if setup.placement in placement.STREAMED else rate)
            self._parts[key] = whole / rate + streamed / self.work.batches
        return self._parts[key]
