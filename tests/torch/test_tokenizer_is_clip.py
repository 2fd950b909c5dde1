"""The torch-free tokenizer gives CLIPTokenizer's ids, whole and in weighted pieces."""

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli import data
from sdcli.request import prompt, tokenizer

WORDS = st.text(st.sampled_from("aBc xyz,.!'s0123éñ猫😀-_/()\n\t"), max_size=60)


@functools.cache
def clip() -> Any:
    from transformers import CLIPTokenizer

    folder = data.component_folder("clip")
    return CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=77)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(WORDS | st.text(max_size=40))
def test_ids_equal_those_of_transformers(text: str) -> None:
    text = prompt.neutral(text)
    assert tokenizer.tokenize()(text) == clip()(text)["input_ids"][1:-1]


@pytest.mark.parametrize("text", ["a (red:1.2) cat, [old] photo", "(((masterpiece))), best quality", r"a \(real\) dog"])
def test_weights_do_not_change_the_ids(text: str) -> None:
    pieces = prompt.parse(text)
    plain = "".join(piece.text for piece in pieces if isinstance(piece, prompt.Segment))
    (chunk,) = prompt.chunks(pieces, tokenizer.tokenize())
    assert [token for token, _ in chunk] == clip()(plain)["input_ids"][1:-1]


def test_clips_own_marks_in_a_prompt_are_no_special_tokens() -> None:
    (chunk,) = tokenizer.chunks("a cat<|endoftext|>dog")
    assert 49_407 not in [token for token, _ in chunk]
