"""Memory as a user meets it: what is refused, what is survived, what is told and what is remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_run import ROOT, Outcome, sdcli

from scripts import make_checkpoint

GIB = 1 << 30
PHASES = ("load", "encode", "denoise", "decode")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint.write_folder(tmp_path_factory.mktemp("model") / "tiny", "sd15", tiny=True))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(model: str, *more: str) -> tuple[str, ...]:
    return ("a cat", "-m", model, "--size", "320x320", "-s", "3", "--sampler", "Euler a", "--dtype", "fp32", *more)


@contextmanager
def running_out(call: int, times: int = 1) -> Iterator[None]:
    """`times` decodes in a row find no memory, beginning with the `call`th."""
    import torch

    calls = [0]

    def fail(module: Any, *_: Any) -> None:
        if type(module).__name__ == "Decoder":
            calls[0] += 1
            if call <= calls[0] < call + times:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()
    assert calls[0] >= call


def stored(done: Outcome) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The report on the disk, the lines of run.jsonl, and sdcli's own chunk of every image."""
    from PIL import Image

    folder = Path(done.json["folder"])
    records = folder / "runs" / done.json["run"]
    chunks = []
    for image in done.json["images"]:
        with Image.open(image["path"]) as opened:
            opened.load()
            chunks.append(json.loads(opened.text["sdcli"]))  # type: ignore[attr-defined]
    lines = [json.loads(line) for line in (records / "run.jsonl").read_text().splitlines()]
    return json.loads((records / "report.json").read_text()), lines, chunks


# --- survived


