"""scripts/gpu: its runs can be planned, the short form goes from end to end on a pretend GPU and on where it was
interrupted, verdicts can fail."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from scripts import make_checkpoint
from scripts.gpu import __main__ as program
from scripts.gpu import exact, memory, race
from scripts.gpu.lab import Ended
from scripts.gpu.memory import Result, cases, check, obeyed, planned, streaming, verdicts
from scripts.measure_memory import GIB, GOAL, environment
from sdcli import schema
from sdcli.asking.planning import plan_for
from tests.pretend_gpu import device, pretend

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "docs" / "benchmarks").glob("gpu-*.json"))
SETUP = dict.fromkeys(("dtype", "storage", "placement", "attention", "guidance", "vae", "vae_dtype", "execution"), "")


def forecast(case: memory.Case) -> Result:
    """As if on a GPU that has room for everything; what it would reserve is taken to be what is predicted."""
    limit = {"max_vram": f"{case.cap}GiB"} if case.cap is not None else {}
    typed = {
        "words": ("a cat",), "model": case.family, "size": f"{case.side}x{case.side}", "steps": "8", "seeds": "1",
        "pins": list(case.pins), "as_if": "cuda:80GiB,ram:64GiB", **limit,
    }  # fmt: skip
    plan = plan_for(typed, "plan").plan
    assert plan.fits, case.name
    found = planned(case.name, json.loads(json.dumps(schema.to_json(plan))))
    return replace(found, reserved=found.predicted)


@pytest.fixture(scope="module")
def forecasts() -> dict[str, Result]:
    return {case.name: forecast(case) for case in cases()}


def test_every_run_can_be_planned_and_no_two_pieces_share_a_name(forecasts: dict[str, Result]) -> None:
    names = [piece.name for piece in program.pieces()]
    assert len(names) == len(set(names)) and forecasts.keys() < set(names)
    assert all(set(found.predicted_phases) == set(memory.PHASES) for found in forecasts.values())


def test_the_goals_are_forecast_to_be_reached_and_every_one_names_a_run(forecasts: dict[str, Result]) -> None:
    rows = {row[0]: row[3] for row in verdicts(forecasts, None)}
    assert {rows[name] for name in memory.GOALS} == {True} and False not in rows.values()
    assert obeyed(forecasts.values())[1:] == ("21 of 21", "all", True)


def test_the_short_form_goes_from_end_to_end_and_on_where_it_was_interrupted(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--pretend", "8GiB", "--tiny", "--out", str(tmp_path), "--weights", str(tmp_path / "models")]
    asked += ["--only", "sd15-512 resident tile", "--only", "parity sd15", "--only", "waits sd15", "--only", "MLPerf"]
    words = [sys.executable, "-P", "-m", "scripts.gpu", *asked]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-00000000-0000-0000-0000-00000000abcd")
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and "sd15-512 resident tile-256: done" in first.stdout.readline()
        first.send_signal(signal.SIGINT)
        assert "3 pieces left: the same command goes on" in first.stdout.read()
    record = tmp_path / "gpu-pretend-rtx-3060.json"
    before = json.loads(record.read_text("utf-8"))["found"]
    assert list(before) == ["sd15-512 resident tile-256"]
    monkeypatch.setattr(exact, "SAMPLERS", ("Euler a",))
    monkeypatch.setattr(exact, "STEPS", (exact.STEPS[0], exact.STEPS[-1]))
    assert program.main(asked) == 0
    out = capsys.readouterr().out
    assert "parity sd15 fp16: done" in out and "resident tile-256: done" not in out
    found = json.loads(record.read_text("utf-8"))["found"]
    assert len(found) == 4 and found["sd15-512 resident tile-256"] == before["sd15-512 resident tile-256"]

    (drawn,) = [one for one in memory.results(found).values() if one.counted_phases]
    assert drawn.counted_phases == drawn.reserved_phases and drawn.counted_allocated == drawn.allocated
    assert drawn.reserved and drawn.allocated and len(drawn.step_seconds) == memory.STEPS
    assert found["parity sd15 fp16"] == {"Euler a": 0} and found["waits sd15"] == dict.fromkeys(exact.STEPS, 0)
    page = (tmp_path / "gpu.md").read_text("utf-8")
    assert "a pretend one" in page and "**" not in page.partition("\n\n| goal")[2]
    assert "| configuration | step, median |" in page and "| sd15-512 resident tile-256 |" in page


def test_every_way_of_execution_is_raced_and_one_that_fails_says_why(tmp_path: Path) -> None:
    path = make_checkpoint.write_folder(tmp_path / "tiny", "sd15", tiny=True)
    with pretend(device("8GiB")):
        found = {"race sd15": race.race(path, 64, rounds=1, many=race.FEW + 1)}
    ways = found["race sd15"]
    failed = {name for name, way in ways.items() if "reason" in way}
    assert failed == {race.COMPILED, "diffusers, compiled"}, "no GPU to compile for"
    assert {"sdcli, eager", race.GRAPH, "diffusers"} <= ways.keys()
    assert all(len(way["step"]) == len(way["decode"]) == 1 for way in ways.values() if "reason" not in way)
    page = "\n".join(race.page(found))
    assert "| sd15 512×512 | start |" in page and "| diffusers, compiled | not run: torch.compile" in page
    assert [row[3] for row in race.verdicts(found, "RTX 3060")] == [None] * len(race.GOALS)


@pytest.mark.parametrize(("step", "holds"), [(7.9, True), (8.1, False)])
def test_a_goal_of_speed_is_for_the_gpus_it_names(step: float, holds: bool) -> None:
    found = {"race sd15": {race.GRAPH: {"start": 1.0, "step": [step, 9.0, 1.0], "decode": [1.0]}}}
    assert race.verdicts(found, "NVIDIA H100 80GB HBM3")[0][3] is holds
    assert race.verdicts(found, "NVIDIA A100")[0][3] is None


def a_record(folder: Path, found: dict[str, Result], **machine: Any) -> dict[str, Any]:
    known = {
        "device": "H100", "total": 80 * GIB, "driver": "1", "capability": "9.0", "versions": {}, "python": "3.11",
        "pretend": False, "tiny": False,
    }  # fmt: skip
    record = {
        "date": "2026-01-01", "machine": known | machine, "free": GIB, "host_to_device": 10e9,
        "found": {name: asdict(one) for name, one in found.items()},
    }  # fmt: skip
    program.write(record, folder)
    return record


def lab(**known: Any) -> program.Lab:
    settings = {"weights": Path(), "deadline": time.monotonic() + 60, "size": "8GiB", "pretend": False, "tiny": False}
    return program.Lab(**settings | known)


def test_an_earlier_record_is_taken_along_and_one_of_another_machine_is_not_mixed_in(tmp_path: Path) -> None:
    earlier = a_record(tmp_path, {"sd15-512 resident": result("sd15-512 resident")})
    here = earlier["machine"] | {"free": 2 * GIB, "host_to_device": 1e9}
    taken = program.begin(here, lab(), [tmp_path])
    assert (list(taken["found"]), taken["date"], taken["free"]) == (["sd15-512 resident"], "2026-01-01", 2 * GIB)
    for facts, other in ((here, lab(tiny=True)), (here | {"driver": "2"}, lab())):
        with pytest.raises(SystemExit, match="another machine"):
            program.begin(facts, other, [tmp_path])


def test_what_is_out_of_time_is_not_kept_and_what_failed_is_told(tmp_path: Path) -> None:
    record = a_record(tmp_path, {})

    def never(lab: program.Lab) -> dict[str, Any]:
        raise program.OutOfTime

    pieces = [
        program.Piece("too long", 1e6, lambda lab: {}), program.Piece("parity it", 1, lambda lab: {"message": "broke"}),
        program.Piece("waits it", 1, lambda lab: {"Euler": 1}), program.Piece("killed", 1, never),
        program.Piece("after it", 1, lambda lab: {}),
    ]  # fmt: skip
    assert program.go(record, pieces, lab(), tmp_path) == 3
    assert list(record["found"]) == ["parity it", "waits it"] and program.failures(record) == {"parity it": "broke"}
    page = (tmp_path / "gpu.md").read_text("utf-8")
    assert "**Failed**: parity it: broke" in page and "| 0 of 1 | all | **fails** |" in page
    again = program.Piece("parity it", 1, lambda lab: {"Euler": 0})
    assert program.go(record, [again, pieces[2]], lab(), tmp_path) == 0, "only what failed is tried again"
    assert record["found"] == {"parity it": {"Euler": 0}, "waits it": {"Euler": 1}}


def test_a_refusal_is_an_answer_and_running_out_of_memory_a_failure() -> None:
    case = cases()[0]
    found = {}
    for kind in ("DoesNotFit", "OutOfMemory"):
        ended = Ended(exit=4, out="", error={"type": kind, "message": "no room"})
        found[kind] = asdict(memory.drawn(case, ended))
    assert program.failures({"found": found}) == {"OutOfMemory": "no room"}


def test_a_process_that_outlasts_the_limit_is_ended(tmp_path: Path) -> None:
    with pytest.raises(program.OutOfTime):
        lab(deadline=time.monotonic() + 0.1).run("scripts.gpu", "--list")
    assert lab().run("scripts.gpu", "--list", longest=0.1).error == {"message": "not done after 0 s"}


def result(name: str, **known: Any) -> Result:
    return Result(name=name, predicted=2 * GIB, setup=SETUP, **known)


def test_a_peak_above_its_goal_fails_and_one_that_was_not_run_does_neither() -> None:
    rows = {row[0]: row for row in verdicts({"sd15-512 resident": result("sd15-512 resident", reserved=3 * GIB)}, None)}
    assert rows["sd15-512 resident"][1:] == ("3.00 GiB", "≤ 2.6 GiB", False)
    assert rows["sdxl-1024 resident"][3] is None
    assert rows["predicted against reserved"][1:] == ("0 of 1 runs", "all within 10 %", False)


@pytest.mark.parametrize(("reserved", "degraded", "holds"), [(1.4, 0, True), (1.6, 0, False), (1.4, 1, False)])
def test_a_cap_is_kept_with_room_for_the_context_and_without_a_step_down(
    reserved: float, degraded: int, holds: bool
) -> None:
    found = result("sd15-512 under 2 GiB", reserved=int(reserved * GIB), degraded=degraded)
    assert obeyed([found])[3] is holds


@pytest.mark.parametrize(("step", "holds"), [(0.24, True), (0.26, False)])
def test_a_streamed_step_is_held_against_the_slower_of_computing_and_moving(step: float, holds: bool) -> None:
    resident = result("sd15-512 resident", step_seconds=(9.0, 0.1, 0.1))
    streamed = result("sd15-512 group-offload", step_seconds=(9.0, step, step), unet_bytes=2 * 10**9)
    found = {one.name: one for one in (resident, streamed)}
    assert streaming(found, "sd15-512", 10e9)[3] is holds


def test_the_pretend_gpus_error_is_told_by_phase_and_a_count_of_another_setup_is_none() -> None:
    real = result("sd15-512 resident", allocated=GIB,
                  reserved_phases={"load": GIB, "encode": GIB, "denoise": 2 * GIB, "decode": None})  # fmt: skip
    count = replace(real, reserved_phases=real.reserved_phases | {"load": GIB - (100 << 20)})
    (row,) = [line for line in memory.page({"": memory.with_count(real, count)}) if "1,024: +0 (+0.0%)" in line]
    assert row.startswith("| sd15-512 resident | 924: -100 (-9.8%) | 1,024: +0 (+0.0%) | 2,048:")
    other = replace(count, setup=SETUP | {"dtype": "bf16"})
    assert memory.with_count(real, other).uncounted.startswith("drawn otherwise: bf16")
    assert memory.with_count(real, replace(count, message="broke")).uncounted == "broke"


def test_a_record_is_held_against_todays_forecast(tmp_path: Path, forecasts: dict[str, Result], capsys: Any) -> None:
    names, last = ("sdxl-1024 group-offload", "sd15-768 under 3 GiB"), "sd15-768 under 3 GiB"
    known = {name: replace(forecasts[name], reserved=int((forecasts[name].predicted or 0) / 1.05)) for name in names}
    a_record(tmp_path, known)
    assert program.checked(tmp_path / "gpu-h100.json") == 0, capsys.readouterr().out
    a_record(tmp_path, known | {last: replace(known[last], reserved=int((known[last].predicted or 0) / 1.2))})
    assert program.checked(tmp_path / "gpu-h100.json") == 1
    assert "1 of 2 within 10 %" in capsys.readouterr().out


def test_every_record_of_a_real_gpu_is_still_forecast_within_a_tenth(subtests: Any) -> None:
    for path in RECORDS:
        record = json.loads(path.read_text("utf-8"))
        assert not record["machine"]["pretend"] and not record["machine"]["tiny"]
        for name, predicted, reserved in check(record["found"]):
            with subtests.test(record=path.name, run=name):
                assert predicted == pytest.approx(reserved, rel=GOAL)
