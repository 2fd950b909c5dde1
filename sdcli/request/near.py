"""The names a mistyped word was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_WORD = 80  # a longer word is no slip of the finger, and comparing it would be slow


def nearest(word: str, names: Iterable[str], most: int = 3) -> tuple[str, ...]:
    """Up to `most` of `names`, best first; capitals do not count."""
    if len(word) > LONGEST_WORD:
        return ()
    spelled = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(word.casefold(), spelled, n=most, cutoff=0.55)
    return tuple(spelled[name] for name in found)


def near_text(names: Iterable[str]) -> str:
    """`; near: steps, seeds` to end a message with, or nothing."""
    listed = ", ".join(names)
    return f"; near: {listed}" if listed else ""
