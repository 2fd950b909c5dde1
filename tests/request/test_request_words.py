"""Words that a model does not know: only words count, however they are weighed, joined or written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.request.words import unknown

KNOWN = frozenset(
    {"a", "cat", "red", "t-shirt", "shirt", "albero", "caffè", "and", "of", "dog", "一", "只", "猫", "红色"}
)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a red cat", ()),
        ("A Red CAT, cat!", ()),
        ("a xylophone", ("xylophone",)),
        ("Xylophone and xylophone and zither", ("xylophone", "zither")),
        ("a (red:1.3) (((cat))) [of] BREAK a dog", ()),
        ("a (xylo:1.3)phone", ("xylophone",)),
        ("cat BREAK zither", ("zither",)),
        ("a t-shirt, a red-shirt, a red-zither", ("zither",)),
        ("the cat's dog, a cat’s dog, don't", ("the",)),
        ("l'albero, un’albero, dell'ornitorinco", ("ornitorinco",)),
        ("3 cats in 4k, 8 x cat", ("cats", "in")),
        ("un caffe\u0300", ("un",)),
        ("一只猫", ()),
        ("一只红色的木琴, red猫cat", ("的木琴",)),
        ("木琴和猫", ("木琴和",)),
        ("一只木琴猫木琴", ("木琴",)),
        ("a cat 😀 <|endoftext|> -- ... 123 _", ()),
        ("", ()),
    ],
)
def test_only_words_that_are_not_in_the_list_are_found(text: str, left: tuple[str, ...]) -> None:
    assert unknown(text, KNOWN) == left


def test_without_emphasis_brackets_are_text_but_not_words() -> None:
    assert unknown("a (red:1.3) BREAK cat", KNOWN, "none") == ("break",)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.sampled_from([*sorted(KNOWN), "zither", "木琴", "(", ")", ":1.2)", "[", "]", " ", ", ", "BREAK"])))
def test_any_text_is_answered_and_known_words_are_never_named(parts: list[str]) -> None:
    strange = unknown(" ".join(parts), KNOWN)
    assert not set(strange) & KNOWN
    assert set(strange) == {part for part in parts if part in ("zither", "木琴")}


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text(max_size=60))
def test_what_is_named_is_a_word(text: str) -> None:
    for word in unknown(text, KNOWN):
        assert word and not any(map(str.isspace, word))
