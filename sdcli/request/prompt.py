"""Prompts with weights: (word:1.3), (word), [word], escapes, BREAK, cut into the chunks of 75 that CLIP reads.

Nothing a user can type is an error: what is not syntax is text. Weights are A1111's: ( ) is ×1.1, [ ] is ÷1.1, and
an unclosed bracket lasts to the end. ComfyUI has round brackets only, and a number replaces the weights around it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

CHUNK = 75
STEP = 1.1
LARGEST_WEIGHT = 100.0  # beyond any use; keeps ten thousand brackets finite
COMMA_REACH = 20  # a chunk may end up to so many tokens early, at a comma, rather than inside a phrase

Chunk = tuple[tuple[int, float], ...]  # token and weight
Tokenize = Callable[[str], Sequence[int]]
_NONE: Mapping[int, int] = MappingProxyType({})


class Segment(NamedTuple):
    """Text under one weight, escapes already resolved."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Break:
    """BREAK: what follows begins a new chunk."""


Piece = Segment | Break

# Escaped brackets, a weight with its closing bracket, brackets, BREAK, and everything else as text.
_A1111 = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\])
  | :\s*(?P<weight>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)
  | (?P<bracket>[()\[\]])
  | \s*\b(?P<break>BREAK)\b\s*
  | (?P<text>[^\\()\[\]:B\s]+|\s+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
# Square brackets, BREAK and double backslashes mean nothing there.
_COMFY = re.compile(
    r"""
    \\(?P<escaped>[()])
  | :\s*(?P<weight>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)
  | (?P<bracket>[()])
  | (?P<text>[^\\():]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_MARKS = re.compile(r"<\|(startoftext|endoftext)\|>", re.IGNORECASE)


@dataclass
class _Bracket:
    """An opening bracket. Its factor is known only where it closes; unclosed, it lasts to the end."""

    square: bool
    factor: float
    closed: bool = False
    absolute: bool = False  # ComfyUI: a number replaces the weights around it


class _Close(NamedTuple):
    square: bool


_Item = str | Break | _Bracket | _Close


def parse(text: str, emphasis: str = "a1111") -> tuple[Piece, ...]:
    """Segments and breaks. With emphasis none the text stays as it is, brackets, BREAK and all."""
    if emphasis == "none":
        return (Segment(text),) if text else ()
    if emphasis == "comfy":
        return _merged(_weighed(_comfy_items(text)))
    return _merged(_weighed(_a1111_items(text)))


def _a1111_items(text: str) -> list[_Item]:
    """Round and square brackets are matched separately; an unmatched closing one is text."""
    items: list[_Item] = []
    open_brackets: dict[str, list[_Bracket]] = {"(": [], "[": []}
    for match in _A1111.finditer(text):
        token = match[0]
        if match["escaped"]:
            items.append(match["escaped"])
        elif match["break"]:
            items.append(Break())
        elif token in ("(", "["):
            bracket = _Bracket(token == "[", STEP if token == "(" else 1 / STEP)
            open_brackets[token].append(bracket)
            items.append(bracket)
        elif (match["weight"] or token == ")") and open_brackets["("]:
            bracket = open_brackets["("].pop()
            bracket.factor = float(match["weight"]) if match["weight"] else STEP
            items.append(_Close(square=False))
        elif token == "]" and open_brackets["["]:
            open_brackets["["].pop()
            items.append(_Close(square=True))
        else:
            items.append(token)
    return items


def _comfy_items(text: str) -> list[_Item]:
    """Only closed brackets count; the others are text."""
    items: list[_Item] = []
    openings: list[int] = []
    for match in _COMFY.finditer(text):
        token = match[0]
        if match["escaped"]:
            items.append(match["escaped"])
        elif token == "(":
            openings.append(len(items))
            items.append(_Bracket(False, STEP))
        elif (match["weight"] or token == ")") and openings:
            opening = openings.pop()
            bracket = items[opening]
            assert isinstance(bracket, _Bracket)
            bracket.closed = True
            if match["weight"] and opening + 1 < len(items):
                bracket.factor, bracket.absolute = float(match["weight"]), True
            elif match["weight"]:  # nothing before the colon: it is the text
                items.append(token[:-1])
            items.append(_Close(square=False))
        else:
            items.append(token)
    return ["(" if isinstance(item, _Bracket) and not item.closed else item for item in items]


def _weighed(items: Iterable[_Item]) -> Iterator[Piece]:
    """Each text with the product of the brackets around it, in one pass however deep they are."""
    products: dict[bool, list[float]] = {False: [1.0], True: [1.0]}  # round and square ones may overlap
    for item in items:
        if isinstance(item, _Bracket):
            stack = products[item.square]
            stack.append(_bounded(item.factor * (1.0 if item.absolute else stack[-1])))
        elif isinstance(item, _Close):
            products[item.square].pop()
        elif isinstance(item, Break):
            yield item
        else:
            yield Segment(item, _bounded(products[False][-1] * products[True][-1]))


def _bounded(weight: float) -> float:
    return max(-LARGEST_WEIGHT, min(LARGEST_WEIGHT, weight))


def _merged(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Neighbours of one weight joined; the space around BREAK belongs to BREAK, whatever brackets are between."""
    merged: list[Piece] = []
    texts: list[str] = []  # of the segment being joined
    for piece in pieces:
        last = merged[-1] if merged else None
        if isinstance(piece, Break):
            _close_segment(merged, texts)
            while merged and isinstance(merged[-1], Segment):
                text = merged[-1].text.rstrip()
                if text:
                    merged[-1] = Segment(text, merged[-1].weight)
                    break
                merged.pop()
            merged.append(piece)
        elif isinstance(last, Segment) and texts and last.weight == piece.weight:
            texts.append(piece.text)
        else:
            _close_segment(merged, texts)
            text = piece.text.lstrip() if merged and isinstance(merged[-1], Break) else piece.text
            if text:
                merged.append(Segment(text, piece.weight))
                texts.append(text)
    _close_segment(merged, texts)
    return tuple(merged)


def _close_segment(merged: list[Piece], texts: list[str]) -> None:
    if texts and isinstance(merged[-1], Segment):
        merged[-1] = Segment("".join(texts), merged[-1].weight)
    texts.clear()


# --- chunks


def chunks(pieces: Iterable[Piece], tokenize: Tokenize, whole: Mapping[int, int] = _NONE) -> tuple[Chunk, ...]:
    """At most 75 tokens each, at least one chunk. Cut at a comma if one is near the end.

    `whole`: tokens that begin a sequence of this length that is never cut, the vectors of one learned word.
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
            while current and len(current) + whole.get(token, 1) > CHUNK:
                cut = comma if 0 <= CHUNK - comma < COMMA_REACH and token not in commas else CHUNK
                done.append(tuple(current[:cut]))
                current, comma = current[cut:], -1
            current.append((token, piece.weight))
            if token in commas:
                comma = len(current)
    if current or not done:
        done.append(tuple(current))
    return tuple(done)


def neutral(text: str) -> str:
    """CLIP's own start and end marks, typed by a user, would end the prompt for the encoder: they are left out."""
    return _MARKS.sub(" ", text)
