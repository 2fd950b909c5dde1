"""The words of a prompt that a model with its own word list does not know."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

from sdcli.request import prompt

# Letters, with what joins them: t-shirt, l'albero, cat’s.
_WORD = re.compile(r"[^\W\d_]+(?:['’\-‐‑][^\W\d_]+)*")
_CHINESE = re.compile(r"([㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff]+)")
_LONGEST_ENDING = 2  # letters after an apostrophe: 's, 't, 're; more are a word after an elided article


def unknown(text: str, known: frozenset[str], emphasis: str = "a1111") -> tuple[str, ...]:
    """Words of the prompt itself (no syntax, no digits) that are not in `known`, in order, each once.

    `known` is in lower case. Chinese has no spaces: what its longest known pieces leave over is unknown.
    """
    pieces = prompt.parse(text, emphasis)
    plain = "".join(prompt.neutral(piece.text) if isinstance(piece, prompt.Segment) else " " for piece in pieces)
    plain = unicodedata.normalize("NFC", plain).lower()
    words: list[str] = []
    for number, part in enumerate(_CHINESE.split(plain)):
        words += _left_over(part, known, _longest(known)) if number % 2 else _unknown_words(part, known)
    return tuple(dict.fromkeys(words))


@functools.lru_cache(maxsize=4)
def _longest(known: frozenset[str]) -> int:
    return max(map(len, known), default=1)


def _unknown_words(text: str, known: frozenset[str]) -> Iterator[str]:
    for match in _WORD.finditer(text):
        word = match[0].replace("’", "'")
        if word in known or word.endswith("n't"):
            continue
        yield from (
            part
            for part in map(_stem, re.split(r"[-‐‑]", word))
            if sum(map(str.isalpha, part)) > 1 and part not in known
        )


def _stem(word: str) -> str:
    """cat of cat's, albero of l'albero."""
    before, _, after = word.rpartition("'")
    return after if len(after) > _LONGEST_ENDING or not before else before


def _left_over(run: str, known: frozenset[str], longest: int) -> Iterator[str]:
    position = start = 0
    while position < len(run):
        ends = range(min(len(run), position + longest), position, -1)
        end = next((end for end in ends if run[position:end] in known), None)
        if end is None:
            position += 1
            continue
        if start < position:
            yield run[start:position]
        position = start = end
    if start < len(run):
        yield run[start:]
