"""A1111's weights: what the field expects, and nothing a person can type is an error."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.request.prompt import CHUNK, Break, Segment, chunks, neutral, parse
from sdcli.request.tags import extract_loras, of_other_programs

WORDS = [
    "a",
    "b",
    " ",
    ":",
    ":1.5)",
    ",",
    "\\",
    "(",
    "(",
    ")",
    "[",
    "]",
    "BREAK",
    "BRE",
    "AK",
    "\n",
    "<|endoftext|>",
    "猫",
    ".5",
]
SYNTAX = st.lists(st.sampled_from(WORDS), max_size=40).map("".join)
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


def render(pieces: tuple[Segment | Break, ...]) -> str:
    """A1111's text that parses into the same pieces."""
    words: list[str] = []
    for piece in pieces:
        if isinstance(piece, Break):
            words.append(" BREAK ")
            continue
        escaped = re.sub(r"([()\[\]\\])", r"\\\1", piece.text)
        escaped = re.sub(r"\bBREAK\b", "BRE(AK:1)", escaped)  # the word itself, as text
        words.append(escaped if piece.weight == 1.0 else f"({escaped}:{_number(piece.weight)})")
    return "".join(words)


def _number(weight: float) -> str:
    """All its digits, never as 1e-05."""
    text = repr(weight)
    if "e" not in text:
        return text
    from decimal import Decimal

    return format(Decimal(text), "f")


@settings(deadline=None, derandomize=True, max_examples=1500)
@given(SYNTAX | ANY)
def test_nothing_is_lost_between_text_and_pieces(text: str) -> None:
    pieces = parse(text)
    assert parse(render(pieces)) == pieces


@settings(deadline=None, derandomize=True, max_examples=1500)
@given(SYNTAX | ANY, st.sampled_from(["a1111", "comfy", "none"]))
def test_any_text_parses_with_weights_within_bounds(text: str, emphasis: str) -> None:
    for piece in parse(text, emphasis):
        assert isinstance(piece, Break) or (math.isfinite(piece.weight) and abs(piece.weight) <= 100 and piece.text)


def slowly(text: str) -> list[tuple[str, float]]:
    """A1111's rule as documented: a closing bracket multiplies everything since its opening one. Letter by letter."""
    letters: list[list[object]] = []
    open_round: list[int] = []
    open_square: list[int] = []

    def multiply(start: int, factor: float) -> None:
        for letter in letters[start:]:
            letter[1] = letter[1] * factor  # type: ignore[operator]

    at = 0
    while at < len(text):
        weight = re.match(r":([0-9.]+)\)", text[at:]) if open_round else None
        if text[at] == "\\" and text[at + 1 : at + 2] in ("(", ")", "[", "]", "\\"):
            letters.append([text[at + 1], 1.0])
            at += 1
        elif weight:
            multiply(open_round.pop(), float(weight[1]))
            at += len(weight[0]) - 1
        elif text[at] in "([":
            (open_round if text[at] == "(" else open_square).append(len(letters))
        elif text[at] == ")" and open_round:
            multiply(open_round.pop(), 1.1)
        elif text[at] == "]" and open_square:
            multiply(open_square.pop(), 1 / 1.1)
        else:
            letters.append([text[at], 1.0])
        at += 1
    for start in open_round:
        multiply(start, 1.1)
    for start in open_square:
        multiply(start, 1 / 1.1)
    return [(str(letter), float(weight)) for letter, weight in letters]  # type: ignore[arg-type]


