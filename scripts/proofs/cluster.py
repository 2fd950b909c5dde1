"""A Ray cluster of several nodes on this machine: every image exactly once, and what it costs beside drawing."""

from __future__ import annotations

import logging
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import make_checkpoint  # noqa: E402
from scripts.proofs.scale import JOB, Row, alone  # noqa: E402
from sdcli import __version__  # noqa: E402
from sdcli.draw import fake  # noqa: E402
from sdcli.draw.local import Engine  # noqa: E402
from sdcli.events import Decoded, Event, Planned, Warned  # noqa: E402
from sdcli.machine import survey  # noqa: E402
from sdcli.machine.several import Seat  # noqa: E402
from sdcli.models import resolve  # noqa: E402
from sdcli.plan.batches import Batch  # noqa: E402
from sdcli.plan.plan import Plan  # noqa: E402
from sdcli.plan.planner import make_plan, plan_alike  # noqa: E402
from sdcli.record import runs  # noqa: E402
from sdcli.record.store import store  # noqa: E402
from sdcli.request import jobs  # noqa: E402
from sdcli.request.request import Request  # noqa: E402
from sdcli.scale.cluster import Cluster  # noqa: E402
from tests.record.record_samples import destination  # noqa: E402
from tests.scale.ray_cluster import Nodes, lacking, nodes  # noqa: E402

NAME = "cluster"
CLAIM = (
    "Actors of a Ray cluster, and the processes under them, are killed 300 times while they draw 2,000 images on the "
    "fake engine, and a node is lost and another comes: each image is there exactly once, whole, with its own pixels; "
    "no process and no object is left. With 20 ms an image up to 8 actors are kept busy. A tiny model draws the same "
    "pixels on one node and on four."
)

IMAGES, KILLS = 2_000, 300
BUSY = 0.90  # of what so many engines could draw at most
STORE = "object_store_memory"
CPUS = (1, 3)  # of the nodes: four actors


def fragile(seconds: float) -> list[str]:
    return ["-P", "-m", "scripts.fragile_worker", f"--seconds={seconds}"]


def planned(folder: Path, images: int, side: int = 64) -> Plan:
    """Of a tiny model, for this machine's CPU."""
    if not (folder / "tiny").exists():
        make_checkpoint.write_folder(folder / "tiny", "sd15", tiny=True)
    request = Request(
        prompts=("a cat",), seeds=tuple(range(images)), num_images=images, width=side, height=side, steps=4,
        model=f"{folder}/tiny", pins={"execution": "eager", "attention": "fused", "dtype": "fp32"},
    )  # fmt: skip
    cpu = survey.choose("cpu", survey.look())
    of = jobs.make_jobs(request)
    return make_plan(request, resolve.at(folder / "tiny"), cpu, {}, jobs=of, version=__version__)


def drawn_by(of: Plan, seats: Sequence[Seat]) -> Plan:
    """What one thread draws on this machine, two may draw otherwise."""
    threads = min(seat.hardware.threads for seat in seats)
    of = replace(of, setup=replace(of.setup, threads=threads))
    alike = [(seat.name, plan_alike(of, seat.hardware, {})) for seat in seats]
    return replace(of, workers=tuple(own.worker(name) for name, own in alike if own is not None))


