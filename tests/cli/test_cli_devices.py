"""`sdcli generate --devices`: several processes draw one run, which ends, goes on and reports as any other."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cli_run import sdcli, start

from scripts import make_checkpoint
from sdcli.errors import Usage
from sdcli.machine import several
from sdcli.machine.hardware import Hardware
from sdcli.machine.survey import Survey
from sdcli.record import found_runs, runs

FAKE = ("--engine", "fake", "--steps", "2", "--size", "64x64", "--no-show", "--seed", "1..6")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDCLI_HOME", str(tmp_path / "home"))
    return tmp_path


def images(folder: str) -> dict[str, str]:
    """Of every image its pixels."""
    (records,) = found_runs.found([Path(folder)])
    return {intent.file: intent.pixel_sha256 for intent in runs.read(records).intents.values()}


def test_a_run_of_two_workers_has_the_names_and_pixels_of_one(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_checkpoint.write_folder(tmp_path / "tiny", "sd15", tiny=True)
    asked = ("a cat", "two dogs", "-m", "./tiny", "--seed", "1..2", "--steps", "1", "--size", "64x64", "--no-show")
    asked = (*asked, "--pin", "execution=eager", "--dtype", "fp32", "--pin", "attention=fused")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    two = sdcli(capfd, "generate", *asked, "--devices", f"cpu:{min(2, cores)}x1", "-o", "two")
    assert two.code == 0, two.err
    assert re.search(r"cpu(:1)? +\d images?", two.err) or cores < 2
    one = sdcli(capfd, "generate", *asked, "--devices", "cpu:1x1", "-o", "one", "-q")
    assert one.code == 0 and "workers" not in one.err
    assert images("two") == images("one") and len(images("one")) == 4


def test_a_run_of_two_workers_is_resumed_where_it_stopped(capfd: pytest.CaptureFixture[str]) -> None:
    drawn = sdcli(capfd, "generate", "a cat", *FAKE, "--devices", "cpu:2x1", "-o", "out", "--json")
    assert drawn.code == 0 and [one["name"] for one in drawn.json["workers"]] == ["cpu:1", "cpu:2"]
    assert sum(one["images"] for one in drawn.json["workers"]) == 6
    before = images("out")
    assert sorted(before) == [f"{n:04d}-a-cat-{n}.png" for n in range(1, 7)]
    for name in sorted(before)[1:4]:
        (Path("out") / name).unlink()
    resumed = sdcli(capfd, "resume", "out/runs/" + os.listdir("out/runs")[0], "--engine", "fake")
    assert resumed.code == 0 and "3 of 6 images are there" in resumed.err and "2 workers" in resumed.err
    assert images("out") == before and sorted(path.name for path in Path("out").glob("*.png")) == sorted(before)


def test_a_run_of_two_workers_is_planned_anew_for_both(capfd: pytest.CaptureFixture[str]) -> None:
    assert sdcli(capfd, "generate", "a cat", *FAKE, "--devices", "cpu:2x1", "-o", "out", "-q").code == 0
    before = images("out")
    (Path("out") / "0003-a-cat-3.png").unlink()
    resumed = sdcli(capfd, "resume", "out/runs/" + os.listdir("out/runs")[0], "--engine", "fake", "--replan")
    assert resumed.code == 0 and "2 workers" in resumed.err and images("out") == before


def test_prompts_from_stdin_go_to_whoever_has_nothing_to_do(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"cat {number}\n" for number in range(1, 9))))
    drawn = sdcli(capfd, "generate", "--prompts", "-", *FAKE[:-1], "7", "--devices", "cpu:2x1", "-o", "out", "--json")
    assert drawn.code == 0 and sum(one["images"] for one in drawn.json["workers"]) == 8
    assert sorted(images("out")) == [f"{n:04d}-cat-{n}-7.png" for n in range(1, 9)]
    (records,) = found_runs.found([Path("out")])
    assert [job.prompt for job in runs.read(records).plan.jobs] == [f"cat {n}" for n in range(1, 9)]


def test_one_device_is_drawn_on_as_ever(capfd: pytest.CaptureFixture[str]) -> None:
    one = sdcli(capfd, "generate", "a cat", *FAKE, "--devices", "cpu", "--json")
    assert one.code == 0 and one.json["workers"] == [] and one.json["plan"]["workers"] == []


def test_a_plan_says_what_each_worker_would_do(capfd: pytest.CaptureFixture[str]) -> None:
    shown = sdcli(capfd, "plan", "a cat", "--devices", "cpu:2x1")
    assert shown.code == 0 and re.search(r"cpu:1, cpu:2  .*, 1 thread: all in memory, needs", shown.out)


# --- how it ends


def begun(tmp_path: Path, count: int = 3000) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A run of two workers, once both draw."""
    words = ("generate", "a cat", *FAKE[:-1], f"1..{count}", "--devices", "cpu:2x1", "-o", "out")
    process = start(*words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while len(list((tmp_path / "out").glob("*.png"))) < 20:
        assert process.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    return process, workers


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_its_workers_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process, workers = begun(tmp_path)
    process.send_signal(number)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == code and not any(worker.is_running() for worker in workers)
    (records,) = found_runs.found([tmp_path / "out"])
    assert said.splitlines()[-1] == f"  try: sdcli resume out/runs/{records.name}"
    recovered = runs.recover(runs.read(records))
    kept = list((tmp_path / "out").glob("*.png"))
    assert len(kept) == len(recovered.done) == 3000 - len(recovered.missing)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_workers_end_when_the_run_is_killed(tmp_path: Path) -> None:
    process, workers = begun(tmp_path)
    process.kill()
    process.wait(60)
    assert process.stderr is not None
    process.stderr.close()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


# --- which devices


def machine(*gpus: str, threads: int = 8) -> Survey:
    """A machine with these GPUs, as far as --devices looks at one."""
    return Survey(**dict.fromkeys(("processor", "memory", "nvidia", "visible", "torch", "installation")))  # type: ignore[arg-type]


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Survey:
    """Three GPUs and eight cores, 64 GiB free."""
    host = {"ram_total": 128 << 30, "ram_free": 64 << 30, "threads": 8, "source": "nvml"}
    found = [
        *(Hardware(device=f"cuda:{n}", name="RTX 4060", total=8 << 30, free=8 << 30, **host) for n in range(3)),
        Hardware(device="cpu", name="CPU", total=128 << 30, free=64 << 30, **host),
    ]  # type: ignore[arg-type]
    monkeypatch.setattr(several, "usable", lambda survey: tuple(found))
    monkeypatch.setattr(several, "choose", lambda name, survey: next(one for one in found if one.device == name))
    return machine()


def test_devices_are_named_in_every_way_and_share_the_hosts_memory(four: Survey) -> None:
    for text, names in {
        "all": ["cuda:0", "cuda:1", "cuda:2"],
        "0,2": ["cuda:0", "cuda:2"],
        "cuda:1, cpu": ["cuda:1", "cpu"],
        "cpu:2x4": ["cpu:1", "cpu:2"],
        "cpu:1x3": ["cpu"],
    }.items():
        seats = several.seats(text, four)
        assert [seat.name for seat in seats] == names
        for seat in seats:
            assert seat.hardware.ram_free == (64 << 30) // len(names)
            assert seat.hardware.free == (seat.hardware.ram_free if seat.hardware.kind == "cpu" else 8 << 30)
    assert [seat.hardware.threads for seat in several.seats("cpu:2x4", four)] == [4, 4]
    assert several.seats("cpu:1x3", four)[0].hardware.threads == 3


@pytest.mark.parametrize("text", ["", "0,0", "auto", "cpu:0x1", "cpu:3x4", "cpu,cpu:1x2", "0,"])
def test_what_is_no_list_of_devices_is_refused(four: Survey, text: str) -> None:
    with pytest.raises(Usage) as refused:
        several.seats(text, four)
    assert refused.value.hint.startswith("--devices ")


def test_what_does_not_go_with_a_cluster_is_refused(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, said in (
        (("generate", "a cat", "--engine", "ray", "--devices", "all"), "--devices does not go with --engine ray"),
        (("generate", "a cat", "--engine", "ray=10.0.0.1:6379", "--keep-steps"), "--keep-steps does not go with"),
        (("bench", "--quick", "--engine", "ray"), "--engine ray is for generate and resume"),
        (("generate", "a cat", "--engine", "rya"), "--engine ray"),
    ):
        refused = sdcli(capfd, *words)
        assert refused.code == 2 and said in refused.err
    monkeypatch.setattr("sdcli.machine.packages.has", lambda name: False)
    refused = sdcli(capfd, "generate", "a cat", "--engine", "ray=10.0.0.1:6379")
    assert refused.code == 2 and "needs a package that is not installed" in refused.err
    assert "ray>=2.60" in refused.err and not Path("sdcli-images").exists()


def test_what_does_not_go_with_several_devices_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    for command, words, said in (
        ("generate", (*FAKE, "--device", "cpu"), "--device does not go"),
        ("plan", ("--as-if", "cpu"), "--as-if does not go"),
    ):
        refused = sdcli(capfd, command, "a cat", "--devices", "cpu:2x1", *words)
        assert refused.code == 2 and said in refused.err


def test_a_server_is_told_how_the_cpu_is_divided(capfd: pytest.CaptureFixture[str]) -> None:
    refused = sdcli(capfd, "serve", "--devices", "cpu:auto")
    assert refused.code == 2 and "sdcli serve --devices cpu:2x1" in refused.err


@pytest.mark.parametrize("command", [("serve",), ("generate", "a cat")])
def test_a_device_that_is_not_there_is_refused_by_the_flag_that_named_it(
    capfd: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    for missing, code in (("nope", 2), ("cuda:77", 8)):
        refused = sdcli(capfd, *command, "--devices", missing)
        assert refused.code == code and "try:" in refused.err and "--devices all" in refused.err
        assert "--device " not in refused.err and "--device:" not in refused.err
