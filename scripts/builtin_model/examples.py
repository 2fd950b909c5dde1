"""What the denoiser is shown: each image with the code of what it means.

A code is the image itself in few numbers: the main directions of its latents, as it looks on white. Beside these it
marks what is said of the thing (a style, a colour, a ground, how many), always in the same way, so that what one thing
taught holds for the others. The text encoder learns to say codes, the denoiser to draw from them; so neither has to
know all the artwork.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from scripts.builtin_model.artwork import Artwork
from scripts.builtin_model.autoencoder import encoded, keep
from scripts.builtin_model.captions import STYLES, Meaning
from scripts.builtin_model.fields import matte
from scripts.builtin_model.images import (
    COLOURED_GROUNDS,
    GROUNDS,
    HUES,
    PLACES,
    Look,
    Pixels,
    grey,
    image,
    together,
)

EVENNESS = 0.5  # 0: directions count as much as they vary, 1: all the same
# What a code says beside the thing, each in a direction of its own, and how loud against the thing.
MARKS: dict[tuple[str, str | int], float] = {
    **{("style", style): 0.35 for style in STYLES},
    **{("hue", hue): 0.7 for hue in HUES},
    **{("ground", ground): 0.7 for ground in COLOURED_GROUNDS},
    **{("count", count): 0.9 for count in PLACES},
    ("beside", "another"): 0.9,
}


@dataclass(frozen=True)
class Amounts:
    """How many images of several things are drawn beforehand."""

    pairs: int = 6000
    counts: int = 5000


EVERYTHING = Amounts()
EVERYDAY = Amounts(pairs=20_000, counts=1800)


@dataclass(frozen=True)
class Basis:
    """From latents to codes: as wide as the text encoder's states, and of the length they have after its last norm."""

    mean: Tensor
    directions: Tensor  # [width - 2 - marks, values of a latent]
    turn: Tensor  # [width, width - 1]: away from the all-ones direction, which that norm removes
    still: float  # the part of every code that says nothing, so that weak and strong ones differ in length

    def codes(self, latents: Tensor, meanings: Sequence[Meaning]) -> Tensor:
        said = (latents.float().flatten(1) - self.mean) @ self.directions.T
        marks = self.still * torch.tensor([_marks(meaning) for meaning in meanings])
        return self._whole(torch.cat([said, marks], dim=1))

    def silence(self) -> Tensor:
        return self._whole(torch.zeros(1, len(self.directions) + len(MARKS)))[0]

    def _whole(self, said: Tensor) -> Tensor:
        whole = torch.cat([said, torch.full((len(said), 1), self.still)], dim=1)
        whole = torch.nn.functional.normalize(whole, dim=1) * self.turn.shape[0] ** 0.5
        return whole @ self.turn.T


