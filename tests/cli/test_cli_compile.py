"""--compile by whole commands: where it comes from, what refuses it, what is remembered and recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_run import sdcli

from sdcli.machine import folders

DRAW = ("generate", "a cat", "--engine", "fake", "--device", "cpu", "-s", "2", "--seed", "1", "-q")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, and a command that could be a compiler: whether it works only drawing finds out."""
    monkeypatch.chdir(tmp_path)
    compiler = tmp_path / "c++"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return tmp_path


def planned(capfd: pytest.CaptureFixture[str], *words: str) -> Any:
    done = sdcli(capfd, "plan", "a cat", "--device", "cpu", "--json", *words)
    assert done.code == 0, done.err
    return done.json


def test_flag_environment_preset_and_config_all_pin_it_and_the_later_one_wins(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = folders.config_folder() / "presets"
    presets.mkdir(parents=True)
    (presets / "long.toml").write_text('compile = "on"\n')
    assert planned(capfd)["setup"]["execution"] != "compile"
    assert planned(capfd, "--compile", "on")["setup"]["execution"] == "compile"
    assert planned(capfd, "--preset", "long")["setup"]["execution"] == "compile"
    assert planned(capfd, "--preset", "long", "--compile", "off")["setup"]["execution"] != "compile"
    assert sdcli(capfd, "config", "set", "compile", "on").code == 0
    assert planned(capfd)["setup"]["execution"] == "compile"
    monkeypatch.setenv("SDCLI_COMPILE", "off")
    assert planned(capfd)["setup"]["execution"] != "compile"


def test_without_a_compiler_it_is_refused_with_what_is_missing_and_a_line_that_works(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = sdcli(capfd, *DRAW, "--compile", "on")
    assert done.code == 2 and "torch.compile needs a C++ compiler, not found here" in done.err
    assert "--compile off" in done.err
    assert "compile" not in next(row["because"] for row in planned(capfd)["decisions"] if row["slot"] == "execution")


def test_a_wrong_word_and_a_pin_that_says_otherwise_are_usage(capfd: pytest.CaptureFixture[str]) -> None:
    assert sdcli(capfd, *DRAW, "--compile", "always").code == 2
    done = sdcli(capfd, *DRAW, "--compile", "on", "--pin", "execution=eager")
    assert done.code == 2 and "--compile on and --pin execution=eager exclude each other" in done.err


def test_the_plan_says_what_it_does_and_how_to_measure_it(capfd: pytest.CaptureFixture[str]) -> None:
    shown = sdcli(capfd, "plan", "a cat", "--device", "cpu", "--compile", "on").out
    assert "blocks compiled" in shown
    assert "compile: sdcli bench --sweep compile=off,on measures what it saves" in " ".join(shown.split())


def test_report_and_image_say_that_it_was_compiled(capfd: pytest.CaptureFixture[str], here: Path) -> None:
    assert sdcli(capfd, *DRAW, "--compile", "on", "-o", "out").code == 0
    (report,) = (here / "out").rglob("report.json")
    told = json.loads(report.read_text())
    assert told["plan"]["setup"]["execution"] == "compile" and told["plan"]["request"]["compile"] == "on"
    names = [phase["name"] for phase in told["phases"]]
    assert names.index("encode") < names.index("compile") < names.index("denoise")
    (image,) = (here / "out").glob("*.png")
    shown = sdcli(capfd, "generate", "a cat", "--settings-from", str(image), "--engine", "fake", "--json")
    assert shown.code == 0 and b'"execution":"compile"' in image.read_bytes().replace(b": ", b":")


def test_bench_takes_the_flag_and_counts_compiling_apart(capfd: pytest.CaptureFixture[str]) -> None:
    fake = ("bench", "--quick", "--max-time", "1", "--engine", "fake", "--device", "cpu", "-s", "5", "--json")
    cases = sdcli(capfd, *fake, "--sweep", "compile=off,on").json["configurations"]
    assert [case["setup"]["execution"] == "compile" for case in cases] == [False, True]
    assert [case["phases"]["compile"] is not None for case in cases] == [False, True]
