"""docs/benchmarks/method.md tells the truth: its commands run, and its numbers are the code's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sdcli.bench import likeness, run, statistics, surroundings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "benchmarks" / "method.md").read_text(encoding="utf-8")
# Without torch and in a second each: what the page shows is the command line, not the figures.
REHEARSED = ("--engine", "fake", "--max-time", "1")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ sdcli bench") for line in lines)
    return [shlex.split(line.removeprefix("$ sdcli ")) for line in lines]


@pytest.mark.skipif(sys.platform == "win32", reason="programs with a shebang")
def test_the_commands_run_in_the_order_shown(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SDCLI_HOME": str(tmp_path / "home")}
    for name in ("old", "new"):
        program = tmp_path / name / "sdcli"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\nfrom sdcli.cli.main import run\nrun()\n")
        program.chmod(0o755)
    for words in commands():
        files = words[1:2] == ["compare"] and "--run" not in words
        few = () if "--quick" in words else ("--processes", "2")
        small = () if files else (*REHEARSED, "--size", "64x64", *few)
        done = subprocess.run(
            [sys.executable, "-m", "sdcli", *words, *small],
            cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300,
        )  # fmt: skip
        # equal programs may come out a little apart in a second on a busy machine: 10 is an answer too
        assert done.returncode in ((0, 10) if words[1] == "compare" else (0,)), (words, done.stderr)
    assert {"old.json", "new.json", "sweep.html"} <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "home" / "config" / "presets" / "quickest.toml").exists()


def test_the_numbers_are_the_codes() -> None:
    said = " ".join(TEXT.split())
    assert statistics.LEAST_PROCESSES == 5 and "five processes of at least 20 steps" in said
    assert statistics.LEAST_STEPS == 20 and statistics.HALF_WIDTH == 0.01 and "within ±1 %" in said
    assert statistics.AGREEING == 3 and f"agree within {statistics.AGREEMENT * 100:g} %" in said
    assert run.WARM_SECONDS == 60 and f"at most {run.WARM_IMAGES} images or a minute" in said
    assert f"judged at {statistics.EXTENDED * 100:g} %" in said and f"modified z above {statistics.OUTLIER:g}" in said
    assert surroundings.FOREIGN_SHARE == 0.1 and "a tenth or more of the cores" in said
    assert f"Below {likeness.SAME_TYPE:g} dB ({likeness.OTHER_TYPE:g} dB in another number type)" in said
    assert f"{statistics.ASSUMED_SPREAD * 100:g} % is then assumed" in said
