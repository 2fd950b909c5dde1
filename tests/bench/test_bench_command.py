"""bench from end to end with the engine that needs no torch: real processes, real pipes, real signals."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.asking import planning
from sdcli.bench import build, comparison
from sdcli.bench import result as results
from sdcli.cli.main import run
from sdcli.errors import BadFile, Usage
from sdcli.machine.folders import config_folder

ROOT = Path(__file__).resolve().parents[2]
FAKE = ("--engine", "fake", "-m", "sd15", "--size", "64x64", "-s", "6", "--max-time", "1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a process that is killed leaves its scratch folder behind
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
    assert one["step"]["interval"] in ("images", "steps") and one["step"]["processes"] == 1
    measured = [image for image in one["runs"] if not image["warmup"]]
    assert one["step"]["n"] == sum(len(image["step_seconds"]) - 1 for image in measured) >= 5
    assert one["warmup_images"] == sum(image["warmup"] for image in one["runs"])
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
    work = build.work(planning.plan_for(typed, "bench").plan)
    assert work.macs_per_step == pytest.approx(2 * 401.637e9, rel=1e-5)
    alone = build.work(planning.plan_for({**typed, "guidance": "1"}, "bench").plan)
    assert alone.macs_per_step * 2 == work.macs_per_step
    assert alone.key != work.key


def test_a_table_and_the_method_are_printed_to_be_pasted(capfd: pytest.CaptureFixture[str]) -> None:
    done = bench(capfd, *FAKE, "--quick", "--markdown")
    assert done.out.startswith("| configuration |") and "one process per configuration" in done.out
    assert all(len(line) <= 80 for line in done.err.splitlines())


def test_a_sweep_measures_each_and_names_what_cannot_be(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = ("--sweep", "dtype=fp32,bf16", "--sweep", "attention=fused,blocked,sliced", "--sweep", "guidance-scale=7")
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


def test_flags_are_printed_as_a_shell_takes_them(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = ("--sweep", "sampler=DPM++ 2M,Euler", "--sweep", "batch-invariant=yes,no")
    done = bench(capfd, *FAKE, *sweep, "--quick", "--json")
    rows = {tuple(row["options"].values()): row for row in done.json["configurations"]}
    assert rows["DPM++ 2M", "yes"]["flags"] == "--sampler 'DPM++ 2M' --batch-invariant"
    assert rows["Euler", "no"]["flags"] == "--sampler Euler"
    assert all(row["step"] for row in rows.values())


def test_another_size_is_not_a_candidate_for_the_same_image(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--sweep", "size=72x64,64x64", "--quick", "--save-preset", "small", "--save", "r.json")
    done = bench(capfd, *FAKE, *words)
    assert "fastest with the same image: --size 72x64" in done.err
    other = json.loads((here / "r.json").read_text())["configurations"][1]
    assert other["image"]["lossy"] is None and other["step"]


def test_without_a_terminal_little_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    done = bench(capfd, *FAKE, "--quick", "--sweep", "steps=5,6,7,8")
    lines = done.err.partition("sd15 ·")[0].splitlines()
    assert lines[0] == "process 1 · warming up 4 in turn" and len(lines) <= 10


@pytest.mark.parametrize(
    ("words", "said"),
    (
        (("--sweep", "nonsense=1,2"), "neither a slot"),
        (("--sweep", "pin=vae=whole,vae=tile-256"), "neither a slot"),
        (("--sweep", "batch_invariant=perhaps"), "neither yes nor no"),
        (("--save-preset", "fast"), "no --sweep"),
        (("--save-preset", "../fast", "--sweep", "steps=2,3"), "is not a valid preset name"),
        (("--save-preset", "fast", "--sweep", "prompt=a,b"), "prompt is not a setting of a preset"),
        (("--sweep", "dtype"), "NAME=VALUE"),
        (("--processes", "0"), "whole number"),
        (("--max-time", "soon"), "whole number"),
    ),
)
def test_mistakes_are_usage(words: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = bench(capfd, *FAKE, *words)
    assert done.code == 2 and said in done.err and "try: sdcli " in done.err


@pytest.mark.parametrize(
    ("sweep", "hint"),
    (
        ("steps=0", "--sweep steps=1"),
        ("dtype=fp99", "--sweep dtype=fp32"),
        ("sampler=Eulerr", "--sweep sampler=Euler"),
        ("seed=first", "--sweep seed=1,5,9"),
    ),
)
def test_a_wrong_value_of_a_sweep_is_mended_in_the_sweep(
    sweep: str, hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done = bench(capfd, *FAKE, "--quick", "--sweep", sweep)
    line = done.err.partition("try: ")[2].splitlines()[0]
    assert done.code == 2 and line.startswith(f"sdcli bench {' '.join(FAKE)} --quick {hint}")


def test_what_an_image_for_settings_cannot_give_is_said(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 6, Sampler: LMS, Hires upscale: 2, CFG scale: 7, Seed: 1, Size: 64x64")
    Image.new("RGB", (8, 8)).save("webui.png", pnginfo=info)
    words = ("--settings-from", "webui.png", *FAKE, "--quick", "--json")
    done = bench(capfd, *words)
    said = " ".join(done.err.split())
    assert "note: ignored in the image's settings: Sampler LMS (DPM++ 2M Karras is used)" in said
    assert "Hires upscale 2" in said and done.json["work"]["sampler"] == "DPM++ 2M Karras"
    assert "not taken" not in bench(capfd, *words, "--quiet").err


def test_a_preset_made_by_hand_is_not_replaced(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = (*FAKE, "--quick", "--sweep", "steps=3,4", "--save-preset", "mine")
    assert bench(capfd, *words).code == 0
    assert bench(capfd, *words).code == 0  # its own it may replace
    path = config_folder() / "presets" / "mine.toml"
    path.write_text('description = "Dear to me"\nsteps = 9\n')
    done = bench(capfd, *words)
    assert done.code == 2 and "was not written by bench" in done.err
    assert "Dear to me" in path.read_text()


def test_a_model_that_is_not_here_is_measured_by_its_structure(capfd: pytest.CaptureFixture[str]) -> None:
    done = bench(capfd, "-m", "sd15", "--quick")
    assert done.code == 3 and "try: sdcli bench -m sd15 --quick --random-weights" in done.err
    done = bench(capfd, "--preset", "mlperf")
    assert done.code == 3 and "try: sdcli bench --preset mlperf --random-weights" in done.err
    words = ("--preset", "mlperf", "--random-weights", "--engine", "fake", "--quick", "--max-time", "1", "--json")
    work = bench(capfd, *words, "--size", "64x64").json["work"]
    assert (work["model"], work["steps"], work["guidance"], work["sampler"]) == ("sdxl", 20, 8.0, "Euler")


# --- comparing


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A result as bench writes it."""
    path = tmp_path_factory.mktemp("bench") / "real.json"
    words = ("bench", *FAKE, "--quick", "--save", str(path))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "sdcli", *words], check=True, capture_output=True, env=environment)
    return path.read_text()


