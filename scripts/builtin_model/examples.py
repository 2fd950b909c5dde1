"""What the denoiser is shown: each picture with the code of what it means.

A code is the picture itself in few numbers: the main directions of its latents, as it looks on white when nothing is
left to chance. Beside these it marks what is said of the thing (a style, a colour, a ground, how many), always in the
same way, so that what one thing taught holds for the others. The text encoder learns to say codes, the denoiser to draw
from them; so neither has to know all the artwork.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from scripts.builtin_model.artwork import Artwork
from scripts.builtin_model.autoencoder import encoded, keep
from scripts.builtin_model.captions import STYLES, Meaning, alone
from scripts.builtin_model.pictures import COLOURED_GROUNDS, GROUNDS, HUES, PLACES, Look, any_look, picture, together

Pixels = np.ndarray[Any, Any]
AS_IT_IS = 0.6  # of the pictures of one meaning: the one with nothing left to chance
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
    """How many examples of each kind are drawn beforehand, and how often each kind is taken."""

    looks: int = 3  # of every picture, beside the artwork as it is
    coloured: int = 5000
    grounded: int = 5000
    pairs: int = 6000
    counts: int = 5000
    shares: tuple[float, ...] = (0.62, 0.1, 0.1, 0.1, 0.08)


EVERYTHING = Amounts()
EVERYDAY = Amounts(
    looks=6, coloured=4200, grounded=6000, pairs=8000, counts=1800, shares=(0.44, 0.11, 0.14, 0.17, 0.14)
)


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
    """`codes[meant[i]]` is what `latents[i]` means, and `meanings[meant[i]]` says it."""

    latents: Tensor
    meant: np.ndarray[Any, Any]
    codes: Tensor
    silent: Tensor  # the code of no words at all
    meanings: list[Meaning]
    chances: np.ndarray[Any, Any]
    basis: Basis


def examples(
    artwork: Artwork, autoencoder: AutoencoderKL, width: int, amounts: Amounts, seed: int, device: str, kept: Path,
    like: Examples | None = None,
) -> Examples:  # fmt: skip
    """Drawn and encoded once, then read from `kept`; in the codes of those that they are to be `like`."""
    if not kept.exists():
        keep(_made(artwork, autoencoder, amounts, seed, device), kept)
    state = torch.load(kept, weights_only=True)
    meanings = [Meaning(*row) for row in state["meanings"]]
    plain = alone(meanings)
    # a ground is marked only: the rest of the code is the thing's own
    looks = [plain[meaning.thing, meaning.style] if meaning.ground else row for row, meaning in enumerate(meanings)]
    canonical = state["canonical"][looks]
    single = torch.tensor([meaning.plain() for meaning in meanings])
    basis = _basis(canonical, single, width, seed) if like is None else like.basis
    return Examples(
        state["latents"], state["meant"].numpy(), basis.codes(canonical, meanings), basis.silence(), meanings,
        state["chances"].numpy(), basis,
    )  # fmt: skip


def _made(artwork: Artwork, autoencoder: AutoencoderKL, amounts: Amounts, seed: int, device: str) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    latents: list[Tensor] = []
    canonical: list[Tensor] = []
    meanings: list[tuple[Any, ...]] = []
    meant: list[int] = []
    chances: list[float] = []
    kinds = [
        _single(artwork, amounts, random), _coloured(artwork, amounts.coloured, random),
        _grounded(artwork, amounts.grounded, random), _pairs(artwork, amounts.pairs, random),
        _counts(artwork, amounts.counts, random),
    ]  # fmt: skip
    for kind, share in zip(kinds, amounts.shares, strict=True):
        before = len(meant)
        for rows in _in_batches(kind):
            # the first picture of each row is how it looks when nothing is left to chance
            shown = encoded(autoencoder, np.stack([seen for _, row in rows for seen in row]), device)
            start = 0
            for meaning, row in rows:
                canonical.append(shown[start])
                meanings.append(
                    (meaning.thing, meaning.style, meaning.hue, meaning.ground, meaning.count, meaning.beside)
                )
                meant += [len(meanings) - 1] * len(row)
                chances += [AS_IT_IS, *[(1 - AS_IT_IS) / (len(row) - 1)] * (len(row) - 1)] if len(row) > 1 else [1.0]
                start += len(row)
            latents.append(shown)
        total = sum(chances[before:])
        chances[before:] = [chance * share / total for chance in chances[before:]]
    return {
        "latents": torch.cat(latents), "canonical": torch.stack(canonical), "meanings": meanings,
        "meant": torch.tensor(meant), "chances": torch.tensor(chances, dtype=torch.float64) / sum(chances),
    }  # fmt: skip


Row = tuple[Meaning, list[Pixels]]


def _in_batches(rows: Iterator[Row], count: int = 64) -> Iterator[list[Row]]:
    held: list[Row] = []
    for row in rows:
        held.append(row)
        if len(held) == count:
            yield held
            held = []
    if held:
        yield held


def _single(artwork: Artwork, amounts: Amounts, random: np.random.Generator) -> Iterator[Row]:
    for style, every in artwork.pictures.items():
        for thing, rgba in every.items():
            looks = [any_look(random, sided=thing in artwork.sided) for _ in range(amounts.looks)]
            yield Meaning(thing, style), [picture(rgba, look) for look in (Look(), *looks)]


def _coloured(artwork: Artwork, count: int, random: np.random.Generator) -> Iterator[Row]:
    for _ in range(count):
        style, thing = artwork.any(random)
        hue = list(HUES)[random.integers(len(HUES))]
        rgba = artwork.pictures[style][thing]
        look = any_look(random, sided=thing in artwork.sided, hue=HUES[hue])
        yield Meaning(thing, style, hue=hue), [picture(rgba, Look(hue=HUES[hue])), picture(rgba, look)]


def _grounded(artwork: Artwork, count: int, random: np.random.Generator) -> Iterator[Row]:
    for _ in range(count):
        style, thing = artwork.any(random)
        ground = COLOURED_GROUNDS[random.integers(len(COLOURED_GROUNDS))]
        rgba = artwork.pictures[style][thing]
        look = any_look(random, sided=thing in artwork.sided, ground=GROUNDS[ground])
        yield Meaning(thing, style, ground=ground), [picture(rgba, Look(ground=GROUNDS[ground])), picture(rgba, look)]


def _pairs(artwork: Artwork, count: int, random: np.random.Generator) -> Iterator[Row]:
    for _ in range(count):
        style, left = artwork.any(random)
        right = list(artwork.pictures[style])[random.integers(len(artwork.pictures[style]))]
        if left != right:
            both = [artwork.pictures[style][thing] for thing in (left, right)]
            turned = [bool(random.random() < 0.5) and thing not in artwork.sided for thing in (left, right)]
            yield Meaning(left, style, beside=right), [together(both, (False, False)), together(both, turned)]


def _counts(artwork: Artwork, count: int, random: np.random.Generator) -> Iterator[Row]:
    for _ in range(count):
        style, thing = artwork.any(random)
        number = int(random.integers(2, 5))
        every = [artwork.pictures[style][thing]] * number
        turned = [bool(random.random() < 0.5) and thing not in artwork.sided] * number
        yield Meaning(thing, style, count=number), [together(every, [False] * number), together(every, turned)]


def _marks(meaning: Meaning) -> list[float]:
    said = {
        ("style", meaning.style), ("hue", meaning.hue), ("ground", meaning.ground), ("count", meaning.count),
        ("beside", None if meaning.beside is None else "another"),
    }  # fmt: skip
    return [strength if mark in said else 0.0 for mark, strength in MARKS.items()]


def _basis(canonical: Tensor, single: Tensor, width: int, seed: int) -> Basis:
    """Main directions, mostly of single things."""
    flat = canonical.float().flatten(1)
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