def killed(images: int = IMAGES, kills: int = KILLS, seed: int = 1) -> list[Row]:
    """A random actor, or the process under one, dies each time that some images have come: how many, is chance. The
    last node is lost in the middle, without a word, and another comes."""
    chance = random.Random(seed)
    at = sorted(chance.sample(range(1, images - 20), kills))
    with nodes(*CPUS) as there, tempfile.TemporaryDirectory() as made:
        to = destination(Path(made) / "out")
        of = planned(Path(made), images, side=192)  # large enough for Ray's object store
        with Cluster(there.address, "fake", fragile(JOB)) as cluster:
            of = drawn_by(of, cluster.seats())
            first, deaths, told = _drawn(store(_stream(of, cluster), to), at, chance, there, images // 2)
        before = runs.recover(runs.read(to.records))
        rest = [one for one in of.numbered() if one[0] in before.missing]
        second: dict[int, bytes] = {}
        if rest:  # over some, three died in a row
            with Cluster(there.address, "fake", fragile(0.0)) as cluster:
                of = drawn_by(of, cluster.seats())
                again = store(_stream(of, cluster, rest), to, journal=runs.reopen(before.run, {}), earlier=before.done)
                second, _, _ = _drawn(again, [], chance, there, None)
        expected = {event.index: event.pixels for event in fake.run(of) if isinstance(event, Decoded)}
        wrong = ["an image came twice"] if first.keys() & second.keys() else []
        wrong += ["other pixels"] if first | second != expected else []
        done = runs.recover(runs.read(to.records)).done
        wrong += [f"{len(done)} are whole on the disk"] if len(done) != images else []
        wrong += [f"{path.name} left" for path in Path(made).rglob("*.part")]
        left, stored = _left(there), _stored(there.address)
    seen = f"{len(first | second):,} of {images:,} images, {deaths} deaths, {len(rest)} images left to resume"
    first_wrong = f"; first: {wrong[0]}" if wrong else ""
    return [
        (f"{kills} kills of actors and their processes", seen + first_wrong, "each image once", not wrong),
        (
            "a node lost and another come meanwhile", ", ".join(sorted(told)), "joined, left-out",
            {"joined", "left-out"} <= told,
        ),
        ("processes left", f"{left}", "0", not left),
        ("left in Ray's object store", f"{stored:.0f} bytes", "0 bytes", not stored),
    ]  # fmt: skip


def _stream(of: Plan, cluster: Cluster, batches: Sequence[Batch] | None = None) -> Iterator[Event]:
    yield Planned(plan=of)
    yield from cluster.run(of, batches)


def _drawn(
    stream: Iterator[Event], at: list[int], chance: random.Random, there: Nodes, lose: int | None
) -> tuple[dict[int, bytes], int, set[str]]:
    pixels: dict[int, bytes] = {}
    deaths, told = 0, set()
    for event in stream:
        if isinstance(event, Warned):
            told.add(event.code)
        if isinstance(event, Decoded):
            assert event.index not in pixels
            pixels[event.index] = event.pixels
            if len(pixels) == lose:
                there.remove(there.nodes[-1])
                there.nodes[-1] = there.add(CPUS[-1])
            while at and len(pixels) >= at[0]:
                at.pop(0)
                alive = [*there.actors(), *there.workers()]
                for one in chance.sample(alive, min(1, len(alive))):
                    one.kill()
                    deaths += 1
    return pixels, deaths, told


def _left(there: Nodes) -> int:
    until = time.monotonic() + 30
    while (left := len(there.actors()) + len(there.workers())) and time.monotonic() < until:
        time.sleep(0.2)
    return left


def _stored(address: str) -> float:
    """Bytes in Ray's object store."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    until = time.monotonic() + 10
    while (used := _used(ray)) and time.monotonic() < until:
        time.sleep(0.5)
    ray.shutdown()
    return used


def _used(ray: ModuleType) -> float:
    return float(ray.cluster_resources()[STORE] - ray.available_resources()[STORE])


def busy(counts: Sequence[int] = (1, 2, 4, 8), seconds: float = 5.0) -> list[Row]:
    """Without a store, which writes one image after the other. The actors have started before."""
    most = max(counts)
    with tempfile.TemporaryDirectory() as made, nodes(1, most - 1) as there:
        of = planned(Path(made), int(most / JOB * seconds))
        with Cluster(there.address, "fake", fragile(JOB)) as cluster:
            seats = list(cluster.seats())
            while len(seats) < most:
                seats += cluster.seats()
            of = drawn_by(of, seats)
            for _ in cluster.run(of, of.numbered()[: 8 * most]):
                pass
            return [_busy(cluster, of, count, seconds) for count in counts]


def _busy(cluster: Cluster, of: Plan, workers: int, seconds: float) -> Row:
    most = alone() * workers
    batches = of.numbered()[: int(workers / JOB * seconds)]
    began, drawn = time.perf_counter(), 0
    for event in cluster.run(replace(of, workers=of.workers[:workers]), batches):
        drawn += isinstance(event, Decoded)
    took = time.perf_counter() - began
    share = drawn / took / most
    said = f"{drawn / took:,.0f} images/s, {share:.0%} of as many engines alone"
    return f"actors: {workers}, {JOB * 1000:.0f} ms an image", said, f"{BUSY:.0%}", share >= BUSY


def alike(images: int = 12) -> Row:
    """As an engine in this process draws them."""
    with tempfile.TemporaryDirectory() as made, nodes(1, 1, 1, 1) as there:
        of = planned(Path(made), images)
        with Cluster(there.address) as cluster:
            of = drawn_by(of, cluster.seats())
            many = [event for event in cluster.run(of) if isinstance(event, Decoded)]
        with Engine() as engine:
            one = [event for event in engine.run(replace(of, workers=())) if isinstance(event, Decoded)]
    same = {event.index: event.pixels for event in many} == {event.index: event.pixels for event in one}
    drew = len({event.worker for event in many})
    seen = f"{len(many)} images by {drew} of {len(of.workers)} nodes: {'equal' if same else 'other'} pixels"
    return "a tiny model on four nodes and in one process", seen, "equal", same and len(many) == images


def main() -> list[Row]:
    if lacking():
        return [("Ray", lacking(), "", None)]
    return [*killed(), *busy(), alike()]
