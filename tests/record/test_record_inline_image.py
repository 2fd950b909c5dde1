"""Images in a terminal: the protocol each understands, within the room there is."""

from __future__ import annotations

import base64
import io
import re

import pytest

from sdcli.record.sinks.inline_image import UPPER_HALF, box, inline_image, protocol

RED, BLUE = b"\xff\x00\x00", b"\x00\x00\xff"
HALVES = RED * (64 * 32) + BLUE * (64 * 32)  # 64×64, red above blue


def test_characters_carry_two_pixels_each_in_their_true_colours() -> None:
    text = inline_image(64, 64, HALVES, 40, 8, {"COLORTERM": "truecolor"})
    lines = text.split("\n")
    assert len(lines) == 8 and all(line.count(UPPER_HALF) == 16 for line in lines)
    assert lines[0].startswith("\x1b[38;2;255;0;0;48;2;255;0;0m") and lines[-1].startswith("\x1b[38;2;0;0;255")
    assert all(line.endswith("\x1b[0m") for line in lines)


def test_without_true_colour_the_cube_of_256_is_used() -> None:
    text = inline_image(64, 64, HALVES, 40, 8, {})
    assert set(re.findall(r"38;5;(\d+);", text)) >= {"196", "21"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm", "TMUX": "/tmp/x"}, "blocks"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({}, "blocks"),
    ],
)
def test_each_terminal_gets_the_protocol_it_understands(environ: dict[str, str], expected: str) -> None:
    assert protocol(environ) == expected


def decoded(data: str) -> tuple[int, int]:
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(data))).size


def test_inline_images_are_whole_pngs_of_the_right_shape() -> None:
    wide = (HALVES * 2)[: 128 * 64 * 3]
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", inline_image(128, 64, wide, 60, 20, {"TERM": "xterm-kitty"}))
    assert chunks[0][0].startswith("f=100,a=T") and chunks[-1][0].endswith("m=0")
    assert all(len(data) <= 4096 for _, data in chunks)
    width, height = decoded("".join(data for _, data in chunks))
    assert width == 2 * height
    text = inline_image(128, 64, wide, 60, 20, {"TERM_PROGRAM": "iTerm.app"})
    assert text.startswith("\x1b]1337;File=inline=1;") and decoded(text[text.index(":") + 1 : -1]) == (width, height)


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_image_where_no_colour_is_wanted(environ: dict[str, str]) -> None:
    assert inline_image(64, 64, HALVES, 80, 24, environ) == ""


def test_no_image_where_there_is_no_room() -> None:
    assert inline_image(64, 64, HALVES, 3, 24, {}) == inline_image(64, 64, HALVES, 80, 1, {}) == ""
    assert inline_image(64, 64, HALVES, 80, -2, {}) == ""


@pytest.mark.parametrize("size", [(64, 64), (1024, 64), (64, 1024), (512, 768)])
@pytest.mark.parametrize("room", [(4, 2), (40, 10), (64, 50), (200, 3)])
def test_the_box_lies_within_the_room(size: tuple[int, int], room: tuple[int, int]) -> None:
    across, down = box(*size, *room)
    assert across <= room[0] and down <= room[1]
