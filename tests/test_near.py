"""Mistyped words and the names they were meant to be."""

from __future__ import annotations

import pytest

from sdcli.near import ANY, LIKELY, SHOWN, SURE, nearest

FLAGS = (
    "--steps",
    "--size",
    "--height",
    "--width",
    "--num-images",
    "--negative",
    "--cfg-scale",
    "--offline",
    "--output",
)
COMMANDS = ("generate", "plan", "samplers", "models", "pull", "inspect-unet", "bench", "doctor", "config")


@pytest.mark.parametrize(
    ("word", "names", "alike", "expected"),
    [
        ("float32", ("fp16", "bf16", "fp32"), SHOWN, "fp32"),
        ("Dream", ("dreamshaper_8", "sdxl"), SHOWN, "dreamshaper_8"),
        ("flux", ("sd15", "sdxl", "builtin"), SHOWN, None),
        ("plna", COMMANDS, LIKELY, "plan"),
        ("inspect", COMMANDS, LIKELY, "inspect-unet"),
        ("castle", COMMANDS, LIKELY, None),
        ("portrait", COMMANDS, LIKELY, None),
        ("--wdith", FLAGS, SURE, "--width"),
        ("--negatve", FLAGS, SURE, "--negative"),
        ("--init-image", FLAGS, SURE, None),
        ("--upscale", FLAGS, SURE, None),
        ("tiling", ("whole", "tile-512", "cpu"), ANY, "tile-512"),
        ("x" * 10_000, ("whole", "tile-512"), ANY, "whole"),
    ],
)
def test_real_slips_find_their_name_and_other_words_none(
    word: str, names: tuple[str, ...], alike: float, expected: str | None
) -> None:
    assert next(iter(nearest(word, names, 1, alike)), None) == expected
