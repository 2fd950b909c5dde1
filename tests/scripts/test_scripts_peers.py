"""scripts/record_peers: the page says what was recorded, goals can be missed, and it runs from end to end and on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import record_peers as program
from scripts.peers import turns
from scripts.peers.page import GOALS, page, verdict
from scripts.peers.peer import Job, Peer, without
from scripts.peers.process import Failed, plain_environment, watched
from scripts.peers.turns import PEERS, Record

CASE = "sd15 512x512"


def run(seconds: float, step: float, **more: Any) -> dict[str, Any]:
    return {
        "import": 1.0, "load": seconds / 20, "first": step * 2, "steps": [step, step * 1.01, step * 0.99],
        "decode": seconds / 10, "dtype": "bf16", "threads": 2, "seconds": seconds, "peak": 3 * 10**9, "others": 0.01,
        **more,
    }  # fmt: skip


@pytest.fixture
def record() -> Record:
    runs = {
        "sdcli": [run(50 + n / 4, 2 + n / 100) for n in range(3)],
        "diffusers-fp32": [run(200 + n, 8 + n / 50) for n in range(3)],
        "diffusers-bf16": [run(70 + n, 2.6 + n / 50) for n in range(3)],
    }
    made = turns.begin(20, False)
    made["load"], made["missing"] = [[0.12, 1.9]], {"openvino-bf16": "not installed (`pip install openvino`)"}
    made["cases"][CASE] = {
        "prepared": {"diffusers-compiled": {"seconds": 113.4, "peak": 2 * 10**9}}, "runs": runs,
        "failed": {"stable-diffusion.cpp": "exit code -9 (killed)"},
    }  # fmt: skip
    return made


def test_the_page_has_every_row_with_intervals_and_ratios_and_says_who_is_left_out(record: Record) -> None:
    text = page(record)
    rows = {line.split(" |")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert "| 2.01 (1.99–2.03) | 4.02 " in rows["| sdcli (bf16)"] and "×" not in rows["| sdcli (bf16)"]
    assert "| 8.02 (7.97–8.07)<br>×3.99 (3.9" in rows["| diffusers-fp32 (bf16)"]
    assert "201.00 (198.52–203.48)<br>×4.00 (3." in rows["| diffusers-fp32 (bf16)"]
    assert "## SD 1.5, 512×512" in text and "before and after: 0.12 and 1.90" in text and "at most 1%" in text
    assert "- diffusers-compiled: compiled once, in 113 s and 2.0 GB." in text
    assert "- stable-diffusion.cpp failed: exit code -9 (killed)" in text
    assert "- **openvino-bf16** is left out: not installed (`pip install openvino`)." in text
    assert "do not cite" not in text


def test_one_turn_has_no_intervals_of_its_own_and_a_busy_machine_is_told(record: Record) -> None:
    for runs in record["cases"][CASE]["runs"].values():
        del runs[1:]
        runs[0]["others"] = 0.3
    text = page(record)
    assert "| sdcli (bf16) | 2.00 | 4.00 |" in text
    assert "at most 30% of the processor" in text and "do not cite these seconds" in text


def test_modes_are_told_beside_drawing_from_a_prompt(record: Record) -> None:
    runs = record["cases"][CASE]["runs"]
    steered = {
        name: [{**one, "steps": [step * 1.4 for step in one["steps"]]} for one in runs[name]]
        for name in ("sdcli", "diffusers-bf16")
    }
    record["cases"][f"{CASE} control"] = {"prepared": {}, "runs": steered, "failed": {}}
    text = page(record)
    assert "## SD 1.5, 512×512, with a ControlNet" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| SD 1.5, 512×512, with a ControlNet | "))
    cost, ahead, plain = (cell.split(" (")[0] for cell in row.split(" | ")[1:])
    assert cost == "1.40" and ahead == plain == "1.30"
    assert text.count("| a step: diffusers-bf16 takes") == 1


def test_goals_are_reached_or_give_the_figure_and_are_judged_only_for_what_they_are_about(record: Record) -> None:
    case = record["cases"][CASE]
    said = {(goal.column, goal.peer): verdict(record, case, goal) for goal in GOALS}
    assert said["step", "diffusers-fp32"].startswith("reached: 3.99 (3.9")
    assert said["step", "diffusers-bf16"].startswith("1.30 (1.2")
    assert said["whole", "diffusers-fp32"].startswith("reached: 4.00")
    assert said["step", "openvino-bf16"] == said["whole", "stable-diffusion.cpp"] == "not judged"
    record["of"]["steps"] = 2
    said = {(goal.column, goal.peer): verdict(record, case, goal) for goal in GOALS}
    assert said["whole", "diffusers-fp32"] == "not judged" and said["step", "diffusers-fp32"] != "not judged"
    record["of"]["tiny"] = True
    assert {verdict(record, case, goal) for goal in GOALS} == {"not judged"}


def test_a_missed_goal_and_a_failed_peer_end_in_an_error(record: Record, capsys: Any) -> None:
    case = record["cases"][CASE]
    assert not program.judge(record)
    assert "a step: diffusers-bf16 takes ≥ 1.45 × sdcli's seconds: 1.30" in capsys.readouterr().out
    case["runs"]["diffusers-bf16"] = [run(200, 8.0)]
    assert not program.judge(record), "one has failed"
    case["failed"] = {}
    case["runs"]["diffusers-bf16"][0]["load"] = 10
    case["runs"]["diffusers-fp32"] = [run(200, 8.0, load=20)]
    assert program.judge(record)


def test_a_peer_that_is_not_installed_is_named_and_an_optional_one_runs_only_if_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = [peer for peer in PEERS if peer.name != "diffusers-fp32"]
    fp32 = next(peer for peer in PEERS if peer not in others)
    absent = replace(fp32, missing=lambda: without("no_such_module", "no-such-package"))
    monkeypatch.setattr(program, "PEERS", (others[0], absent, *others[1:]))
    playing, missing = program.chosen(None, tiny=True)
    assert missing[absent.name] == "not installed (`pip install no-such-package`)"
    for name in ("sdcli-compiled", "diffusers-compiled"):
        assert missing[name] == "it runs only where it is named"
    assert missing["stable-diffusion.cpp"] == "it knows no tiny models"
    assert "diffusers-bf16" in [peer.name for peer in playing]
    named, missing = program.chosen([PEERS[0].name], tiny=False)
    assert named == [PEERS[0]] and missing["diffusers-bf16"] == "not asked for"


def test_a_record_of_other_work_is_refused(record: Record) -> None:
    turns.same_work(record, 20, False)
    with pytest.raises(SystemExit, match="differs in steps"):
        turns.same_work(record, 25, False)
    record["of"]["versions"]["torch"] = "1.0"
    with pytest.raises(SystemExit, match="differs in versions"):
        turns.same_work(record, 20, False)


def test_whoever_fails_sits_out_and_the_others_go_on_in_turn(tmp_path: Path) -> None:
    said = json.dumps({"steps": [1.0]})

    def peer(name: str, code: str) -> Peer:
        command = [sys.executable, "-c", code]
        return Peer(
            name=name, how="", packages=(), command=lambda job: [*command, job.image], missing=lambda: None,
            files=lambda job: [],
        )  # fmt: skip

    draws = f"import sys; open(sys.argv[1], 'w').close(); print('talk'); print('''{said}''')"
    peers = [
        peer("one", draws), peer("broken", "raise SystemExit('no such thing')"), peer("two", draws),
        peer("blank", f"print('''{said}''')"),
    ]  # fmt: skip
    record, kept = turns.begin(2, True), tmp_path / "cpu.json"
    job = Job(family="sd15", width=64, height=64, steps=2, threads=1, model="", made=str(tmp_path))
    turns.go(record, job, peers, 2, kept)
    case = json.loads(kept.read_text("utf-8"))["cases"]["sd15 64x64"]
    assert case["failed"] == {"broken": "no such thing", "blank": "it saved no image"}
    assert {name: len(runs) for name, runs in case["runs"].items()} == {"one": 2, "two": 2}
    assert all(run["steps"] == [1.0] and run["seconds"] > 0 for runs in case["runs"].values() for run in runs)


def test_a_program_is_watched_for_its_memory_and_its_last_words(tmp_path: Path) -> None:
    sleeps = "import time; taken = b'x' * 300_000_000; time.sleep(0.3); print('first'); print('last')"
    ended = watched([sys.executable, "-c", sleeps], (0,), {})
    assert ended.line == "last" and ended.seconds > 0.3
    if Path("/proc/self/status").exists():
        assert ended.peak > 300_000_000 and ended.others is not None and 0 <= ended.others <= 1
    with pytest.raises(Failed, match=r"exit code -9 \(killed\)"):
        watched([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], (0,), {})


def test_programs_do_not_inherit_how_threads_wait_or_how_sdcli_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "SDCLI_STEPS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    variables = plain_environment(SDCLI_HOME="here", GOMP_SPINCOUNT="0")
    assert "OMP_WAIT_POLICY" not in variables and "SDCLI_STEPS" not in variables
    assert variables["OMP_NUM_THREADS"] == "1", "it says how many cores there are to use"
    assert variables["SDCLI_HOME"] == "here" and variables["GOMP_SPINCOUNT"] == "0"


def test_sdcli_and_diffusers_are_recorded_with_tiny_models_and_the_record_is_gone_on_with(tmp_path: Path) -> None:
    page_file, kept = tmp_path / "cpu.md", tmp_path / "cpu.json"
    asked = ["--tiny", "--family", "sd15", "--steps", "2", "--turns", "1", "--output", str(page_file)]
    asked += ["--weights", str(tmp_path / "weights"), "--only", "sdcli"]
    assert program.main(asked) == 0
    first = json.loads(kept.read_text("utf-8"))["cases"]["sd15 64x64"]["runs"]
    assert list(first) == ["sdcli"]
    assert program.main([*asked, "--only", "diffusers-fp32", "--from", str(kept)]) == 0
    runs = json.loads(kept.read_text("utf-8"))["cases"]["sd15 64x64"]["runs"]
    assert list(runs) == ["sdcli", "diffusers-fp32"] and runs["sdcli"] == first["sdcli"]
    for (one,) in runs.values():
        assert len(one["steps"]) == 1 and one["peak"] > 10**8
        assert 0 < one["load"] + one["first"] + one["steps"][0] + one["decode"] < one["seconds"]
    text = page_file.read_text("utf-8")
    assert "| sdcli (" in text and "| diffusers-fp32 (float32) |" in text and "<br>×" in text
    page_file.unlink()
    assert program.main(["--turns", "0", "--from", str(kept), "--output", str(page_file)]) == 0
    assert page_file.read_text("utf-8") == text
