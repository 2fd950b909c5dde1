"""docs/unet.md is true: its commands run and print what it shows, its figures are the code's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sdcli import data
from sdcli.inspect import diagram
from sdcli.inspect.facts import At, inspect
from sdcli.inspect.source import of_family
from sdcli.models import text, vae
from sdcli.models.unet import analyse

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "unet.md").read_text(encoding="utf-8")


def shown() -> list[tuple[str, list[str]]]:
    """Every command of a console block with the lines below it."""
    commands: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ sdcli "):
                commands.append((line[8:], []))
            else:
                commands[-1][1].append(line)
    return commands


@pytest.mark.parametrize(("command", "lines"), shown(), ids=[command for command, _ in shown()])
def test_a_command_prints_what_the_page_shows(command: str, lines: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sdcli", *shlex.split(command)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=True,
    )
    printed = iter(done.stdout.splitlines())
    for line in lines:
        if line != "…":
            assert line in printed, line  # in this order


def test_the_figures_between_the_commands_are_the_codes() -> None:
    sd15, sdxl = (data.component_config(name, "unet") for name in ("sd15", "sdxl"))
    small, large = analyse(sd15, height=64, width=64), analyse(sdxl, height=128, width=128)
    assert 3 * 512 * 512 == 48 * 4 * 64 * 64
    assert round(50 * small.macs / 1e12) == 20
    enters = [block.name for block in small.blocks if "CrossAttn" in block.type]
    assert [sum(name.startswith(role) for name in enters) * n for role, n in (("down", 2), ("mid", 1), ("up", 3))] == [
        6,
        1,
        9,
    ]
    assert (large.text_enters, len(small.skips), len(large.skips)) == (70, 12, 9)
    assert round(100 * large.macs_by_kind["attention"] / large.macs) == 12
    assert analyse(sd15, height=64, width=64).largest_scores * 2 == 256 * 2**20
    one, other = (data.component_config(name, "vae") for name in ("sd15", "sdxl"))
    assert vae.parameters(one) == vae.parameters(other) == 83_653_863
    decoding = [vae.decode(other, height=side, width=side) for side in (512, 1024)]
    assert [round(each.macs / 1e12, 2) for each in decoding] == [1.26, 5.24]
    assert round(decoding[0].macs / small.macs) == 3
    assert round(decoding[1].activation_peak(2) / 2**30, 1) == 1.5
    assert round(decoding[1].activation_peak(2) / large.activation_peak(2)) == 10
    assert [round(2 * unet.parameters / 1e9, 1) for unet in (small, large)] == [1.7, 5.1]
    beside = [
        2 * (text.parameters(data.component_config("sd15", "text_encoder")) + vae.parameters(one)),
        2
        * (
            text.parameters(data.component_config("sdxl", "text_encoder"))
            + text.parameters(data.component_config("sdxl", "text_encoder_2"))
            + vae.parameters(other)
        ),
    ]
    assert [round(each / 1e9, 1) for each in beside] == [0.4, 1.8]


def test_the_diagram_is_the_one_that_is_drawn_now() -> None:
    look = inspect(of_family("sd15"), At(width=512, height=512))
    assert (DOCS / "unet.svg").read_text(encoding="utf-8") == diagram.svg(look)
