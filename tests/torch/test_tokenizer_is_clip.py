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
    assert tokenizer.vocabulary().tokenize(text) == clip()(text)["input_ids"][1:-1]


@pytest.mark.parametrize("text", ["a (red:1.2) cat, [old] photo", "(((masterpiece))), best quality", r"a \(real\) dog"])
def test_weights_do_not_change_the_ids(text: str) -> None:
    pieces = prompt.parse(text)
    plain = "".join(piece.text for piece in pieces if isinstance(piece, prompt.Segment))
    (chunk,) = prompt.chunks(pieces, tokenizer.vocabulary().tokenize)
    assert [token for token, _ in chunk] == clip()(plain)["input_ids"][1:-1]


def padded(chunk: prompt.Chunk) -> list[int]:
    ids = [49_406, *(token for token, _ in chunk), 49_407]
    return ids + [49_407] * (77 - len(ids))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(st.sampled_from(["cat", "Red", "1girl,", "it's", "éclair", "猫", "-", "(8k)", "😀!"]), max_size=15))
def test_words_weighed_one_by_one_give_the_chunk_of_the_plain_prompt(words: list[str]) -> None:
    plain = " ".join(words)
    weighed = " ".join(f"({word}:1.{number % 4})" for number, word in enumerate(words)).replace("((8k)", r"(\(8k\)")
    (chunk,) = tokenizer.chunks(weighed)
    reference = clip()(plain, padding="max_length", max_length=77)["input_ids"]
    assert padded(chunk) == reference
    (whole,) = tokenizer.chunks(plain, "none")
    assert padded(whole) == reference


MARKS = [
    "<|endoftext|>",
    "<|startoftext|>",
    "<|EndOfText|>",
    "<|",
    "|>",
    "endoftext",
    "startoftext",
    "<",
    "|",
    "(",
    ")",
    "\\",
    " ",
]


@settings(deadline=None, derandomize=True, max_examples=500)
@given(st.lists(st.sampled_from(MARKS), max_size=12).map("".join), st.sampled_from(["a1111", "comfy", "none"]))
def test_no_text_becomes_a_special_token(text: str, emphasis: str) -> None:
    for chunk in tokenizer.chunks(text, emphasis):
        assert not {token for token, _ in chunk} & {49_406, 49_407}


def test_clips_own_marks_in_a_prompt_are_not_special_tokens() -> None:
    (chunk,) = tokenizer.chunks("a cat<|endoftext|>dog")
    assert 49_407 not in [token for token, _ in chunk]


def test_a_library_that_ran_out_of_memory_is_not_taken_for_a_damaged_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers.models import BPE

    def no_memory(*_: object, **__: object) -> None:
        raise Exception("Error while reading BPE files: out of memory")

    monkeypatch.setattr(BPE, "from_file", no_memory)
    with pytest.raises(MemoryError):
        tokenizer.vocabulary.__wrapped__()
