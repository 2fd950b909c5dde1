"""Random lists on random sets of devices of unlike size and make: what each worker may, and what comes of them."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests" / "plan"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from making import asking, gpu, known_model, processor  # noqa: E402

from sdcli import __version__  # noqa: E402
from sdcli.draw import fake  # noqa: E402
from sdcli.events import Decoded, Event, Planned, Saved  # noqa: E402
from sdcli.files import Unsynced  # noqa: E402
from sdcli.machine.hardware import Hardware  # noqa: E402
from sdcli.plan.fallbacks import changes_pixels  # noqa: E402
from sdcli.plan.plan import Plan  # noqa: E402
from sdcli.plan.planner import make_plan  # noqa: E402
from sdcli.plan.several import together  # noqa: E402
from sdcli.record.metadata.read import read as read_settings  # noqa: E402
from sdcli.record.store import store  # noqa: E402
from sdcli.request import jobs  # noqa: E402
from sdcli.scale.pool import Pool  # noqa: E402
from tests.record.record_samples import destination  # noqa: E402

# Of each make its compute capability and what it computes in.
HALF = {"bf16": "probed", "fp16": "probed"}
NO_HALF = dict.fromkeys(HALF, "unavailable")
MAKES = {"RTX 4060": ("8.9", HALF), "RTX 3060": ("8.6", HALF), "GTX 1060": ("6.1", NO_HALF)}
SIZES = (0.55, 1, 2, 3, 4, 6, 8, 12, 16, 24, 48)  # GiB
SIDES = (64, 128, 192, 256, 512, 1024)
LARGEST_DRAWN = 256  # of sides: larger images are planned alone, where VAEs need tiles on small cards


class Found(NamedTuple):
    """`wrong`: what of a plan, or of what was drawn, is not as it must be."""

    workers: int
    images: int  # that were drawn
    wrong: tuple[str, ...]


def checked(count: int, seed: int) -> Iterator[Found]:
    """Of each random plan; processes are those of one pool."""
    chance = random.Random(seed)
    with Pool("fake") as pool, tempfile.TemporaryDirectory() as made:
        for number in range(count):
            plan = _planned(chance)
            wrong = list(_of_plan(plan))
            drawn = len(plan.workers) > 1 and max(plan.jobs[0].size) <= LARGEST_DRAWN
            if drawn:
                wrong += _of_images(plan, pool, Path(made) / str(number))
            yield Found(len(plan.workers), len(plan.jobs) if drawn else 0, tuple(wrong))


def _planned(chance: random.Random) -> Plan:
    family = chance.choice(("sd15", "sdxl"))
    model = known_model(family)
    sides = chance.choices((SIDES[:4], SIDES), weights=(2, 1))[0]
    request = asking(
        family, size=(chance.choice(sides), chance.choice(sides)), count=chance.randint(1, 6),
        steps=chance.randint(1, 4), prompts=("a cat", "two dogs")[: chance.randint(1, 2)],
        batch_size=chance.randint(1, 3), guidance=chance.choice((1.0, 7.0)), batch_invariant=chance.random() < 0.3,
    )  # fmt: skip
    listed = jobs.make_jobs(request)
    seats = _devices(chance)

    def anew(hardware: Hardware) -> Plan:
        return make_plan(request, model, hardware, {}, jobs=listed, version=__version__)

    least = min(seats, key=lambda seat: (seat[1].kind == "cpu", seat[1].free))[1]
    return together(anew(least), seats, anew, lambda hardware: {})


def _devices(chance: random.Random) -> list[tuple[str, Hardware]]:
    cards = []
    for number in range(chance.randint(0, 4)):
        name = chance.choice(list(MAKES))
        capability, dtypes = MAKES[name]
        size = chance.choice(SIZES)
        card = gpu(size, free=size * chance.choice((1.0, 0.8)), name=name, capability=capability)
        cards.append((f"cuda:{number}", replace(card, device=f"cuda:{number}", dtypes=dtypes)))
    processes = chance.randint(0 if len(cards) > 1 else 2 - len(cards), 3)
    own = processor(chance.choice((8, 16, 64)), threads=chance.choice((1, 2, 4)))
    names = ["cpu"] if processes == 1 else [f"cpu:{number}" for number in range(1, processes + 1)]
    return [*cards, *((name, own) for name in names)]


def _of_plan(plan: Plan) -> Iterator[str]:
    if not plan.fits and plan.workers:
        yield "nothing fits, and yet there are workers"
    for worker in plan.workers:
        if worker.footprint.device_peak > worker.budget.device or worker.footprint.host_peak > worker.budget.host:
            yield f"{worker.name} needs more than it may take"
        if worker.setup.device != worker.hardware.device:
            yield f"{worker.name} would draw on {worker.setup.device}"
        for other in plan.workers:
            alike = (worker.hardware.backend, worker.hardware.name) == (other.hardware.backend, other.hardware.name)
            if alike and changes_pixels(worker.setup, other.setup):
                yield f"{worker.name} and {other.name} are alike, and draw other pixels"
    if sorted(index for batch in plan.batches for index in batch) != [job.index for job in plan.jobs]:
        yield "its batches are not its jobs"


def _of_images(plan: Plan, pool: Pool, folder: Path) -> Iterator[str]:
    drawn: dict[int, Decoded] = {}
    saved: dict[int, Saved] = {}
    for event in store(_stream(plan, pool), destination(folder), files=Unsynced()):
        if isinstance(event, Decoded):
            if event.index in drawn:
                yield f"image {event.index} was drawn twice"
            drawn[event.index] = event
        elif isinstance(event, Saved):
            saved[event.index] = event
    by_batch: dict[int, set[str]] = {}
    for event in drawn.values():
        by_batch.setdefault(event.batch, set()).add(event.worker)
    if len(by_batch) != len(plan.batches) or any(len(workers) != 1 for workers in by_batch.values()):
        yield "a batch was not drawn by one worker"
    alone = {event.index: event.pixels for event in fake.run(replace(plan, workers=())) if isinstance(event, Decoded)}
    if {index: event.pixels for index, event in drawn.items()} != alone:
        yield "other pixels than those of one worker"
    setups = {worker.name: worker.setup for worker in plan.workers}
    for index, event in saved.items():
        record = read_settings(event.path).record
        if record is None or record.setup != setups[event.worker]:
            yield f"image {index} records another setup than that of {event.worker}"


def _stream(plan: Plan, pool: Pool) -> Iterator[Event]:
    yield Planned(plan=plan)
    yield from pool.run(plan)
