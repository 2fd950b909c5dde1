"""The shipped model draws what the prompt says; a broken one cannot ship."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import evaluate_builtin
from scripts.builtin_model import likeness

REFERENCES = Path(__file__).parent / "emoji_references.png"
TEN = ("cat", "elephant", "butterfly", "sunflower", "red apple", "pizza", "rocket", "umbrella", "guitar", "ghost")
GROUNDS = ("white", "green") * 2


def tiles() -> tuple[list[str], likeness.References]:
    with Image.open(REFERENCES) as image:
        names = json.loads(image.text["names"])
        whole = np.asarray(image.convert("RGB"))
    side = likeness.SIDE
    columns = whole.shape[1] // side
    shown = [(n, whole[n // columns * side :, n % columns * side :][:side, :side]) for n in range(len(names))]
    return names, likeness.references(shown)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """The ten things, then a cat on each background: one run, for each loads the model anew."""
    prompts = [f"a {name}" for name in TEN] + [f"a cat on a {ground} background" for ground in GROUNDS]
    return evaluate_builtin.draw("builtin", prompts)


@pytest.fixture(scope="module")
def drawn(images: list[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(TEN, images[: len(TEN)], strict=True))


def test_ten_names_are_drawn_so_that_the_nearest_of_two_hundred_references_has_that_name(
    drawn: dict[str, np.ndarray],
) -> None:
    names, references = tiles()
    assert len(names) == 200
    seen = {name: [names[thing] for thing in references.nearest(image)] for name, image in drawn.items()}
    assert {name: found for name, found in seen.items() if name not in found} == {}
    assert sum(found[0] == name for name, found in seen.items()) >= 9


def test_the_measure_would_notice_noise(drawn: dict[str, np.ndarray]) -> None:
    names, references = tiles()
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, drawn["cat"].shape, dtype=np.uint8) for _ in TEN]
    right = [names[references.nearest(one)[0]] == name for name, one in zip(TEN, noise, strict=True)]
    assert sum(right) <= 1


def test_another_seed_is_to_the_eye_another_image_of_the_same_thing_and_the_same_seed_the_same(
    drawn: dict[str, np.ndarray],
) -> None:
    names, references = tiles()
    five = TEN[:5]
    # The cat with its own seed, then each of the five with the seed of the next one.
    again, *others = evaluate_builtin.draw("builtin", [f"a {name}" for name in (five[0], *five)])
    assert np.array_equal(again, drawn["cat"])
    far = [evaluate_builtin.difference(drawn[name], other) for name, other in zip(five, others, strict=True)]
    assert sum(difference >= evaluate_builtin.VISIBLE for difference in far) >= 4
    found = zip(five, others, strict=True)
    assert all(name in [names[thing] for thing in references.nearest(other)] for name, other in found)


def test_a_background_in_the_prompt_is_nearer_to_that_than_to_any_other_with_every_seed(
    images: list[np.ndarray],
) -> None:
    assert tuple(evaluate_builtin.ground_of(one) for one in images[len(TEN) :]) == GROUNDS
