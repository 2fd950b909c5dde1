"""What a plan needs to know of a setup: its phases, its peaks (measured where remembered), its time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan import calibration
from sdcli.plan.batches import windows
from sdcli.plan.compiling import Compiling, compiling
from sdcli.plan.footprint import Sizes
from sdcli.plan.plan import Budget, Phase, Setup
from sdcli.plan.price import Price, RunSize
from sdcli.plan.remembered import Measures, key_of, measures
from sdcli.plan.stages import stages
from sdcli.plan.techniques.technique import NOISE
from sdcli.request.request import Job

MANY = 1000  # batches assumed for a stream of jobs
SHAPES_LOOKED_AT = 3  # a list of prompts may name many sizes; the heaviest decide


class Forecast:
    """One run on one machine: computes peaks and times of setups, chooses none."""

    def __init__(
        self,
        model: Model,
        hardware: Hardware,
        batches: Iterable[tuple[Job, ...]],
        remembered: Mapping[str, Any],
        alone: bool = False,
        more: bool = False,
    ) -> None:
        """`alone`: each image of a batch has its own UNet calls; `more`: further batches follow one by one."""
        self.model = model
        self.hardware = hardware
        self.alone = alone
        self.more = more
        self.remembered = remembered
        self.runs = runs = list(batches)
        heaviest = sorted({_weight(batch): batch for batch in runs}.items(), reverse=True)[:SHAPES_LOOKED_AT]
        self.heaviest = heaviest[0][1]
        self.sizes = [Sizes(model, stages(model, batch, alone=alone), hardware) for _, batch in heaviest]
        # a stream of jobs is encoded batch by batch, and how many will come is unknown
        work = RunSize(batches=MANY, windows=MANY) if more else RunSize(batches=len(runs), windows=windows(len(runs)))
        self.price = Price(self.sizes[0], work, hardware)
        self.counted, self.seconds = cache(self._counted), cache(self._priced)  # asked several times of a setup

    @property
    def guided(self) -> bool:
        """Whether a step also needs the unconditional half."""
        return any(stage.shape.sides > 1 for stage in self.sizes[0].stages)

    def phases(self, setup: Setup) -> tuple[Phase, ...]:
        """Each phase at its heaviest over all sizes."""
        rows = [sizes.phases(setup) for sizes in self.sizes]
        if len(rows) == 1:
            return rows[0]
        every = [phase for row in rows for phase in row]
        names = [phase.name for phase in max(rows, key=len)]  # some images have stages that others have not
        alike = [[phase for phase in every if phase.name == name] for name in names]
        return tuple(max(same, key=lambda phase: (phase.device, phase.host)) for same in alike)

    def _counted(self, setup: Setup) -> tuple[int, int]:
        """Peaks on device and host, as counted."""
        device, host = zip(*[sizes.peaks(setup) for sizes in self.sizes], strict=True)
        return max(device), max(host)

    def peaks(self, setup: Setup) -> tuple[int, int]:
        """Peaks on device and host: as measured here before, else as counted."""
        device, host = self.counted(setup)
        measured = self.measured(setup)
        if measured is None:
            return device, host
        host = measured.host_peak or host
        return (host if self.hardware.kind == "cpu" else _corrected(device, measured)), host

    def measured(self, setup: Setup) -> Measures | None:
        if not self.remembered:
            return None
        return measures(self.remembered.get(key_of(self.model, setup, self.heaviest, self.alone)))

    def total_seconds(self, setup: Setup) -> float | None:
        """Of the whole run, from what was measured here; never from assumed rates."""
        measured = self.measured(setup)
        if measured is None:
            return None
        return measured.total(self.calls, sum(map(len, self.runs)))

    @property
    def calls(self) -> int:
        """Of the UNet in the whole run."""
        return sum(batch[0].all_calls for batch in self.runs)

    @property
    def has_compiled(self) -> bool:
        """Whether any compiled run is remembered: without one there is nothing to compare."""
        return any("execution=compile" in key for key in self.remembered)

    def compiling(self, setup: Setup) -> Compiling | None:
        """What compiling this setup's blocks costs and saves, if both ways were measured here."""
        return compiling(setup, self.measured, self.calls)

    def _priced(self, setup: Setup) -> float:
        """Compiled blocks have no rate of their own: their time is the rival's, as much shorter as was measured."""
        found = self.compiling(setup) if setup.execution == "compile" else None
        if found is None:
            return self.price.seconds(setup)
        ratio = 1.0 if NOISE < found.ratio < 1.0 else found.ratio
        return self.price.seconds(found.rival) + (ratio - 1.0) * self.price.denoising(found.rival)

    def on(self, hardware: Hardware) -> Forecast:
        """The same run on other hardware."""
        return Forecast(self.model, hardware, self.runs, {}, self.alone, self.more)


def _corrected(device: int, measured: Measures) -> int:
    """The need lies between what was allocated and what was reserved: some of that is only kept for later."""
    most = measured.device_peak or device
    return min(max(device, measured.allocated_peak or most), most)


def _weight(batch: tuple[Job, ...]) -> tuple[int, ...]:
    first = batch[0]
    width, height = first.size
    return (
        width * height * len(batch),
        width * height,
        first.guided,
        first.start is not None,
        first.second is not None,
        first.refined is not None,
        len(first.controls),
        len(first.references),
        first.all_calls,
        width,
    )


def budget(hardware: Hardware, max_vram: int | None, max_ram: int | None) -> Budget:
    """What a plan may use of the memory free now; the user's limits lower it."""
    ram = hardware.ram_free if max_ram is None else min(hardware.ram_free, max_ram)
    host = int(calibration.SAFETY * ram)
    if hardware.kind == "cpu":
        return Budget(device=host, host=host)
    free = hardware.free if max_vram is None else min(hardware.free, max_vram)
    context = calibration.context(hardware.backend)
    share = calibration.SAFETY if hardware.shares_memory else calibration.safety(hardware.backend)
    return Budget(device=max(0, int(share * (free - context))), host=host)
