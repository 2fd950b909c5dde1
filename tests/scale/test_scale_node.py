"""What an actor does on its node, here without a cluster: it finds the model, and passes orders and events on."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import make_checkpoint
from sdcli import __version__, events, schema
from sdcli.draw import fake
from sdcli.errors import BadFile, ModelMissing, Usage
from sdcli.machine.hardware import Hardware
from sdcli.models import resolve
from sdcli.models.model import Model
from sdcli.scale import cluster, here
from sdcli.scale.node import Node
from sdcli.workers.worker import CHILD
from tests.record.record_samples import plan


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def tiny(tmp_path: Path) -> Model:
    make_checkpoint.write_folder(tmp_path / "tiny", "sd15", tiny=True)
    return resolve.at(tmp_path / "tiny")


def found(model: Model, name: str, hashes: dict[str, str]) -> dict[str, Any]:
    asked = {"model": schema.to_json(model, whole=True), "name": name, "hashes": hashes, "offline": False}
    answer: dict[str, Any] = json.loads(Node().find(json.dumps(asked)))
    return answer


def test_a_node_tells_its_version_and_what_one_of_several_workers_may_use() -> None:
    one, two = (
        json.loads(Node().tell(json.dumps({"gpu": False, "cpus": 1, "of": count, "workers": count})))
        for count in (1, 2)
    )
    assert one["version"] == __version__
    whole, half = (schema.from_json(Hardware, told["hardware"], whole=True) for told in (one, two))
    assert whole.elsewhere and half.threads == max(1, whole.threads // 2)
    assert half.ram_total == whole.ram_total and half.ram_free < 0.75 * whole.ram_free


def test_orders_and_events_pass_through_a_node() -> None:
    of = replace(plan(images=2), version=__version__)
    node = Node()
    node.start([*CHILD[1:], "fake"])
    order = {"draw": 1, "plan": schema.to_json(of, whole=True), "batches": [0, 1], "drop": [], "kept": {}}
    node.write(json.dumps(order).encode() + b"\n")
    said = b""
    while b'{"ended": 1' not in said:
        said += node.read()
    stream, seen = io.BytesIO(said), []
    while not isinstance(event := events.read(stream), events.Done):
        assert event is not None
        seen.append(event)
    drawn = [event for event in fake.run(of) if isinstance(event, events.Decoded)]
    assert [one.pixels for one in seen if isinstance(one, events.Decoded)] == [one.pixels for one in drawn]
    os.kill(node.pid(), signal.SIGTERM)
    while node.read():
        pass
    assert node.ended()[0] != 0
    with pytest.raises(OSError):
        for _ in range(100):
            node.write(b"{}\n")
            time.sleep(0.01)
    node.end()


def test_a_model_is_found_at_its_path_or_by_its_name(tiny: Model, tmp_path: Path) -> None:
    expected = here.hashes(tiny)
    answer = found(tiny, str(tmp_path / "tiny"), expected)
    assert schema.from_json(Model, answer["model"], whole=True) == tiny
    (tmp_path / "tiny").rename(tmp_path / "elsewhere")
    there = here.located(tiny, str(tmp_path / "elsewhere"), expected)
    assert {
        Path(file).is_relative_to(tmp_path / "elsewhere") for part in there.components.values() for file in part.files
    } == {True}
    assert there.path == str(tmp_path / "elsewhere") and there.name == tiny.name
    missing = found(tiny, str(tmp_path / "tiny"), expected)["error"]
    assert missing["type"] == ModelMissing.type and str(tmp_path / "tiny") in missing["message"]


def test_another_model_of_the_same_name_is_refused(tiny: Model, tmp_path: Path) -> None:
    expected = here.hashes(tiny) | {"vae": "0" * 64}
    refused = found(tiny, str(tmp_path / "tiny"), expected)["error"]
    assert refused["type"] == BadFile.type and "its vae differs" in refused["message"]


def test_a_model_of_the_hub_that_cannot_be_fetched_is_missing(tiny: Model, tmp_path: Path) -> None:
    expected = here.hashes(tiny)
    (tmp_path / "tiny").rename(tmp_path / "elsewhere")
    refused = found(tiny, "sd15", expected)["error"]
    assert refused["type"] == "offline" and "sd15 is not on this machine" in refused["message"]


def test_ray_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.machine.packages.has", lambda name: False)
    with pytest.raises(Usage, match="needs a package that is not installed") as refused:
        cluster.Cluster("10.0.0.1:6379")
    assert "ray>=2.60" in refused.value.hint and "install" in refused.value.hint
