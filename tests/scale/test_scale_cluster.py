"""A Ray cluster draws one run: every image once and with the pixels of one worker, whatever happens to actors, to the
processes under them and to nodes."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from scripts import make_checkpoint
from sdcli import __version__
from sdcli.cli import main
from sdcli.errors import BadFile, DeviceUnusable, Usage
from sdcli.events import Decoded, Event, Failed, Planned, Warned
from sdcli.models import resolve
from sdcli.models.model import Model
from sdcli.plan.batches import Batch
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.record import found_runs, runs
from sdcli.record import report as reports
from sdcli.scale import cluster as clusters
from sdcli.scale.cluster import Cluster
from tests.record.record_samples import plan
from tests.scale.images_of import alone, pixels
from tests.scale.ray_cluster import Nodes, lacking, nodes

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
FRAGILE = ("-P", "-m", "scripts.fragile_worker")
BY_FAKE = """
from functools import partial
from sdcli.cli import main
from sdcli.scale import cluster
slow = ("-P", "-m", "scripts.fragile_worker", "--seconds", "0.1")
cluster.Cluster = partial(cluster.Cluster, engine="fake", command=slow)
main.run()
"""  # sdcli, as if every node had an engine that draws gradients


@pytest.fixture(scope="module")
def two() -> Iterator[Nodes]:
    if lacks := lacking():
        pytest.skip(lacks)
    with nodes(1, 1) as found:
        yield found


def planned(cluster: Cluster, images: int, model: Model | None = None) -> Plan:
    """For both nodes, of a model that is made up, if none is given."""
    seats = list(cluster.seats())
    while len(seats) < 2:
        seats += cluster.seats()
    of = replace(plan(images=images), version=__version__)
    if model is not None:
        of = make_plan(of.request, model, seats[0].hardware, {}, jobs=of.jobs, version=__version__)
    return replace(of, workers=tuple(replace(of.worker(seat.name), hardware=seat.hardware) for seat in seats))


def gone(processes: Sequence[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=30)[1]


def images(folder: Path) -> dict[str, str]:
    (records,) = found_runs.found([folder])
    return {intent.file: intent.pixel_sha256 for intent in runs.read(records).intents.values()}


def sdcli(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main.run(words)
    return int(left.value.code or 0)  # type: ignore[arg-type]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a tiny model."""
    monkeypatch.setenv("SDCLI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    make_checkpoint.write_folder(tmp_path / "tiny", "sd15", tiny=True)
    return tmp_path


ASKED = ("generate", "a cat", "two dogs", "-m", "./tiny", "--steps", "1", "--size", "64x64", "-q", "--dtype", "fp32")


def test_a_cluster_draws_the_images_of_one_worker(two: Nodes, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = (*ASKED, "--seed", "1..3", "--pin", "execution=eager", "--pin", "attention=fused")
    assert sdcli(*asked, "--engine", f"ray={two.address}", "-o", "many") == 0, capfd.readouterr().err
    assert len(capfd.readouterr().out.splitlines()) == 6
    assert sdcli(*asked, "-o", "one") == 0
    assert images(here / "many") == images(here / "one") and len(images(here / "one")) == 6
    (records,) = found_runs.found([here / "many"])
    report = json.loads((records / "report.json").read_text())
    assert {one["name"] for one in report["workers"]} <= {"node-1", "node-2"}
    assert sum(one["images"] for one in report["workers"]) == 6
    assert gone(two.actors()) and gone(two.workers())


def test_a_terminated_run_leaves_nothing_and_goes_on_where_it_was(
    two: Nodes, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray takes SIGTERM for itself, but for what is done against that."""
    engine = ("--engine", f"ray={two.address}")
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", BY_FAKE, *ASKED, "--seed", "1..40", *engine, "-o", "out"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    while len(list((here / "out").glob("*.png"))) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    drawing = [*two.actors(), *two.workers()]
    assert len(drawing) >= 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    said = process.stderr.read().decode()
    process.stderr.close()
    (records,) = found_runs.found([here / "out"])
    line = f"  try: sdcli resume out/runs/{records.name} --engine ray={two.address}"
    assert said.splitlines()[-1] == line and gone(drawing)
    assert 3 <= len(runs.recover(runs.read(records)).done) < 80
    monkeypatch.setattr(clusters, "Cluster", partial(Cluster, engine="fake"))
    assert sdcli(*line.split()[2:], "-q") == 0
    assert len(images(here / "out")) == 80 == len(list((here / "out").glob("*.png")))
    assert gone(two.actors()) and gone(two.workers())


def test_actors_and_processes_that_are_killed_lose_no_image(two: Nodes) -> None:
    chance, events, seen = random.Random(1), [], 0
    with Cluster(two.address, "fake", [*FRAGILE, "--seconds", "0.05"]) as cluster:
        of = planned(cluster, 40)
        for event in cluster.run(of):
            events.append(event)
            seen += isinstance(event, Decoded)
            if isinstance(event, Decoded) and seen in (4, 12, 20):
                chance.choice([*two.actors(), *two.workers()]).kill()
    assert pixels(events) == alone(of) and not any(isinstance(event, Failed) for event in events)
    assert {event.code for event in events if isinstance(event, Warned)} == {"worker-died"}
    assert gone(two.actors()) and gone(two.workers())


def test_an_actor_with_another_version_is_left_out(two: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.scale.actor.__version__", "9.9.9")
    with (
        Cluster(two.address, "fake") as cluster,
        pytest.raises(DeviceUnusable, match=r"node-\d: sdcli is .* there, and"),
    ):
        cluster.seats()


def test_nodes_with_other_files_under_the_models_name_draw_nothing(
    two: Nodes, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = clusters.here.hashes
    monkeypatch.setattr(clusters.here, "hashes", lambda model: hashes(model) | {"vae": "0" * 64})
    told: list[Event] = []
    with Cluster(two.address) as cluster:
        of = planned(cluster, 2, resolve.at(here / "tiny"))
        with pytest.raises(BadFile, match="its vae differs"):
            told.extend(cluster.run(of))
    left_out = sorted(event.message for event in told if isinstance(event, Warned))
    because = "is left out from here on: tiny is another one here: its vae differs"
    assert left_out == [f"node-{number} {because}" for number in (1, 2)] and not two.workers()


def test_an_address_without_a_cluster_is_refused_within_seconds(two: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.scale.cluster.REACHED", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(DeviceUnusable, match=f"no Ray cluster can be reached at 127.0.0.1:{port}: timed out"):
            Cluster(f"127.0.0.1:{port}")
    with pytest.raises(DeviceUnusable, match="Connection refused") as refused:
        Cluster(f"127.0.0.1:{port}")
    assert refused.value.hint == "ray start --head"
    for wrong in ("ray://127.0.0.1:10001", "127.0.0.1", ":1", "head:x"):
        with pytest.raises(Usage, match="is no address of a Ray cluster"):
            Cluster(wrong)


def test_a_node_that_goes_is_told_of_and_one_that_comes_is_used(two: Nodes, here: Path) -> None:
    events: list[Event] = []
    begun: list[int] = []
    used, missed, seen = False, False, 0

    def batches(of: Plan) -> Iterator[Batch]:
        for batch in of.numbered():
            if used and missed:
                return
            begun.append(batch[0])
            yield batch

    with Cluster(two.address, "fake", [*FRAGILE, "--seconds", "0.05"]) as cluster:
        of = planned(cluster, 4000, resolve.at(here / "tiny"))
        for event in cluster.run(of, batches(of)):
            events.append(event)
            seen += isinstance(event, Decoded)
            if isinstance(event, Decoded) and seen == 5:
                two.remove(two.nodes[1])
                two.nodes[1] = two.add(1)
            used |= event.worker == "node-3" and isinstance(event, Decoded)
            missed |= isinstance(event, Warned) and event.code == "left-out"
    assert used and pixels(events) == {index: each for index, each in alone(of).items() if index in begun}
    report = reports.fold([Planned(plan=of), *events], started="", run="r", seconds=1.0)
    assert [one.name for one in report.workers] == [*(own.name for own in of.workers), "node-3"]
    told = {event.code: event.message for event in events if isinstance(event, Warned) and event.code != "worker-died"}
    assert told["left-out"] == "node-2 is left out from here on: its node left the cluster"
    assert told["joined"].startswith("node-3 joins")
