"""Prompts with weights: (word:1.3), (word), [word], escapes, BREAK, cut into the chunks of 75 that CLIP reads.

Nothing a person can type is an error: what is no syntax is text. Weights are A1111's: ( ) is ×1.1, [ ] is ÷1.1, and
a bracket never closed holds to the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

CHUNK = 75
STEP = 1.1
LARGEST_WEIGHT = 100.0  # beyond any use; keeps ten thousand brackets finite
COMMA_REACH = 20  # a chunk may end up to so many tokens early, at a comma, rather than inside a phrase

Chunk = tuple[tuple[int, float], ...]  # token and weight
Tokenize = Callable[[str], Sequence[int]]
_NONE: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True)
class Segment:
    """Text under one weight, escapes already resolved."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Break:
    """BREAK: what follows begins a new chunk."""


Piece = Segment | Break

_TOKEN = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\])
  | :\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)
  | (?P<bracket>[()\[\]])
  | \s*\b(?P<break>BREAK)\b\s*
  | (?P<text>[^\\()\[\]:B\s]+|\s+|.)
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_MARKS = re.compile(r"<\|(startoftext|endoftext)\|>", re.IGNORECASE)


def parse(text: str, emphasis: str = "a1111") -> tuple[Piece, ...]:
    """Segments and breaks. With emphasis none the text stands as it is, brackets, BREAK and all."""
    if emphasis == "none":
        return (Segment(text),) if text else ()
    pieces: list[Piece] = []
    weights: list[float] = []
    open_round: list[int] = []
    open_square: list[int] = []

    def multiply(start: int, factor: float) -> None:
        for index in range(start, len(weights)):
            weights[index] = max(-LARGEST_WEIGHT, min(LARGEST_WEIGHT, weights[index] * factor))

    def add(piece: Piece) -> None:
        pieces.append(piece)
        weights.append(1.0)

    for found in _TOKEN.finditer(text):
        kind, token = found.lastgroup, found[0]
        if kind == "escaped":
            add(Segment(found["escaped"]))
        elif kind == "weight" and open_round:
            multiply(open_round.pop(), float(found["weight"]))
        elif kind == "weight":  # a colon and a bracket without its opening one are text
            add(Segment(token))
        elif kind == "break":
            add(Break())
        elif token == "(":
            open_round.append(len(weights))
        elif token == "[":
            open_square.append(len(weights))
        elif token == ")" and open_round:
            multiply(open_round.pop(), STEP)
        elif token == "]" and open_square:
            multiply(open_square.pop(), 1 / STEP)
        else:
            add(Segment(token))
    for start in open_round:
        multiply(start, STEP)
    for start in open_square:
        multiply(start, 1 / STEP)
    return _merged(pieces, weights)


def _merged(pieces: Iterable[Piece], weights: Iterable[float]) -> tuple[Piece, ...]:
    merged: list[Piece] = []
    for piece, weight in zip(pieces, weights, strict=True):
        last = merged[-1] if merged else None
        if isinstance(piece, Break):
            merged.append(piece)
        elif isinstance(last, Segment) and last.weight == weight:
            merged[-1] = Segment(last.text + piece.text, weight)
        else:
            merged.append(Segment(piece.text, weight))
    return tuple(merged)


def render(pieces: Iterable[Piece]) -> str:
    """Text that parses into the same pieces: nothing is lost on the way."""
    words: list[str] = []
    for piece in pieces:
        if isinstance(piece, Break):
            words.append(" BREAK ")
            continue
        escaped = re.sub(r"([()\[\]\\])", r"\\\1", piece.text)
        words.append(escaped if piece.weight == 1.0 else f"({escaped}:{_number(piece.weight)})")
    return "".join(words)


def _number(weight: float) -> str:
    text = repr(weight)
    return text if "e" not in text else f"{weight:.20f}"


# --- chunks


def chunks(pieces: Iterable[Piece], tokenize: Tokenize, whole: Mapping[int, int] = _NONE) -> tuple[Chunk, ...]:
    """At most 75 tokens each, at least one chunk. A phrase is not cut where a comma stands shortly before.

    `whole` are tokens that begin a row of so many which is never cut: the vectors of one learned word.
    """
    done: list[Chunk] = []
    current: list[tuple[int, float]] = []
    comma = -1  # where the last comma of `current` ends
    commas = frozenset(tokenize(","))
    for piece in pieces:
        if isinstance(piece, Break):
            done.append(tuple(current))
            current, comma = [], -1
            continue
        for token in tokenize(neutral(piece.text)):
            while len(current) + whole.get(token, 1) > CHUNK:
                cut = comma if 0 <= CHUNK - comma <= COMMA_REACH and token not in commas else CHUNK
                done.append(tuple(current[:cut]))
                current, comma = current[cut:], -1
            current.append((token, piece.weight))
            if token in commas:
                comma = len(current)
    if current or not done:
        done.append(tuple(current))
    return tuple(done)


def neutral(text: str) -> str:
    """CLIP's own start and end marks, typed by a person, would end the prompt for the encoder: they are left out."""
    return _MARKS.sub(" ", text)


# --- LoRA tags

_LORA = re.compile(r"<lora:([^:<>]{1,200})(?::([+-]?\d{1,4}(?:\.\d{1,6})?))?>", re.ASCII)


def extract_loras(text: str) -> tuple[str, tuple[tuple[str, float], ...]]:
    """The prompt without its <lora:name:weight> tags, and the tags."""
    loras = tuple((found[1], float(found[2] or 1.0)) for found in _LORA.finditer(text))
    return (_LORA.sub("", text).strip() if loras else text), loras
