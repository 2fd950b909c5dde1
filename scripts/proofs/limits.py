"""A pretend GPU too small for the plan, at many sizes, or that finds no memory at one allocation."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from scripts import make_checkpoint  # noqa: E402
from scripts.gpu import inside  # noqa: E402
from sdcli.draw import local  # noqa: E402
from sdcli.errors import OutOfMemory  # noqa: E402
from sdcli.events import Decoded, Degraded  # noqa: E402
from sdcli.plan.calibration import CUDA_CONTEXT  # noqa: E402
from sdcli.plan.footprint import footprint  # noqa: E402
from sdcli.plan.plan import Setup  # noqa: E402
from sdcli.plan.stages import Shape  # noqa: E402
from tests.pretend_gpu import Device, allocator, device, pretend  # noqa: E402

NAME = "limits"
CLAIM = (
    "On a pretend GPU that is too small for its plan (100 sizes for tiny SD and SDXL each), or that finds no memory at "
    "one allocation (every 50th): an image or exit 4, never more held than the setup's forecast, the pixels of the "
    "setup that drew, and nothing left."
)
FAMILIES = ("sd15", "sdxl")
SIDE = 256
LIMITS = 100
EVERY = 50  # allocations
MIB = 1 << 20
LARGE = device("8GiB")


@dataclass(frozen=True)
class Ended:
    """How one run ended; `wrong` says what should not have been so."""

    what: str
    drawn: bool
    fallbacks: int
    wrong: tuple[str, ...] = ()


class Runs:
    """All runs of one family, under a plan for a large GPU."""

    def __init__(self, folder: Path, family: str) -> None:
        torch.set_num_threads(1)
        with pretend(LARGE):
            self.plan = inside.plan_for(folder / family, steps=2, width=SIDE, height=SIDE, pins={"dtype": "fp32"})
        self._pixels: dict[Setup, bytes] = {}

    def pixels(self, setup: Setup) -> bytes:
        """Where there is memory for it."""
        if setup not in self._pixels:
            with pretend(LARGE):
                events = list(local.run(replace(self.plan, setup=setup, fallbacks=())))
            (self._pixels[setup],) = (event.pixels for event in events if isinstance(event, Decoded))
        return self._pixels[setup]

    def log(self) -> list[allocator.Call]:
        with pretend(LARGE) as gpu:
            list(local.run(replace(self.plan, fallbacks=())))
            return gpu.allocator().log

    def ended(self, what: str, room: int, fail_at: int = 0) -> Ended:
        drops, images, wrong, exhausted = [], [], [], False
        with pretend(Device(total=room + CUDA_CONTEXT, free=room + CUDA_CONTEXT)) as gpu:
            if fail_at:
                gpu.fail_at(fail_at)
            try:
                for event in local.run(self.plan):
                    if isinstance(event, Degraded):
                        drops.append(event)
                        gpu.allocator().allocated.reset()
                    if isinstance(event, Decoded):
                        images.append(event)
                        held = gpu.allocator().allocated.peak
                        if held > self.forecast(event.setup):
                            wrong.append(f"{held / MIB:.0f} MiB held under {event.setup.placement}, {event.setup.vae}")
            except OutOfMemory:
                exhausted = True
            gc.collect()
            if gpu.held():
                wrong.append(f"{gpu.held()} bytes left")
        if exhausted == bool(images):
            wrong.append("neither an image nor exit 4")
        for image in images:
            if not _alike(image.pixels, self.pixels(image.setup)):
                wrong.append("other pixels")
            if image.pixels != self.pixels(self.plan.setup) and not any(drop.changes_pixels for drop in drops):
                wrong.append("a fallback said to move no pixel moved some")
        return Ended(what, bool(images), len(drops), tuple(wrong))

    def forecast(self, setup: Setup) -> int:
        shape = Shape(width=SIDE, height=SIDE)
        return footprint(self.plan.model, shape, setup, self.plan.hardware).device_peak


def _alike(one: bytes, other: bytes) -> bool:
    """To two levels of 255: the steps before a fallback may have been drawn with other rounding."""
    levels = [np.frombuffer(pixels, np.uint8).astype(int) for pixels in (one, other)]
    return one == other or int(abs(levels[0] - levels[1]).max()) <= 2


def ended(folder: Path, family: str) -> list[Ended]:
    return list(_all_ended(Runs(folder, family)))


def _all_ended(runs: Runs) -> Iterator[Ended]:
    log = runs.log()
    enough = allocator.least(log)
    for number in range(LIMITS):
        room = enough * (number + 1) // LIMITS
        yield runs.ended(f"{room / MIB:.0f} MiB", room)
    allocations = sum(isinstance(call, tuple) for call in log)
    for number in range(1, allocations, EVERY):
        yield runs.ended(f"allocation {number}", LARGE.room, number)


def main() -> list[tuple[str, str, str, bool]]:
    rows: list[tuple[str, str, str, bool]] = []
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        folder = Path(name)
        for family in FAMILIES:
            make_checkpoint.write_folder(folder / family, family, tiny=True)
        for family, runs in zip(FAMILIES, workers.map(partial(ended, folder), FAMILIES), strict=True):
            rows.append(_row(family, "sizes", [run for run in runs if run.what.endswith("MiB")]))
            rows.append(_row(family, "allocations", [run for run in runs if not run.what.endswith("MiB")]))
    return rows


def _row(family: str, what: str, runs: list[Ended]) -> tuple[str, str, str, bool]:
    wrong = [f"{run.what}: {'; '.join(run.wrong)}" for run in runs if run.wrong]
    drawn = sum(run.drawn for run in runs)
    most = max(run.fallbacks for run in runs)
    seen = [f"{drawn} drawn with up to {most} fallbacks, {len(runs) - drawn} exit 4", *wrong]
    return f"{family}: {len(runs)} {what}", "; ".join(seen), "nothing else", not wrong and drawn > 0


if __name__ == "__main__":
    print(*main(), sep="\n")
