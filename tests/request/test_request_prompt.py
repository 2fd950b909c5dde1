"""A1111's weights: what the field expects, and nothing a person can type is an error."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.request.prompt import CHUNK, Break, Segment, chunks, extract_loras, parse, render

SYNTAX = st.text(st.sampled_from("ab :,.1\\()[]BREAK\n<>|猫"), max_size=60)
ANY = st.text(st.characters(codec=None), max_size=80)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a cat", (Segment("a cat"),)),
        ("a (red) cat", (Segment("a "), Segment("red", 1.1), Segment(" cat"))),
        ("a [red] cat", (Segment("a "), Segment("red", 1 / 1.1), Segment(" cat"))),
        ("(red:1.3)", (Segment("red", 1.3),)),
        ("(red: .5 )", (Segment("red", 0.5),)),
        ("((red))", (Segment("red", 1.1 * 1.1),)),
        ("(a (b:2) c)", (Segment("a ", 1.1), Segment("b", 2 * 1.1), Segment(" c", 1.1))),
        (r"a \(red\) cat\\", (Segment("a (red) cat\\"),)),
        ("3:4 ratio", (Segment("3:4 ratio"),)),
        ("(never closed", (Segment("never closed", 1.1),)),
        ("stray) and ]", (Segment("stray) and ]"),)),
        ("time 3:1.5) end", (Segment("time 3:1.5) end"),)),
        ("a BREAK b", (Segment("a"), Break(), Segment("b"))),
        ("BREAKFAST", (Segment("BREAKFAST"),)),
        ("[cat:dog:0.5]", (Segment("cat:dog:0.5", 1 / 1.1),)),
        ("", ()),
    ],
)
def test_a_prompt_is_read_as_the_field_reads_it(text: str, pieces: tuple[object, ...]) -> None:
    assert parse(text) == pieces


@settings(deadline=None, derandomize=True, max_examples=1500)
@given(SYNTAX | ANY)
def test_nothing_is_lost_between_text_and_pieces(text: str) -> None:
    pieces = parse(text)
    assert parse(render(pieces)) == pieces


@settings(deadline=None, derandomize=True, max_examples=1500)
@given(SYNTAX | ANY)
def test_any_text_parses_with_finite_weights(text: str) -> None:
    for piece in parse(text):
        assert isinstance(piece, Break) or math.isfinite(piece.weight)


@settings(deadline=None, derandomize=True, max_examples=500)
@given(ANY)
def test_without_emphasis_the_text_is_taken_as_it_stands(text: str) -> None:
    assert parse(text, "none") == ((Segment(text),) if text else ())


def test_ten_thousand_brackets_are_read_with_a_bounded_weight() -> None:
    (piece,) = parse("(" * 10_000 + "x")
    assert isinstance(piece, Segment)
    assert piece.weight == 100.0


# --- chunks, with one token a word; 0 is the comma


def tokens(text: str) -> list[int]:
    return [0 if word == "," else 1 + len(word) for word in text.replace(",", " , ").split()]


@settings(deadline=None, derandomize=True, max_examples=500)
@given(SYNTAX)
def test_every_token_is_in_exactly_one_chunk_and_no_chunk_is_too_long(text: str) -> None:
    pieces = parse(text)
    made = chunks(pieces, tokens)
    wanted = [
        (token, piece.weight) for piece in pieces if isinstance(piece, Segment)
        for token in tokens(piece.text.replace("<|endoftext|>", " "))
    ]  # fmt: skip
    assert [pair for chunk in made for pair in chunk] == wanted
    assert all(len(chunk) <= CHUNK for chunk in made)
    assert made


def test_a_chunk_ends_at_a_comma_if_one_stands_shortly_before() -> None:
    words = ["x"] * 60 + [","] + ["x"] * 30
    assert [len(c) for c in chunks(parse(" ".join(words)), tokens)] == [61, 30]


def test_a_comma_too_far_back_does_not_shorten_a_chunk() -> None:
    words = ["x"] * 50 + [","] + ["x"] * 40
    assert [len(c) for c in chunks(parse(" ".join(words)), tokens)] == [75, 16]


def test_break_begins_a_new_chunk() -> None:
    assert [len(c) for c in chunks(parse("a b BREAK c"), tokens)] == [2, 1]


def test_an_empty_prompt_is_one_empty_chunk() -> None:
    assert chunks(parse(""), tokens) == ((),)


def test_lora_tags_are_taken_out_of_the_prompt() -> None:
    assert extract_loras("a cat <lora:ink:0.7> <lora:old>") == ("a cat", (("ink", 0.7), ("old", 1.0)))
    assert extract_loras("a < b") == ("a < b", ())
