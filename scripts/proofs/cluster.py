"""A Ray cluster of several nodes on this machine: every image exactly once, and what it costs beside drawing."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts import make_checkpoint  # noqa: E402
from scripts.proofs.scale import JOB, Row, alone  # noqa: E402
from sdcli import __version__  # noqa: E402
from sdcli.draw import fake  # noqa: E402
from sdcli.draw.local import Engine  # noqa: E402
from sdcli.events import Decoded, Event, Failed, Planned, Warned  # noqa: E402
from sdcli.models import resolve  # noqa: E402
from sdcli.plan.plan import Plan, WorkerPlan  # noqa: E402
from sdcli.plan.planner import make_plan  # noqa: E402
from sdcli.record import runs  # noqa: E402
from sdcli.record.store import store  # noqa: E402
from sdcli.request import jobs  # noqa: E402
from sdcli.request.request import Request  # noqa: E402
from sdcli.scale.cluster import Cluster  # noqa: E402
from tests.record.record_samples import destination, plan  # noqa: E402
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
CPUS = (1, 3)  # of the nodes: four actors


def fragile(seconds: float) -> list[str]:
    return ["-P", "-m", "scripts.fragile_worker", f"--seconds={seconds}"]


def planned(images: int, workers: Sequence[WorkerPlan]) -> Plan:
    return replace(plan(images=images), version=__version__, workers=tuple(workers))


def joined(cluster: Cluster) -> list[WorkerPlan]:
    """All actors, each with a plan."""
    any_plan = planned(1, ())
    return [replace(any_plan.worker(seat.name), hardware=seat.hardware) for seat in cluster.seats()]


def killed(images: int = IMAGES, kills: int = KILLS, seed: int = 1) -> list[Row]:
    """A random actor, or the process under one, dies each time that some images have come: how many, is chance. The
    last node is lost in the middle, without a word, and another comes."""
    chance = random.Random(seed)
    at = sorted(chance.sample(range(1, images - 20), kills))
    with nodes(*CPUS) as there, tempfile.TemporaryDirectory() as made:
        to = destination(Path(made))
        with Cluster(there.address, "fake", fragile(JOB)) as cluster:
            of = planned(images, joined(cluster))
            first, deaths, told = _drawn(store(_stream(of, cluster), to), at, chance, there, images // 2)
            before = runs.recover(runs.read(to.records))
            rest = [one for one in of.numbered() if one[0] in before.missing]
        second: dict[int, bytes] = {}
        if rest:  # over some, three died in a row
            with Cluster(there.address, "fake", fragile(0.0)) as cluster:
                of = replace(of, workers=tuple(joined(cluster)))
                again = store(_stream(of, cluster, rest), to, journal=runs.reopen(before.run, {}), earlier=before.done)
                second, _, _ = _drawn(again, [], chance, there, None)
        expected = {event.index: event.pixels for event in fake.run(of) if isinstance(event, Decoded)}
        wrong = ["an image came twice"] if first.keys() & second.keys() else []
        wrong += ["other pixels"] if first | second != expected else []
        done = runs.recover(runs.read(to.records)).done
        wrong += [f"{len(done)} are whole on the disk"] if len(done) != images else []
        wrong += [f"{path.name} left" for path in Path(made).rglob("*.part")]
        left = _left(there)
        objects = _objects(there.address)
    seen = f"{len(first | second):,} of {images:,} images, {deaths} deaths, {len(rest)} left to resume"
    first_wrong = f"; first: {wrong[0]}" if wrong else ""
    lost = ", ".join(sorted(told))
    return [
        (f"{kills} kills of actors and their processes", seen + first_wrong, "each image once", not wrong),
        ("a node lost, another come, in the same run", lost, "joined, left-out", {"joined", "left-out"} <= told),
        ("processes left", f"{left}", "0", not left),
        ("objects left in Ray's store", objects, "0 objects", "0 objects" in objects),
    ]


def _stream(of: Plan, cluster: Cluster, batches: Sequence[object] | None = None) -> Iterator[Event]:
    yield Planned(plan=of)
    yield from cluster.run(of, batches)  # type: ignore[arg-type]


def _drawn(
    stream: Iterator[Event], at: list[int], chance: random.Random, there: Nodes, lose: int | None
) -> tuple[dict[int, bytes], int, set[str]]:
    pixels: dict[int, bytes] = {}
    deaths, told = 0, set()
    for event in stream:
        if isinstance(event, Warned):
            told.add(event.code)
        if isinstance(event, Failed):
            continue
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


def _objects(address: str) -> str:
    """As Ray counts them."""
    command = [sys.executable, "-P", "-c", "from ray.scripts.scripts import main; main()"]
    done = subprocess.run([*command, "memory", "--stats-only", "--address", address], capture_output=True, text=True)
    lines = [line.strip() for line in done.stdout.splitlines() if "objects" in line and "Plasma memory usage" in line]
    return lines[0] if lines else (done.stderr.strip().splitlines() or ["nothing was said"])[-1]


def busy(counts: Sequence[int] = (1, 2, 4, 8), seconds: float = 5.0) -> list[Row]:
    """Without a store, which writes one image after the other. The actors have started before."""
    with nodes(1, max(counts) - 1) as there, Cluster(there.address, "fake", fragile(JOB)) as cluster:
        workers = joined(cluster)
        while len(workers) < max(counts):
            workers += joined(cluster)
        for _ in cluster.run(planned(8 * len(workers), workers)):
            pass
        return [_busy(cluster, workers[:count], seconds) for count in counts]


def _busy(cluster: Cluster, workers: Sequence[WorkerPlan], seconds: float) -> Row:
    most = alone() * len(workers)
    count = max(len(workers) * 4, int(len(workers) / JOB * seconds))
    began, drawn = time.perf_counter(), 0
    for event in cluster.run(planned(count, workers)):
        drawn += isinstance(event, Decoded)
    took = time.perf_counter() - began
    share = drawn / took / most
    said = f"{drawn / took:,.0f} images/s, {share:.0%} of as many engines alone"
    return f"{len(workers)} actors, {JOB * 1000:.0f} ms an image", said, f"{BUSY:.0%}", share >= BUSY


def alike(images: int = 12) -> Row:
    """On as many nodes as this machine has room for, the pixels of an engine in this process."""
    with tempfile.TemporaryDirectory() as made, nodes(1, 1, 1, 1) as there:
        make_checkpoint.write_folder(Path(made) / "tiny", "sd15", tiny=True)
        asked = Request(
            prompts=("a cat",), seeds=tuple(range(images)), num_images=images, width=64, height=64, steps=4,
            model=f"{made}/tiny", pins={"execution": "eager", "attention": "fused", "dtype": "fp32"},
        )  # fmt: skip
        model = resolve.at(Path(made) / "tiny")
        with Cluster(there.address) as cluster:
            seats = cluster.seats()
            of = make_plan(asked, model, seats[0].hardware, {}, jobs=jobs.make_jobs(asked), version=__version__)
            of = replace(of, workers=tuple(replace(of.worker(seat.name), hardware=seat.hardware) for seat in seats))
            many = [event for event in cluster.run(of) if isinstance(event, Decoded)]
        with Engine() as engine:
            one = [event for event in engine.run(replace(of, workers=())) if isinstance(event, Decoded)]
    same = {event.index: event.pixels for event in many} == {event.index: event.pixels for event in one}
    drew = len({event.worker for event in many})
    seen = f"{len(many)} images by {drew} of {len(seats)} nodes: {'equal' if same else 'other'} pixels"
    return "a tiny model on four nodes and on one", seen, "equal", same and len(many) == images


def main() -> list[Row]:
    if lacking():
        return [("Ray", lacking(), "", None)]
    return [*killed(), *busy(), alike()]
