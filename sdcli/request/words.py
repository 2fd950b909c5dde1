"""Which words of a prompt a model with a list of its words does not know."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

from sdcli.request import prompt

# Letters, with what joins them: t-shirt, l'albero, cat’s.
_WORD = re.compile(r"[^\W\d_]+(?:['’\-‐‑][^\W\d_]+)*")
_CHINESE = re.compile(r"([㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff]+)")
_LONGEST_ENDING = 2  # letters behind an apostrophe: 's, 't, 're; more are a word behind an elided article


def unknown(text: str, known: frozenset[str], emphasis: str = "a1111") -> tuple[str, ...]:
    """Words of the prompt itself (no syntax, no digits) that are not among `known`, in order, each once.

    `known` is in small letters. Chinese has no spaces: what its longest known pieces leave over is unknown.
    """
    pieces = prompt.parse(text, emphasis)
    plain = "".join(prompt.neutral(piece.text) if isinstance(piece, prompt.Segment) else " " for piece in pieces)
    plain = unicodedata.normalize("NFC", plain).lower()
    found: list[str] = []
    for number, part in enumerate(_CHINESE.split(plain)):
        found += _left_over(part, known, _longest(known)) if number % 2 else _strange(part, known)
    return tuple(dict.fromkeys(found))


@functools.lru_cache(maxsize=4)
def _longest(known: frozenset[str]) -> int:
    return max(map(len, known), default=1)


def _strange(text: str, known: frozenset[str]) -> Iterator[str]:
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
    place = since = 0
    while place < len(run):
        ends = range(min(len(run), place + longest), place, -1)
        end = next((end for end in ends if run[place:end] in known), None)
        if end is None:
            place += 1
            continue
        if since < place:
            yield run[since:place]
        place = since = end
    if since < len(run):
        yield run[since:]