@settings(deadline=None, derandomize=True, max_examples=1500)
@given(st.lists(st.sampled_from([word for word in WORDS if word not in ("BREAK", "BRE", "AK", ".5")]), max_size=25))
def test_weights_are_those_of_the_rule_applied_letter_by_letter(words: list[str]) -> None:
    text = "".join(words)
    expected = slowly(text)
    got = [(letter, p.weight) for p in parse(text) if isinstance(p, Segment) for letter in p.text]
    assert [letter for letter, _ in got] == [letter for letter, _ in expected]
    assert [weight for _, weight in got] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a (red) cat", (Segment("a "), Segment("red", 1.1), Segment(" cat"))),
        ("a [red] cat", (Segment("a [red] cat"),)),
        ("(a (b:2) c:1.5)", (Segment("a ", 1.5), Segment("b", 2.0), Segment(" c", 1.5))),
        ("((b:2))", (Segment("b", 2.0),)),
        ("((b):2)", (Segment("b", 2 * 1.1),)),
        ("(never closed", (Segment("(never closed"),)),
        ("((a) b", (Segment("("), Segment("a", 1.1), Segment(" b"))),
        ("stray)", (Segment("stray)"),)),
        (r"\(a\) \\ \[", (Segment("(a) \\\\ \\["),)),
        ("a BREAK b", (Segment("a BREAK b"),)),
        ("(:1.3)", (Segment(":1.3", 1.1),)),
        ("(a:b)", (Segment("a:b", 1.1),)),
    ],
)
def test_comfy_has_round_brackets_only_and_a_number_wins(text: str, pieces: tuple[object, ...]) -> None:
    assert parse(text, "comfy") == pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("(a BREAK b)", (Segment("a", 1.1), Break(), Segment("b", 1.1))),
        ("a ( )BREAK[ ] b", (Segment("a"), Break(), Segment("b"))),
        ("BREAK BREAK", (Break(), Break())),
        ("éBREAK BREAKé", (Segment("éBREAK BREAKé"),)),
        ("break", (Segment("break"),)),
        ("BRE(AK:1)", (Segment("BREAK"),)),
    ],
)
def test_break_is_a_word_in_capitals_and_takes_the_space_around_it(text: str, pieces: tuple[object, ...]) -> None:
    assert parse(text) == pieces


@pytest.mark.parametrize("emphasis", ["a1111", "comfy"])
def test_a_hundred_thousand_nested_brackets_are_read_in_one_pass(emphasis: str) -> None:
    text = "(a" * 100_000 + ":1.01)" * 100_000
    assert "".join(p.text for p in parse(text, emphasis) if isinstance(p, Segment)) == "a" * 100_000
    assert len(parse("[b" * 100_000, emphasis)) <= 100_000


def test_the_smallest_weight_survives_being_written_out() -> None:
    pieces = parse("[" * 500 + "x")
    assert parse(render(pieces)) == pieces


@settings(deadline=None, derandomize=True, max_examples=500)
@given(ANY)
def test_without_emphasis_the_text_is_taken_as_it_is(text: str) -> None:
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
    cut = chunks(pieces, tokens)
    expected = [
        (token, piece.weight) for piece in pieces if isinstance(piece, Segment)
        for token in tokens(neutral(piece.text))
    ]  # fmt: skip
    assert [pair for chunk in cut for pair in chunk] == expected
    assert all(len(chunk) <= CHUNK for chunk in cut)
    assert cut


def test_a_comma_counts_within_the_last_twenty_tokens_only() -> None:
    def lengths(place: int) -> list[int]:
        words = ["x"] * place + [","] + ["x"] * (80 - place)
        return [len(chunk) for chunk in chunks(parse(" ".join(words)), tokens)]

    assert lengths(54) == [75, 6]
    assert lengths(55) == [56, 25]
    assert lengths(74) == [75, 6]
    assert lengths(75) == [75, 6]


def test_breaks_alone_make_empty_chunks() -> None:
    assert [len(c) for c in chunks(parse("BREAK a BREAK BREAK b BREAK"), tokens)] == [0, 1, 0, 1]


def test_a_learned_word_is_kept_whole_even_when_longer_than_a_chunk() -> None:
    def learned(text: str) -> list[int]:
        return [99, *[98] * 9] if text == "word" else [0] if text == "," else [1] * len(text.split())

    pieces = (Segment("x " * 70), Segment("word", 1.2), Segment("y"))
    assert [len(c) for c in chunks(pieces, learned, {99: 10})] == [70, 11]
    assert [len(c) for c in chunks((Segment("word"),), learned, {99: 80})] == [10]


def test_a_chunk_ends_at_a_comma_if_one_is_near_its_end() -> None:
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


# --- what other programs read


@pytest.mark.parametrize(
    ("text", "snippets"),
    [
        ("a [cat:dog:0.5] on a mat", ("[cat:dog:0.5]",)),
        ("a [cat:10] and [ :dog: .5 ]", ("[cat:10]", "[ :dog: .5 ]")),
        ("[cow|horse] in a field", ("[cow|horse]",)),
        ("a ${colour=red} cat, {red|blue} dog", ("${colour=red}",)),
        ("a cat AND a dog", ("AND",)),
        ("[(cat:1.2):dog:0.5]", ("[(cat:1.2):dog:0.5]",)),
        ("a [cat], (a dog:1.2), ((x)), band, sand and and", ()),
        (r"a \[cat:dog:0.5\] BREAK a_b __ {x}", ()),
        ("12:30 o'clock [a: b]", ()),
    ],
)
def test_syntax_of_other_programs_is_found(text: str, snippets: tuple[str, ...]) -> None:
    assert of_other_programs(text) == snippets
