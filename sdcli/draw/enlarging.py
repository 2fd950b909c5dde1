"""`sdcli upscale`: images enlarged one after another, in smaller tiles where memory runs out."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

from sdcli.draw import upscale
from sdcli.draw.decode import RGBImage
from sdcli.draw.meter import Meter
from sdcli.draw.oom import first_line, is_out_of_memory
from sdcli.draw.place import Components
from sdcli.errors import BadFile, ImagesFailed, OutOfMemory
from sdcli.events import Degraded, Enlarged, Event, Failed, Tile
from sdcli.images import read
from sdcli.images.fit import fitted
from sdcli.images.read import Layers
from sdcli.models import upscaler, upscaler_walk
from sdcli.plan.techniques.technique import gib
from sdcli.plan.upscaling import LOAD, SAVE, UPSCALE, UpscalePlan
from sdcli.request.upscaling import Enlargement
from sdcli.terminal import show


def run(plan: UpscalePlan) -> Iterator[Event]:
    """Closing it frees all memory."""
    work = Enlarging(plan)
    try:
        yield work.meter.read("import")
        for job in plan.jobs:
            yield from work.enlarge(job)
    finally:
        work.components.drop_all()


class Enlarging:
    def __init__(self, plan: UpscalePlan) -> None:
        self.plan = plan
        self.components = Components(plan.model, plan.setup)
        self.meter = Meter(self.components.device)

    def ready(self) -> Iterator[Event]:
        loaded = False
        for event in self.components.ready((upscaler.PART,)):
            loaded = True
            yield event
        if loaded:
            yield self.meter.read(LOAD)

    def enlarge(self, job: Enlargement) -> Iterator[Event]:
        """An image that fails leaves the others as they are."""
        started = time.perf_counter()
        try:
            layers = read.layers(job.image)
            image = yield from self._surviving(job, layers.rgb)
        except (BadFile, ImagesFailed) as error:
            yield Failed(batch=job.index, index=job.index, error=error.to_json())
            return
        yield self.meter.read(UPSCALE)
        made = finished(image, layers, job)
        del image
        yield Enlarged(
            index=job.index, width=made.width, height=made.height, seconds=time.perf_counter() - started,
            tile=self.components.setup.upscaler_tile, mode=made.mode, pixels=made.tobytes(), profile=layers.profile,
        )  # fmt: skip
        yield self.meter.read(SAVE)

    def _surviving(self, job: Enlargement, small: Any) -> Generator[Event, None, RGBImage]:
        """Again in tiles half as large whenever memory runs out."""
        while True:
            try:
                yield from self.ready()
                return (yield from self._through(job, small))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                because = first_line(error)
            # only here, after the except block, does nothing hold the failed call's memory any more
            yield self._smaller(job, because)

    def _through(self, job: Enlargement, small: Any) -> Generator[Event, None, RGBImage]:
        image, tile = RGBImage(small.width, small.height, small.tobytes()), self.components.setup.upscaler_tile
        with self.components.use(upscaler.PART) as net:
            times = upscaler_walk.times(net.config, image.width, image.height, (job.width, job.height))
            for made in upscale.enlarge(net, image, times=times, tile=tile):
                if isinstance(made, RGBImage):
                    image = made
                else:
                    yield Tile(batch=job.index, tile=made.tile, of=made.of, seconds=made.seconds)
        return image

    def _smaller(self, job: Enlargement, because: str) -> Degraded:
        self.components.drop_all()
        before = self.components.setup
        tile = next((one for one in self.plan.fallbacks if not before.upscaler_tile or one < before.upscaler_tile), 0)
        if not tile or not self.plan.falls_back:
            raise self._exhausted(job, because)
        self.components = Components(self.plan.model, replace(before, upscaler_tile=tile))
        return Degraded(
            batch=job.index, phase=UPSCALE, step=None, before={"tile": str(before.upscaler_tile or "whole")},
            after={"tile": str(tile)}, because=because, changes_pixels=True,
        )  # fmt: skip

    def _exhausted(self, job: Enlargement, because: str) -> OutOfMemory:
        need, free = self.plan.footprint.device_peak, self.meter.free()
        numbers = f"{gib(need)} needed" + (f", {gib(free)} free now" if free is not None else "")
        end = "nothing smaller is left to try" if self.plan.falls_back else "--no-fallback is set"
        hint = "sdcli doctor" if self.plan.falls_back else "the same command without --no-fallback"
        return OutOfMemory(
            f"out of memory enlarging {show(job.image.name, 80)}: {numbers}; {end} ({because})", hint=hint,
            phase=UPSCALE, need=need, free=free,
        )  # fmt: skip


def finished(image: RGBImage, layers: Layers, job: Enlargement) -> Any:
    """Pillow's image of the size that was asked for, as transparent as the small one."""
    from PIL import Image

    large = Image.frombytes("RGB", (image.width, image.height), image.pixels)
    made = large if large.size == (job.width, job.height) else fitted(large, job.width, job.height, job.fit)
    if layers.alpha is not None:
        made.putalpha(fitted(layers.alpha, job.width, job.height, job.fit))
    return made