def test_a_drop_is_shown_once_and_recorded_everywhere_and_the_latents_are_kept(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ("generate", *words(model, "--seed", "5..6", "--json"))
    asked_tiled = (*asked, "--pin", "vae=tile-256")
    whole, tiled = (drawn["images"] for drawn in (sdcli(capfd, *asked).json, sdcli(capfd, *asked_tiled).json))
    with running_out(call=2):
        done = sdcli(capfd, *asked)
    assert done.code == 0
    first, second = (image["pixel_sha256"] for image in done.json["images"])
    assert (first, second) == (whole[0]["pixel_sha256"], tiled[1]["pixel_sha256"])  # the latents are the same
    (fall,) = done.json["degraded"]
    assert (fall["batch"], fall["phase"], fall["step"], fall["changes_pixels"]) == (1, "decode", None, True)
    assert fall["from"] == {"vae": "whole"} and fall["to"] == {"vae": "tile-256"}
    assert "CUDA out of memory" in fall["because"]
    report, lines, chunks = stored(done)
    assert report["degraded"] == [fall]
    recorded = [line for line in lines if line["type"] == "degraded"]
    assert [{name: line[name] for name in fall} for line in recorded] == [fall]
    assert [chunk["degraded"] for chunk in chunks] == [[], [fall]]
    told = [line for line in done.err.splitlines() if "vae whole → tile-256, pixels move slightly" in line]
    assert len([line for line in told if line.startswith("note: out of memory in decode: ")]) == 1
    assert len([line for line in told if line.startswith("out of memory in decode: ")]) == 1  # the final block


def test_no_fallback_ends_at_once_with_exit_4_and_keeps_what_is_done(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_out(call=2):
        done = sdcli(capfd, "generate", *words(model, "--seed", "5..6", "--no-fallback"))
    assert done.code == 4
    assert done.out == "sdcli-images/0001-a-cat-5.png\n" and Path(done.out.strip()).is_file()
    error, kept, hint = done.err.splitlines()[-3:]
    assert error.startswith("error: out of memory decoding the image: ") and "--no-fallback is set" in error
    assert " GiB needed, " in error and " GiB free now" in error
    assert kept == " kept: 1 of 2 images in " + str(Path("sdcli-images").absolute())
    assert hint == "  try: the same command without --no-fallback"
    assert "note: out of memory" not in done.err


def test_past_the_last_fallback_it_is_exit_4_with_need_free_and_a_hint(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_out(call=1, times=50):
        done = sdcli(capfd, "generate", *words(model, "--json"))
    assert done.code == 4
    error = done.json["error"]
    assert error["type"] == "out_of_memory" and error["hint"]
    assert error["details"]["need"] > 0 and error["details"]["free"] > 0
    assert "nothing smaller is left to try" in error["message"]
    assert len(done.json["degraded"]) >= 1 and done.json["images"][0]["status"] == "missing"


# --- predicted, measured, remembered


def test_predicted_and_measured_stand_side_by_side_in_table_report_and_json(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done = sdcli(capfd, "generate", *words(model, "-v", "--json"))
    planned = {phase["name"]: phase for phase in done.json["plan"]["footprint"]["phases"]}
    for report in (done.json, stored(done)[0]):
        phases = {phase["name"]: phase for phase in report["phases"]}
        for name in PHASES:
            assert phases[name]["predicted_host_peak"] == planned[name]["host"] > 0
            assert phases[name]["host_peak"] > 0 and phases[name]["predicted_device_peak"] is None
        memory = report["memory"]
        assert memory["ratio"] == memory["measured"]["host_peak"] / memory["predicted"]["host_peak"]
    for name in PHASES:
        predicted, measured = planned[name]["host"] / GIB, phases[name]["host_peak"] / GIB
        assert [
            line for line in done.err.splitlines() if f"{predicted:.2f}" in line and f"{measured:.2f} GiB" in line
        ], name
    assert "predicted" in done.err and "measured" in done.err


def test_measured_peaks_are_remembered_for_this_way_and_no_other(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = sdcli(capfd, "plan", *words(model, "--json")).json
    assert before["footprint"]["runs"] == 0 and before["seconds"] is None
    with running_out(call=1):
        sdcli(capfd, "generate", *words(model))
    assert sdcli(capfd, "plan", *words(model, "--json")).json["footprint"]["runs"] == 0  # a drop measures nothing
    measured = sdcli(capfd, "generate", *words(model, "--json")).json["memory"]["measured"]
    after = sdcli(capfd, "plan", *words(model, "--json")).json
    assert after["footprint"]["runs"] == 1
    assert after["footprint"]["host_peak"] == after["footprint"]["device_peak"] == measured["host_peak"]
    assert after["seconds"]["source"] == "remembered"
    assert {row["slot"] for row in after["decisions"] if row["source"] == "remembered"} == {"placement", "vae"}
    assert "Measured in 1 run on this machine" in sdcli(capfd, "plan", *words(model)).out
    for other in (("--size", "328x320"), ("--batch-size", "2", "-n", "2"), ("--pin", "vae=tile-256"), ("-g", "1")):
        plan = sdcli(capfd, "plan", *words(model, *other))
        assert "Predicted" in plan.out, other
    assert "Predicted" in sdcli(capfd, "plan", *words(model, "--as-if", "cpu")).out


# --- refused


@pytest.mark.parametrize("lines", [
    '{"prompt": "a", "width": 64, "height": 64}\n{"prompt": "b", "width": 320, "height": 320}\n',
    '{"prompt": "' + "word " * 90 + '", "width": 64, "height": 64}\n',
], ids=["two sizes", "a long prompt"])  # fmt: skip
def test_a_run_of_unlike_images_leaves_no_peak_behind_for_the_small_one(
    model: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, lines: str
) -> None:
    """Its peaks are those of the largest image: filed under the smallest, that one would need too much for good."""
    (tmp_path / "list.jsonl").write_text(lines)
    small = ("-m", model, "-s", "2", "--sampler", "Euler a", "--dtype", "fp32", "--json")
    assert sdcli(capfd, "generate", "--prompts", "list.jsonl", *small).code == 0
    for size in ("64x64", "320x320"):
        plan = sdcli(capfd, "plan", "a", *small, "--size", size).json
        assert plan["footprint"]["runs"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_where_loading_alone_would_kill_the_process_it_is_refused_with_numbers(
    model: str, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container of 300 MiB: torch alone takes more."""
    from sdcli.machine import memory

    container, real = a_container(here / "root", 300 << 20), memory.read
    monkeypatch.setattr(memory, "read", lambda: real(container, "linux"))
    done = sdcli(capfd, "generate", *words(model, "--json"))
    assert done.code == 4
    error = done.json["error"]
    assert error["type"] == "does_not_fit"
    assert error["details"]["need"] > error["details"]["budget"] == int(0.92 * (300 << 20))
    assert error["details"]["free"] == 300 << 20
    assert "it needs at least 0." in error["message"] and "less a safety margin" in error["message"]
    assert not (here / "sdcli-images").exists()


def a_container(root: Path, limit: int) -> Path:
    """What Linux shows a process in a control group of so many bytes."""
    files = {
        "proc/meminfo": f"MemTotal: {64 << 20} kB\nMemAvailable: {60 << 20} kB\n",
        "proc/self/cgroup": "0::/job\n",
        "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        "sys/fs/cgroup/job/memory.max": str(limit),
        "sys/fs/cgroup/job/memory.current": "0",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_max_ram_keeps_components_on_the_disk_until_they_are_needed(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    peaks = {}
    for placement in ("resident", "drop-encoders", "disk"):
        pinned = sdcli(capfd, "plan", *words(model, "--pin", f"placement={placement}", "--json")).json
        peaks[placement] = pinned["footprint"]["host_peak"]
    assert peaks["disk"] < peaks["drop-encoders"] < peaks["resident"]
    limit = (peaks["disk"] + peaks["drop-encoders"]) / 2 / 0.92 / (1 << 20)
    asked = ("generate", *words(model, "--seed", "5", "--json"))
    # this one first: what the other one measures would be remembered for the resident model
    kept_small = sdcli(capfd, *asked, "--max-ram", f"{limit:.4f}MiB").json
    free = sdcli(capfd, *asked).json
    assert free["plan"]["setup"]["placement"] == "resident"
    assert kept_small["plan"]["setup"]["placement"] == "disk" and kept_small["exit_code"] == 0
    assert kept_small["images"][0]["pixel_sha256"] == free["images"][0]["pixel_sha256"]
    refusal = sdcli(capfd, *asked, "--max-ram", f"{limit * 0.9:.4f}MiB")
    assert (refusal.code, refusal.json["error"]["type"]) == (4, "does_not_fit")


WRONG = {
    "no size": (("--max-vram", "lots", "--as-if", "cuda:8GiB"), "6GiB"),
    "a negative size": (("--max-vram=-6", "--as-if", "cuda:8GiB"), "6GiB"),
    "no ram": (("--max-ram", "0"), "6GiB"),
    "vram on a cpu": (("--max-vram", "6", "--as-if", "cpu"), "--max-ram 6"),
    "vram on a mac": (("--max-vram", "6", "--as-if", "mps"), "--max-ram 6"),
    "no machine": (("--as-if", "gpu:8GiB"), "cpu, mps, cuda:8GiB"),
    "no size of a GPU": (("--as-if", "cuda"), "cuda:8GiB"),
    "more free than there is": (("--as-if", "cuda:8GiB/9GiB"), "cuda:24GiB/20GiB"),
    "no slot": (("--pin", "place=disk"), "placement"),
    "no choice": (("--pin", "vae=tiles"), "tile-512"),
    "no pin": (("--pin", "disk"), "SLOT=CHOICE"),
    "a choice that cannot be here": (("--pin", "placement=model-offload", "--as-if", "cpu"), "placement can be"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_limit_pin_or_machine_that_cannot_be_names_those_that_can(
    case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    more, valid = WRONG[case]
    done = sdcli(capfd, "plan", "a cat", "-m", "sd15", *more)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ") and "\n  try: " in done.err
    assert valid in done.err


@pytest.mark.parametrize(
    ("flag", "machine", "said"),
    [
        ("--medvram", "cuda:24GiB", "to force it: --pin placement=model-offload"),
        ("--lowvram", "cuda:24GiB", "to force it: --pin placement=group-offload"),
        ("--lowvram", "cuda:1.5GiB,ram:64GiB", "the plan does that already (placement=group-offload)"),
        ("--medvram", "cpu", "nothing runs on a GPU here"),
    ],
)
def test_low_memory_flags_of_other_programs_are_answered_in_a_line_and_change_nothing(
    flag: str, machine: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ("plan", "a cat", "-m", "sd15", "--seed", "1", "--as-if", machine, "--json")
    plan, without = sdcli(capfd, *asked, flag).json, sdcli(capfd, *asked).json
    (warning,) = [found for found in plan["warnings"] if found["code"] == "flag-not-needed"]
    assert warning["message"].startswith(f"{flag} is not needed: ") and said in warning["message"]
    assert plan["setup"] == without["setup"]


def test_generate_answers_a_low_memory_flag_before_it_draws(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = sdcli(capfd, "generate", *words(model, "--medvram", "--engine", "fake"))
    assert done.code == 0
    notes = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert notes[-1].startswith("note: --medvram is not needed: ")


GIVES_UP = """
import ctypes, resource, sys
from sdcli.cli import main
from sdcli.machine.memory import _status, Path
limit = _status(Path("/"))["VmSize"] + ({room} << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main._invoke = lambda words: {give_up}
main.run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not keep to such limits")
@pytest.mark.parametrize("words", [(), ("--json",)])
@pytest.mark.parametrize("give_up", ["ctypes.PyDLL(None).abort()", "ctypes.CDLL(None).abort()"])
def test_a_library_that_ends_the_process_for_want_of_memory_is_exit_4(give_up: str, words: tuple[str, ...]) -> None:
    """Libraries in C++ and Rust do so: with the interpreter's lock held or without it."""
    done = subprocess.run(
        [sys.executable, "-c", GIVES_UP.format(give_up=give_up, room=100), "generate", "a cat", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    if words:
        assert json.loads(done.stdout)["error"]["type"] == "out_of_memory"
    else:
        assert done.stderr == "error: out of memory\n  try: sdcli doctor\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not keep to such limits")
@pytest.mark.parametrize(("give_up", "signal"), [("ctypes.CDLL(None).abort()", 6), ("ctypes.string_at(0)", 11)])
def test_with_memory_left_a_crash_stays_a_crash(give_up: str, signal: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GIVES_UP.format(give_up=give_up, room=1000), "generate", "a cat"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal and b"out of memory" not in done.stderr
