"""Compiled blocks: really compiled and called, kept for the next process, diffusers' values, and never a lost run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_run import SETUP, plan_of
from draw_samples import events_of

from sdcli.errors import ImagesFailed
from sdcli.events import Decoded, Degraded, Step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def two_processes(tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes tell that draw with the same compiled blocks, one after the other."""
    home = tmp_path_factory.mktemp("compiled")
    path = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    around = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR")}
    around |= {"SDCLI_HOME": str(home), "PYTHONPATH": path, "TMPDIR": str(home / "temporary")}
    (home / "temporary").mkdir()
    told = []
    for _ in range(2):
        command = [sys.executable, "-P", "-m", "compiled_run", str(tiny_folders["sd15"])]
        done = subprocess.run(command, env=around, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        told.append(json.loads(done.stdout))  # nothing else is on stdout
    assert (home / "cache" / "compile").is_dir()
    assert [path.name for path in (home / "temporary").rglob("*.so")] == []
    return told


@pytest.mark.system
def test_what_is_drawn_is_what_setup_says(two_processes: list[dict[str, Any]]) -> None:
    assert [told["differences"] for told in two_processes] == [[], []]


@pytest.mark.system
def test_the_second_process_compiles_nothing_anew(two_processes: list[dict[str, Any]]) -> None:
    cold, warm = (told["first"] for told in two_processes)
    assert cold["miss"] == cold["graphs"] > 0 and cold["breaks"] == warm["breaks"] == 0
    assert (warm["hit"], warm["miss"]) == (cold["graphs"], 0)


@pytest.mark.system
def test_the_same_pixels_again_and_eager_values_within_rounding(two_processes: list[dict[str, Any]]) -> None:
    (pixels,) = two_processes[0]["pixels"]
    assert two_processes[1]["pixels"] == [pixels]
    assert all(told["away"] <= 1e-5 for told in two_processes)


@pytest.mark.system
def test_compiling_is_a_phase_of_its_own_and_done_once_per_engine(two_processes: list[dict[str, Any]]) -> None:
    for told in two_processes:
        assert told["phases"].count("compile") == 2  # its seconds and its memory
        assert told["phases"].index("compile") < told["phases"].index("denoise")
        assert told["steps"] == 2


@pytest.mark.system
def test_nothing_is_left_of_it(two_processes: list[dict[str, Any]]) -> None:
    assert [told["environment"] for told in two_processes] == [[], []]
    assert [told["children"] for told in two_processes] == [[], []]


@pytest.fixture
def broken_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, and fails."""
    torch._dynamo.reset()  # which computes blocks as they are, once it has given up on any like them
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))


def test_a_run_whose_blocks_do_not_compile_goes_on_and_records_what_it_drew_with(
    tiny_folders: dict[str, Path], broken_compiler: None
) -> None:
    plan = plan_of(tiny_folders["sd15"], SETUP)
    events = events_of(plan)
    (fallback,) = [event for event in events if isinstance(event, Degraded)]
    assert (fallback.phase, fallback.before, fallback.after) == (
        "compile", {"execution": "compile"}, {"execution": "eager"}
    )  # fmt: skip
    assert fallback.because and fallback.changes_pixels
    (image,) = [event for event in events if isinstance(event, Decoded)]
    assert image.setup == replace(SETUP, execution="eager")
    assert len([event for event in events if isinstance(event, Step)]) == 1
    (eager,) = events_of(plan_of(tiny_folders["sd15"], image.setup), Decoded)
    assert eager.pixels == image.pixels


def test_without_fallbacks_it_stops_and_says_how_to_go_on(tiny_folders: dict[str, Path], broken_compiler: None) -> None:
    plan = plan_of(tiny_folders["sd15"], SETUP)
    with pytest.raises(ImagesFailed, match="could not be compiled") as failed:
        events_of(replace(plan, request=replace(plan.request, fallback=False)))
    assert failed.value.hint == "the same command with --compile off"
