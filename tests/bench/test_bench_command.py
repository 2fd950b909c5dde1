"""bench from end to end with the engine that needs no torch: real processes, real pipes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sdcli.bench import result as results
from sdcli.cli import ask
from sdcli.cli.main import run

ROOT = Path(__file__).resolve().parents[2]
FAKE = ("--engine", "fake", "-m", "sd15", "--size", "64x64", "-s", "6", "--max-time", "3")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1 and self.out.endswith("\n"), self.out
        return json.loads(self.out)


def bench(capfd: pytest.CaptureFixture[str], *words: str) -> Outcome:
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        run(("bench", *words))
    captured = capfd.readouterr()
    return Outcome(int(left.value.code or 0), captured.out, captured.err)


def test_quick_measures_one_process_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    done = bench(capfd, *FAKE, "--quick", "--json")
    result = done.json
    (one,) = result["configurations"]
    assert (done.code, result["schema"], result["status"]) == (0, "sdcli.bench/1", "done")
    assert (one["step"]["interval"], one["step"]["processes"]) == ("images", 1)
    measured = [image for image in one["runs"] if not image["warmup"]]
    assert one["step"]["n"] == sum(len(image["step_seconds"]) - 1 for image in measured) >= 20
    assert one["warmup_images"] == sum(image["warmup"] for image in one["runs"]) >= 1
    assert one["phases"]["cold_total"] > 0 and one["phases"]["save"] > 0
    assert len(one["image"]["pixel_sha256"]) == 64 and one["image"]["identical"]
    assert one["work_rate"]["share"] <= 1 and one["launch_bound"] is None
    assert one["memory"]["predicted"]["host_peak"] > 0
    about = result["environment"]
    assert {"torch", "diffusers", "cpu", "isa", "threads", "machine", "load", "git", "governor"} <= set(about)
    assert result["contended"] == bool(result["reasons"])


def test_work_counts_attention_and_both_sides_of_guidance() -> None:
    """The known figure of an SD1.5 call at 512×512, twice for guidance."""
    typed = {"words": ("a cat",), "model": "sd15", "seeds": "1"}
    work = results.work(ask.plan_for(typed, "bench").plan)
    assert work["macs_per_step"] == pytest.approx(2 * 401.637e9, rel=1e-5)
    alone = results.work(ask.plan_for({**typed, "guidance": "1"}, "bench").plan)
    assert alone["macs_per_step"] * 2 == work["macs_per_step"]
    assert alone["key"] != work["key"]


def test_five_processes_are_what_the_interval_counts(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = bench(capfd, *FAKE, "--processes", "3", "--max-time", "60", "--save", "r.json", "--markdown")
    result = json.loads((here / "r.json").read_text())
    (one,) = result["configurations"]
    assert {image["process"] for image in one["runs"]} >= {0, 1, 2}
    assert one["step"]["interval"] == "processes" and one["step"]["processes"] >= 3
    assert done.out.startswith("| configuration |") and "processes per configuration" in done.out
    assert all(len(line) <= 80 for line in done.err.splitlines())


def test_a_sweep_measures_each_and_names_what_cannot_be(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = ("--sweep", "dtype=fp32,bf16", "--sweep", "attention=fused,blocked", "--sweep", "guidance-scale=7")
    done = bench(capfd, *FAKE, *sweep, "--quick", "--save", "r.json", "--device", "cpu")
    rows = json.loads((here / "r.json").read_text())["configurations"]
    assert rows[0]["name"] == "dtype=fp32 attention=fused guidance-scale=7"
    assert rows[0]["flags"] == "--dtype fp32 --pin attention=fused --guidance 7"
    by_setup = {(row["options"]["dtype"], row["options"]["attention"]): row for row in rows}
    assert by_setup["fp32", "blocked"]["error"]["type"] == "usage" and by_setup["fp32", "blocked"]["step"] is None
    assert rows[0]["reference"] and rows[0]["ratio"]["value"] == 1
    measured = [row for row in rows if row["step"]]
    assert len(measured) >= 2 and all(row["image"]["identical"] and not row["image"]["lossy"] for row in measured)
    assert any(row["pareto"] for row in measured)
    assert "not measured:" in done.err and done.out == "r.json\n"


def test_the_fastest_row_can_be_kept_as_a_preset(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--sweep", "steps=2,4", "--sweep", "vae=whole,tile-256", "--quick", "--save-preset", "quickest")
    assert bench(capfd, *FAKE, *words).code == 0
    with pytest.raises(SystemExit):
        run(("plan", "a cat", "-m", "sd15", "--preset", "quickest", "--json"))
    plan = json.loads(capfd.readouterr().out)
    assert plan["request"]["steps"] in (2, 4) and plan["request"]["pins"]["vae"] in ("whole", "tile-256")
    assert plan["origins"]["steps"] == "preset"


@pytest.mark.parametrize(
    ("words", "said"),
    (
        (("--sweep", "nonsense=1,2"), "neither a slot"),
        (("--sweep", "dtype"), "NAME=VALUE"),
        (("--processes", "0"), "whole number"),
        (("--max-time", "soon"), "whole number"),
    ),
)
def test_mistakes_are_usage(words: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = bench(capfd, *FAKE, *words)
    assert done.code == 2 and said in done.err and "try: sdcli bench" in done.err


def test_a_model_that_is_not_here_is_measured_by_its_structure(capfd: pytest.CaptureFixture[str]) -> None:
    done = bench(capfd, "-m", "sd15", "--quick")
    assert done.code == 3 and "try: sdcli bench -m sd15 --random-weights" in done.err


# --- comparing


@pytest.fixture
def measured(here: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """A result with the times of a steady machine put in: 10 ms, one per cent between five processes."""
    assert bench(capfd, *FAKE, "--quick", "--save", "old.json").code == 0
    result = json.loads((here / "old.json").read_text())
    (one,) = result["configurations"]
    one["runs"] = [
        {"process": n, "image": 0, "warmup": False, "seconds": 1.0,
         "step_seconds": [0.05, *[0.01 * (1 + 0.002 * n + 0.001 * (step % 4)) for step in range(20)]]}
        for n in range(5)
    ]  # fmt: skip
    (here / "old.json").write_text(json.dumps(result))
    return here


def change(folder: Path, factor: float = 1.0, **changes: Any) -> None:
    result = json.loads((folder / "old.json").read_text())
    for image in result["configurations"][0]["runs"]:
        image["step_seconds"] = [step * factor for step in image["step_seconds"]]
    for path, value in changes.items():
        room, _, key = path.partition("__")
        if key:
            result[room][key] = value
        else:
            result[room] = value
    (folder / "new.json").write_text(json.dumps(result))


def test_slower_ends_with_10_and_a_ratio(measured: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change(measured, 1.08)
    done = bench(capfd, "compare", "old.json", "new.json")
    assert done.code == 10 and "slower by 8.0 %" in done.err and "×1.080" in done.out
    found = bench(capfd, "compare", "old.json", "new.json", "--json")
    assert found.code == 10
    assert (found.json["verdict"], found.json["failed"], found.json["threshold"]) == ("slower", True, 0.03)
    assert found.json["rows"][0]["ratio"]["value"] == pytest.approx(1.08)
    assert bench(capfd, "compare", "old.json", "new.json", "--fail-if-slower", "10%").code == 0


def test_faster_and_equal_pass(measured: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change(measured, 0.9)
    done = bench(capfd, "compare", "old.json", "new.json", "--json")
    assert (done.code, done.json["verdict"]) == (0, "faster")
    change(measured, 1.001)
    done = bench(capfd, "compare", "old.json", "new.json")
    assert done.code == 0 and "cannot tell" in done.out


def test_other_work_and_other_machines_are_refused_with_the_way_out(
    measured: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(measured, work__key="0" * 64, work__steps=30)
    done = bench(capfd, "compare", "old.json", "new.json")
    assert done.code == 2 and "other work (steps 6 against 30)" in done.err
    change(measured, environment__machine="elsewhere")
    done = bench(capfd, "compare", "old.json", "new.json")
    assert done.code == 2 and "try: sdcli bench compare --run" in done.err


@pytest.mark.parametrize(
    "content",
    (
        b"", b"{}", b"[]", b"\x00\xff", b'{"schema": "sdcli.report/1"}', b'{"schema": "sdcli.bench/2"}',
        b'{"schema": "sdcli.bench/1"}', b'{"schema": "sdcli.bench/1", "configurations": 3}', b'{"a": NaN}', b"[" * 5000,
    ),
)  # fmt: skip
def test_foreign_files_are_bad_files(content: bytes, measured: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (measured / "new.json").write_bytes(content)
    assert bench(capfd, "compare", "old.json", "new.json").code == 9
    assert bench(capfd, "compare", "new.json", "absent.json").code == 9


def test_two_programs_are_measured_in_turn(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = here / "program.py"
    program.write_text("from sdcli.cli.main import run\nrun()\n")
    words = ("compare", "--run", str(program), "--run", str(program), *FAKE, "--processes", "2")
    done = bench(capfd, *words, "--fail-if-slower", "900%")
    assert done.code == 0 and "as asked: ×" in done.out
    assert done.err.count("round ") == 4
    (here / "broken.py").write_text("raise SystemExit(3)\n")
    done = bench(capfd, "compare", "--run", str(program), "--run", str(here / "broken.py"), *FAKE, "--processes", "1")
    assert done.code == 9 and "exit code 3" in done.err


# --- ending


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """A long measurement, some rounds in: its result file exists."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sdcli", "bench", *FAKE, *words, "--save", "kept.json"],
        cwd=folder, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for _ in range(600):
        if (folder / "kept.json").exists():
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate())


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), ((signal.SIGINT, 130), (signal.SIGTERM, 143)))
def test_an_interruption_keeps_what_was_measured(number: int, code: int, here: Path) -> None:
    process = started(here, "--processes", "30", "--max-time", "90", "--json")
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code
    told, kept = json.loads(out), json.loads((here / "kept.json").read_text())
    assert told["status"] == kept["status"] == "interrupted"
    assert told["stopped_by"] == "interrupted" and told["configurations"][0]["step"]["n"] > 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_no_process_outlives_a_killed_parent_even_a_paused_one(here: Path) -> None:
    process = started(here, "--sweep", "dtype=fp32,bf16", "--processes", "30", "--max-time", "90")
    children = children_of(process.pid)
    process.kill()
    process.communicate()
    for _ in range(200):
        if not any(is_alive(child) for child in children):
            return
        time.sleep(0.05)
    raise AssertionError(f"{children} still run")


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