@pytest.fixture
def measured(here: Path, real: str) -> Path:
    """A result with the times of a steady machine put in: 10 ms, one per cent between five processes."""
    result = json.loads(real)
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
    compared = bench(capfd, "compare", "old.json", "new.json", "--json")
    assert compared.code == 10
    assert (compared.json["verdict"], compared.json["failed"], compared.json["threshold"]) == ("slower", True, 0.03)
    assert compared.json["rows"][0]["ratio"]["value"] == pytest.approx(1.08)
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
    assert done.code == 2 and "different work (steps 6 against 30)" in done.err
    baseline, candidate = (results.read(measured / name) for name in ("old.json", "new.json"))
    with pytest.raises(Usage) as refused:  # two programs here, whose defaults differ
        comparison.comparison(baseline, candidate, 0.03, here=True)
    assert refused.value.hint.endswith('-s 6 -g 7.0 --size 64x64 --sampler "DPM++ 2M Karras"')
    change(measured, environment__machine="elsewhere")
    done = bench(capfd, "compare", "old.json", "new.json")
    assert done.code == 2 and "try: sdcli bench compare --run" in done.err


def test_a_result_that_is_read_and_written_again_is_the_same_to_the_byte(here: Path, real: str) -> None:
    (here / "real.json").write_text(real)
    results.write(results.read(here / "real.json"), here / "again.json")
    assert (here / "again.json").read_text() == real


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


