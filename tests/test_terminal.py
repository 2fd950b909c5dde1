"""Foreign text is shown without power over the terminal."""

import io
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli import terminal

HOSTILE = st.text(st.characters(codec=None), max_size=60)


@settings(deadline=None, derandomize=True, max_examples=2000)
@given(HOSTILE)
def test_nothing_shown_can_move_the_cursor_or_reorder_text(text: str) -> None:
    shown = terminal.show(text)
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in shown)
    assert terminal.cells(shown) <= terminal.LONGEST + 1
    shown.encode("utf-8")


def test_markup_and_brackets_are_shown_as_they_are() -> None:
    assert terminal.show("a [cat:dog:0.5] b [/red] :smile:") == "a [cat:dog:0.5] b [/red] :smile:"


def test_an_escape_sequence_is_shown_as_codes() -> None:
    assert terminal.show("\x1b]0;owned\x07") == "\\x1b]0;owned\\x07"
    assert terminal.show("\u202egnp.exe") == "\\u202egnp.exe"


def test_long_text_is_cut_by_cells_not_characters() -> None:
    assert terminal.show("猫" * 400) == "猫" * 250 + "…"
    assert terminal.fit("一只猫在睡觉", 7) == "一只猫…"


@settings(deadline=None, derandomize=True, max_examples=500)
@given(HOSTILE)
def test_a_line_can_be_said_on_an_ascii_console(text: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    terminal.say(terminal.show(text), stream)
    stream.flush()
    assert raw.getvalue().endswith(b"\n")
    assert raw.getvalue().isascii()


def test_a_closed_stream_is_no_error() -> None:
    stream = io.StringIO()
    stream.close()
    terminal.say("hello", stream)


def test_sizes_and_times_read_like_the_screens() -> None:
    assert terminal.size_text(2.31 * 2**30) == "2.31 GiB"
    assert terminal.size_text(65 * 2**20) == "65 MiB"
    assert terminal.disk_text(2_130_000_000) == "2.13 GB"
    assert [terminal.seconds_text(s) for s in (0.048, 0.4, 29, 840)] == ["48 ms", "0.4 s", "29 s", "14 min"]
