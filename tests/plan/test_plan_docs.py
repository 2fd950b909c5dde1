"""docs/memory.md is right: its screens are printed, its constants, slots and sums are the code's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from making import gpu, known_model

from sdcli.plan import calibration
from sdcli.plan.footprint import footprint
from sdcli.plan.plan import Setup
from sdcli.plan.stages import Shape
from sdcli.plan.techniques import TECHNIQUES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
MIB, GIB = 1 << 20, 1 << 30


def rows(head: str) -> list[list[str]]:
    """The table whose first line starts like this."""
    table = TEXT[TEXT.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def shown() -> list[tuple[str, list[str]]]:
    commands = []
    for block in re.findall(r"```console\n\$ sdcli (.*?)```", TEXT, re.DOTALL):
        command, *lines = block.splitlines()
        commands.append((command, lines))
    return commands


@pytest.mark.parametrize(("command", "lines"), shown(), ids=[command for command, _ in shown()])
def test_a_command_prints_what_the_page_shows(command: str, lines: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sdcli", *shlex.split(command)],
        capture_output=True, text=True, encoding="utf-8", check=True,
        env={**environment, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    printed = iter(done.stdout.splitlines())
    for line in lines:
        if line != "…":
            assert line in printed, line  # in this order


def test_every_constant_is_on_the_page_with_its_value() -> None:
    documented = {name.strip("`"): value for name, value, _ in rows("| constant |")}
    known = {name: value for name, value in vars(calibration).items() if name.isupper() and name not in ("MIB", "GIB")}
    assert set(documented) == set(known)
    for name, value in known.items():
        assert documented[name] == (f"{value // MIB} MiB" if value >= MIB else f"{value}"), name


def test_every_slot_and_choice_is_on_the_page() -> None:
    documented: dict[str, list[str]] = {}
    for name, choices, _ in rows("| slot |"):
        documented.setdefault(name.strip("`") or list(documented)[-1], []).extend(choices.split(", "))
    assert documented == {technique.flag: documented[technique.flag] for technique in TECHNIQUES}
    for technique in TECHNIQUES:
        assert sorted(documented[technique.flag]) == sorted(technique.choices)


def test_the_sums_of_the_example_are_the_forecasts() -> None:
    setup = Setup(dtype="fp16", vae_dtype="bf16", device="cuda:0")
    shape = Shape(width=1024, height=1024)
    phases = {phase.name: phase for phase in footprint(known_model("sdxl"), shape, setup, gpu(24)).phases}
    for name, *figures in rows("| phase | in use |"):
        phase = phases[name]
        assert figures == [f"{part / GIB:.2f}" for part in (phase.weights, phase.parked, phase.work, phase.device)]
    offloaded = Setup(dtype="fp16", vae_dtype="bf16", device="cuda:0", placement="model-offload")
    phases = {phase.name: phase for phase in footprint(known_model("sdxl"), shape, offloaded, gpu(24)).phases}
    match = re.search(r"denoise is ([\d.]+) \+ ([\d.]+) = ([\d.]+)\s+and decode ([\d.]+) \+ ([\d.]+) = ([\d.]+)", TEXT)
    assert match is not None
    denoise, decode = phases["denoise"], phases["decode"]
    sums = [part / GIB for phase in (denoise, decode) for part in (phase.weights, phase.work, phase.device)]
    assert list(match.groups()) == [f"{part:.2f}" for part in sums]