FOREIGN = (
    None,
    True,
    -1,
    10**400,
    1e308,
    -0.5,
    "",
    "\x1b[2J\u202e",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    "0",
    [0.0],
    [1e-320],
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, of long lists only the first few."""
    items = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))[:3]
        if isinstance(value, list)
        else []
    )
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(data=st.data())
def test_a_result_with_anything_in_any_place_is_compared_or_refused(real: str, data: st.DataObject) -> None:
    other = json.loads(real)
    for _ in range(data.draw(st.integers(1, 3))):
        paths = places(other)[1:]
        read = [path for path in paths if path[0] in ("configurations", "work", "contended")]
        path = data.draw(st.sampled_from(data.draw(st.sampled_from([paths, read or paths]))))
        room = other
        for key in path[:-1]:
            room = room[key]
        if data.draw(st.booleans()) or isinstance(room, list):
            room[path[-1]] = copy.deepcopy(data.draw(st.sampled_from(FOREIGN)))
        else:
            del room[path[-1]]
        if not other or not places(other)[1:]:
            break
    for sides in ((json.loads(real), other), (other, json.loads(real))):
        try:
            checked = [results.check(side, "r.json") for side in sides]
            lines = comparison.lines(comparison.comparison(checked[0], checked[1], 0.03))
            assert "\x1b" not in "".join(lines) and "\u202e" not in "".join(lines)
        except (BadFile, Usage) as error:
            assert error.code in (2, 9) and "\x1b" not in error.message


def test_two_programs_are_measured_in_turn(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = here / "program.py"
    program.write_text("from sdcli.cli.main import run\nrun()\n")
    words = ("compare", "--run", str(program), "--run", str(program), *FAKE, "--processes", "2")
    done = bench(capfd, *words, "--fail-if-slower", "900%")
    assert done.code == 0 and "as asked: ×" in done.out
    assert done.err.count("round ") == 4
    (here / "broken.py").write_text("raise SystemExit(3)\n")
    done = bench(capfd, "compare", "--run", str(program), "--run", str(here / "broken.py"), *FAKE, "--processes", "1")
    assert done.code == 9 and "exited with code 3" in done.err


# --- what cannot be written


def limited(here: Path, bytes_: int, *words: str) -> subprocess.CompletedProcess[str]:
    """bench where no file may grow beyond so many bytes: to a program that is a full disk."""
    start = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_}, {bytes_}))"
    code = f"{start}\nfrom sdcli.cli.main import run\nrun()"
    return subprocess.run(
        [sys.executable, "-c", code, "bench", *FAKE, "--quick", *words],
        cwd=here, env=os.environ, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_disk_that_fills_up_costs_the_file_and_not_the_figures(here: Path) -> None:
    done = limited(here, 14_000, "-s", "900", "--save", "kept/r.json", "--html", "page.html")
    assert done.returncode == 7
    assert "error: could not write kept/r.json" in done.stderr and "try: sdcli bench --save" in done.stderr
    assert "95 % interval within one" in done.stderr and done.stdout == ""
    assert not list((here / "kept").iterdir())  # no half of it
    done = limited(here, 14_000, "-s", "900", "--save", "kept/r.json", "--json")
    result = json.loads(done.stdout)
    assert (done.returncode, result["error"]["type"]) == (7, "cannot_write")
    assert result["configurations"][0]["step"]["n"] >= 899


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_no_room_for_the_images_is_reported(here: Path) -> None:
    done = limited(here, 3000)  # the order to a worker goes through a pipe, its images do not
    assert done.returncode == 7 and "could not write" in done.stderr and "Traceback" not in done.stderr


def test_a_place_that_cannot_be_written_is_said_before_measuring(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("")
    for flag in ("--save", "--html"):
        done = bench(capfd, *FAKE, "--quick", flag, "file/r")
        assert done.code == 7 and f"{flag} ~/bench." in done.err and "process 1" not in done.err
        assert bench(capfd, *FAKE, "--quick", flag, ".").code == 2


# --- ending


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """A long measurement, some rounds in: its result file exists."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sdcli", "bench", *FAKE, *words, "--save", "kept.json"],
        cwd=folder, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for _ in range(1800):
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
    printed, saved = json.loads(out), json.loads((here / "kept.json").read_text())
    assert printed["status"] == saved["status"] == "interrupted"
    assert printed["stopped_by"] == "interrupted" and printed["configurations"][0]["step"]["n"] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("more", [(), ("--json",)], ids=["", "json"])
def test_an_interrupted_comparison_compares_the_rounds_it_has(here: Path, more: tuple[str, ...]) -> None:
    program = here / "program.py"
    program.write_text("from sdcli.cli.main import run\nrun()\n")
    words = ("compare", "--run", str(program), "--run", str(program), *FAKE, "--processes", "9", *more)
    process = subprocess.Popen(
        [sys.executable, "-m", "sdcli", "bench", *words], cwd=here, env=os.environ,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(3)]  # the third begins once both were measured
    assert lines[2].startswith("round 2 of 9")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=40)
    assert process.returncode == 130
    if more:
        assert out.count("\n") == 1 and json.loads(out)["error"]["type"] == "interrupted"
    else:
        assert out.startswith("as asked: ×") and "interrupted" in err


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
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            pids.append(int(path.parent.name))
    return pids


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
