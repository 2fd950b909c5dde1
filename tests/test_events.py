"""Events, plans and jobs pass between sdcli processes as JSON: nothing is lost, and reading them runs no code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from scripts import make_checkpoint
from sdcli import events, schema
from sdcli.draw import fake
from sdcli.events import Decoded, Denoised, Happened, Planned, Preview
from sdcli.machine.hardware import Hardware
from sdcli.models import resolve
from sdcli.plan.plan import Adapter, Plan
from sdcli.plan.planner import make_plan
from sdcli.request.request import Request
from sdcli.sizes import GIB

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = make_checkpoint.write_folder(tmp_path_factory.mktemp("model") / "tiny", "sdxl", tiny=True)
    here = Hardware(
        device="cpu", name="a CPU", source="os", total=64 * GIB, free=64 * GIB, ram_total=64 * GIB, ram_free=64 * GIB,
        threads=2, dtypes={"fp32": "probed"}, uuid="GPU-1", notes=("a note",),
    )  # fmt: skip
    request = Request(prompts=("a cat", "è 猫"), seeds=(1, 2), width=64, height=64, steps=3, filmstrip=2)
    adapter = Adapter(name="ink", sha256="0" * 64, scale=0.5, path="/somewhere/ink.safetensors")
    return make_plan(request, resolve.at(folder), here, {}, adapters=(adapter,))


def test_a_plan_crosses_whole_and_is_recorded_without_paths(plan: Plan) -> None:
    text = json.dumps(schema.to_json(plan, whole=True))
    assert schema.from_json(Plan, json.loads(text), whole=True) == plan
    recorded = json.dumps(schema.to_json(plan))
    assert str(plan.model.path) in text and str(plan.model.path) not in recorded and "/somewhere" not in recorded


def test_every_event_of_a_run_comes_through_a_pipe_as_it_was(plan: Plan) -> None:
    sent = [replace(event, worker="one") for event in (Planned(plan=plan), *fake.run(plan))]
    stream = io.BytesIO()
    for event in sent:
        events.write(event, stream)
    stream.seek(0)
    got = list(iter(lambda: events.read(stream), None))
    assert got == sent
    assert any(isinstance(event, Decoded) and event.pixels for event in got)
    assert any(isinstance(event, Preview) and event.pixels for event in got)


def test_latents_stay_where_they_are() -> None:
    stream = io.BytesIO()
    events.write(Denoised(batch=0, seconds=1.0, latents=object()), stream)
    stream.seek(0)
    assert events.read(stream) == Denoised(batch=0, seconds=1.0)


def test_every_kind_of_event_can_name_its_worker() -> None:
    for kind in events.KINDS.values():
        assert issubclass(kind, Happened) and fields(kind)[0].name == "worker"


def test_what_comes_from_another_process_is_drawn_from_json_alone(plan: Plan) -> None:
    """A worker that reads its plan from stdin and answers with events, in two lines."""
    code = (
        "import sys, json; from sdcli import events, schema; from sdcli.plan.plan import Plan\n"
        "from sdcli.draw.engines import engine\n"
        "plan = schema.from_json(Plan, json.loads(sys.stdin.readline()), whole=True)\n"
        "for event in engine(sys.argv[1]).run(plan): events.write(event, sys.stdout.buffer)\n"
    )
    line = json.dumps(schema.to_json(plan, whole=True)).encode() + b"\n"
    done = subprocess.run([sys.executable, "-c", code, "fake"], input=line, capture_output=True, check=True, cwd=ROOT)
    stream = io.BytesIO(done.stdout)
    got = list(iter(lambda: events.read(stream), None))
    here = [event for event in fake.run(plan) if isinstance(event, Decoded)]
    assert [event.pixels for event in got if isinstance(event, Decoded)] == [event.pixels for event in here]
    assert [event.setup for event in got if isinstance(event, Decoded)] == [plan.setup] * 4


def test_no_pickle_is_left() -> None:
    found = [path for path in (ROOT / "sdcli").rglob("*.py") if "import pickle" in path.read_text(encoding="utf-8")]
    assert [path.relative_to(ROOT).as_posix() for path in found] == []
