"""The names a mistyped word was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_WORD = 200  # only the beginning of a longer one is compared: all of it would be slow

# How similar a name must be, from 0 to 1, by what it is used for.
ANY = 0.0  # one must be chosen: the most similar
SHOWN = 0.5  # named as a suggestion: float32 → fp32, dream → dreamshaper_8
LIKELY = 0.7  # a word taken for a command and not for a prompt: inspect → inspect-unet, but not castle → samplers
SURE = 0.8  # replaces the word in the line to paste: --negatve → --negative, but not --init-image → --num-images


def nearest(word: str, names: Iterable[str], most: int = 3, alike: float = SHOWN) -> tuple[str, ...]:
    """Up to `most` of `names`, best first; capitals do not count."""
    spelled = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(word[:LONGEST_WORD].casefold(), spelled, n=most, cutoff=alike)
    return tuple(spelled[name] for name in close)


def near_text(names: Iterable[str]) -> str:
    """`; near: steps, seeds` to end a message with, or nothing."""
    listed = ", ".join(names)
    return f"; near: {listed}" if listed else ""
