"""The screen: 24 lines, never wider than asked, and true."""

from __future__ import annotations

import pytest

from sdcli.inspect.facts import At, Inspection, inspect, native_size
from sdcli.inspect.screen import draw, insight
from sdcli.inspect.source import of_family
from sdcli.terminal import cells

NAMES = ["sd15", "sdxl", "sd2", "refiner", "unet2015"]


def look(name: str, **at: object) -> Inspection:
    source = of_family(name)
    width, height = native_size(source)
    return inspect(source, At(**{"width": width, "height": height, **at}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_every_known_unet_fits_one_screen(name: str, ascii: bool, width: int) -> None:
    lines = draw(look(name), width, ascii=ascii)
    assert len(lines) <= (22 if width > 60 else 30)  # 24 with the command and the next prompt; narrow ones fold
    assert max(map(cells, lines)) <= min(width, 112)
    assert all(line.isascii() for line in lines) is ascii


def test_sd15_shows_its_figures() -> None:
    text = "\n".join(draw(look("sd15"), 80))
    for part in (
        "859,520,964 parameters",
        "1.60 GiB fp16",
        "401.6 GMAC = 803.3 GFLOP a call at 512×512",
        "65 MiB of activations",
        "conv 55 %, linear 29 %, attention 16 %",
        "12 skips",
        "640 · 1280 · 1280",
        "77×768, 16 places",
        "time is added in 22 ResNets",
        "the 64² level holds 3 %, does 38 %",
    ):
        assert part in text


def test_the_arms_of_the_u_end_where_their_level_does() -> None:
    lines = draw(look("sd15"), 80)
    arms = [line for line in lines if "▶" in line and "skip" not in line and "joined" not in line]
    assert [cells(line) for line in arms] == [80, 77, 74, 71]
    assert [line.index("down") for line in arms] == [12, 15, 18, 21]


def test_bars_are_in_proportion_to_the_work() -> None:
    lines = [line for line in draw(look("sd15"), 100) if "▶" in line and "up." in line]
    ups = [line.split("▶")[1].count("█") + line.split("▶")[1].count("▌") / 2 for line in lines]
    macs = [block.macs for block in reversed(look("sd15").unet.blocks) if block.role == "up"]
    for length, work in zip(ups, macs, strict=True):
        assert length == pytest.approx(ups[0] * work / macs[0], abs=0.76)


def test_each_unet_gets_its_own_sentence() -> None:
    assert insight(look("sdxl")) == "Most of it is one level: 32² holds 93 % of the weights and does 69 % of the work"
    assert "does 38 %" in insight(look("sd15"))


def test_colour_changes_no_letter() -> None:
    import re

    plain = draw(look("sd15"), 80)
    coloured = draw(look("sd15"), 80, colour=True)
    assert "\x1b[36m" in "".join(coloured)
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in coloured] == plain


def test_an_image_that_is_not_square_shows_both_sides() -> None:
    text = "\n".join(draw(look("sd15", width=768, height=512), 80))
    assert "96×64" in text
    assert "at 768×512" in text