@dataclass(frozen=True)
class Examples:
    """`latents[i]` is `meanings[i]` as the artwork is, on white; colours and grounds are said of these and laid on."""

    latents: Tensor
    mattes: Tensor
    meanings: list[Meaning]
    grey: list[bool]
    basis: Basis

    @cached_property
    def rows(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {"plain": [], "beside": [], "count": []}
        for row, meaning in enumerate(self.meanings):
            found[meaning.kind()].append(row)
        return found | {"hue": found["plain"], "ground": found["plain"]}

    @cached_property
    def plain(self) -> dict[tuple[int, str | None], int]:
        """(thing, style): which row is that thing alone."""
        return {(self.meanings[row].thing, self.meanings[row].style): row for row in self.rows["plain"]}

    def any(self, random: np.random.Generator, shares: Mapping[str, float]) -> tuple[int, Meaning]:
        """A row, and what may be said of it."""
        kind = str(random.choice(list(shares), p=list(shares.values())))
        row = self.rows[kind][random.integers(len(self.rows[kind]))]
        hue = list(HUES)[random.integers(len(HUES))] if kind == "hue" else None
        ground = list(GROUNDS)[random.integers(len(GROUNDS))] if kind == "ground" else None
        return row, replace(self.meanings[row], hue=hue, ground=ground)

    def codes(self, rows: Sequence[int], meanings: Sequence[Meaning]) -> Tensor:
        return self.basis.codes(self.latents[list(rows)], meanings)


def examples(
    artwork: Artwork, autoencoder: AutoencoderKL, width: int, amounts: Amounts, seed: int, device: str, kept: Path,
    like: Examples | None = None,
) -> Examples:  # fmt: skip
    """Drawn and encoded once, then read from `kept`; in the codes of those that they are to be `like`."""
    if not kept.exists():
        keep(_made(artwork, autoencoder, amounts, seed, device), kept)
    state = torch.load(kept, weights_only=True)
    meanings = [Meaning(thing, style, count=count, beside=beside) for thing, style, count, beside in state["meanings"]]
    single = torch.tensor([meaning.plain() for meaning in meanings])
    basis = _basis(state["latents"], single, width, seed) if like is None else like.basis
    return Examples(state["latents"], state["mattes"], meanings, state["grey"], basis)


def _made(artwork: Artwork, autoencoder: AutoencoderKL, amounts: Amounts, seed: int, device: str) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    latents: list[Tensor] = []
    mattes: list[Tensor] = []
    meanings: list[tuple[Any, ...]] = []
    greys: list[bool] = []
    for kind in (_single(artwork), _pairs(artwork, amounts.pairs, random), _counts(artwork, amounts.counts, random)):
        for rows in _in_batches(kind):
            drawn = np.stack([rgba for _, rgba in rows])
            shown = encoded(autoencoder, np.stack([image(rgba, Look()) for rgba in drawn]), device)
            latents.append(shown)
            mattes.append(matte(drawn[..., 3], shown.shape[-1]).half())
            meanings += [(meaning.thing, meaning.style, meaning.count, meaning.beside) for meaning, _ in rows]
            greys += [grey(rgba) for rgba in drawn]
    return {"latents": torch.cat(latents), "mattes": torch.cat(mattes), "meanings": meanings, "grey": greys}


Row = tuple[Meaning, Pixels]


def _in_batches(rows: Iterator[Row], count: int = 64) -> Iterator[list[Row]]:
    held: list[Row] = []
    for row in rows:
        held.append(row)
        if len(held) == count:
            yield held
            held = []
    if held:
        yield held


def _single(artwork: Artwork) -> Iterator[Row]:
    for style, every in artwork.images.items():
        for thing, rgba in every.items():
            yield Meaning(thing, style), rgba


def _pairs(artwork: Artwork, count: int, random: np.random.Generator) -> Iterator[Row]:
    for _ in range(count):
        style, left = artwork.any(random)
        right = list(artwork.images[style])[random.integers(len(artwork.images[style]))]
        if left != right:
            yield (
                Meaning(left, style, beside=right),
                together([artwork.images[style][thing] for thing in (left, right)]),
            )


def _counts(artwork: Artwork, count: int, random: np.random.Generator) -> Iterator[Row]:
    """All there are, or as many of them."""
    every = [(style, thing, number) for style, found in artwork.images.items() for thing in found for number in PLACES]
    for index in random.permutation(len(every))[:count]:
        style, thing, number = every[index]
        yield Meaning(thing, style, count=number), together([artwork.images[style][thing]] * number)


def _marks(meaning: Meaning) -> list[float]:
    said = {
        ("style", meaning.style), ("hue", meaning.hue), ("ground", meaning.ground), ("count", meaning.count),
        ("beside", None if meaning.beside is None else "another"),
    }  # fmt: skip
    marks = [strength if mark in said else 0.0 for mark, strength in MARKS.items()]
    if meaning.ground == "white":  # the opposite of black: no direction of its own
        black = ("ground", "black")
        marks[list(MARKS).index(black)] = -MARKS[black]
    return marks


def _basis(latents: Tensor, single: Tensor, width: int, seed: int) -> Basis:
    """Main directions, mostly of single things."""
    flat = latents.float().flatten(1)
    mean = flat[single].mean(0)
    counted = (flat - mean) * torch.where(single, 1.0, 0.45)[:, None]
    _, strength, directions = torch.linalg.svd(counted, full_matrices=False)
    count = width - 2 - len(MARKS)
    rows = directions[:count] / (strength[:count, None] / strength[0]) ** EVENNESS
    length = ((flat[single] - mean) @ rows.T).square().sum(1).mean().sqrt().item()
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(width, width, generator=generator)
    start[:, 0] = 1
    turn = torch.linalg.qr(start).Q[:, 1:]
    return Basis(mean, rows, turn, length)
