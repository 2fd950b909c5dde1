"""Foreign text made safe to show, and the two consoles: results on stdout, talk on stderr."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

LONGEST = 500  # cells of foreign text shown at most


def show(text: object, limit: int = LONGEST) -> str:
    """Any text from outside (prompt, file name, metadata, exception) without power over the terminal.

    Control characters, escapes, bidi overrides, zero-width marks and lone surrogates become visible codes.
    """
    text = str(text)
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    used = 0
    for character in text:
        piece = character if _harmless(character) else _visible(character)
        used += cells(piece)
        if used > limit:
            return "".join(shown) + "…"
        shown.append(piece)
    return "".join(shown)


def _harmless(character: str) -> bool:
    if character == " " or character.isalnum():
        return True
    category = unicodedata.category(character)
    return category not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _visible(character: str) -> str:
    number = ord(character)
    if character == "\n":
        return "\\n"
    if character == "\t":
        return "\\t"
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def cells(text: str) -> int:
    """Columns the text takes: wide characters count two, combining marks none."""
    if text.isascii():
        return len(text)
    total = 0
    for character in text:
        if unicodedata.combining(character):
            continue
        total += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return total


def fit(text: str, width: int) -> str:
    """`text` cut to `width` cells with an ellipsis; never padded."""
    if cells(text) <= width:
        return text
    kept: list[str] = []
    used = 0
    for character in text:
        used += cells(character)
        if used > width - 1:
            break
        kept.append(character)
    return "".join(kept) + "…"


def folded(text: str, width: int, first: str = "", rest: str | None = None) -> list[str]:
    """`text` in lines of at most `width`, broken between words only: what is to be pasted stays whole.

    `first` begins the first line, `rest` (its width in spaces unless told) those below.
    """
    import textwrap  # few commands talk at length

    below = " " * cells(first) if rest is None else rest
    return textwrap.wrap(
        text, max(20, width), initial_indent=first, subsequent_indent=below, break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]  # fmt: skip


def in_columns(label: str, text: str, room: int, width: int) -> list[str]:
    """`text` beside its label, `room` columns in; below it where too little would be left beside it."""
    if width - room >= 24:
        return folded(text, width, label + " " * (room - cells(label)))
    return [label.rstrip(), *folded(text, width, "    ")]


def quoted(word: str) -> str:
    """As this system's shell takes it; in double quotes where that is enough, which every shell understands."""
    if re.fullmatch(r"(~/)?[\w@%+=:,./-]+", word, re.ASCII):
        return word
    if not set(word) & set('"\\$`!'):
        return f'"{word}"'
    if os.name == "nt":
        import subprocess

        return subprocess.list2cmdline([word])
    import shlex

    return shlex.quote(word)


def speaks_unicode(stream: IO[str]) -> bool:
    encoding = getattr(stream, "encoding", None) or "ascii"
    try:
        "━▸·…×–✓✗█".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


_PLAIN = str.maketrans(
    {
        "…": "...", "×": "x", "·": "-", "–": "-", "—": "-", "━": "=", "╸": "-", "▸": ">", "✓": "ok", "✗": "x",
        "█": "#", "▌": "=", "▊": "#", "≥": ">=", "≤": "<=", "±": "+-", "²": "2", "³": "3", "≈": "~", "→": "->",
        "▲": "^", "▼": "v", "▶": ">", "├": "|", "─": "-", "│": "|", "╰": "`", "╯": "'", "“": '"', "”": '"', "’": "'",
    }
)  # fmt: skip


def plain(text: str) -> str:
    """The same line for a console that cannot encode it."""
    return text.translate(_PLAIN).encode("ascii", "backslashreplace").decode("ascii")


def is_terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def width(stream: IO[str] | None = None) -> int:
    """Columns to draw in: COLUMNS, the terminal's own, else 80."""
    named = os.environ.get("COLUMNS", "")
    if named.isdigit() and int(named) > 0:
        return int(named)
    try:
        return os.get_terminal_size((stream or sys.stderr).fileno()).columns or 80
    except (AttributeError, OSError, ValueError):
        return 80


def say(text: str = "", stream: IO[str] | None = None) -> None:
    """One line of talk (stderr unless told); a closed or narrow-minded stream is not an error."""
    stream = stream if stream is not None else sys.stderr
    line = text if speaks_unicode(stream) else plain(text)
    try:
        stream.write(line + "\n")
        stream.flush()
    except UnicodeEncodeError:
        stream.write(plain(line) + "\n")
    except (BrokenPipeError, ValueError, OSError):
        pass


def colour(stream: IO[str]) -> bool:
    """NO_COLOR and FORCE_COLOR as agreed (no-color.org), else only on a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def console(stream: IO[str] | None = None, **options: Any) -> Console:
    """A rich console that never reads markup, emoji codes or highlights out of the text given to it."""
    from rich.console import Console

    return Console(file=stream or sys.stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, **options)


def size_text(count: int | float) -> str:
    """Bytes in the units of memory tools: 2.31 GiB, 65 MiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB" if value < 10 else f"{value:.1f} GiB"


def disk_text(count: int | float) -> str:
    """Bytes in the units disks and downloads are sold in: 2.13 GB, 167 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.2f} GB" if value < 100 else f"{value:.0f} GB"


def seconds_text(seconds: float) -> str:
    """48 ms, 0.4 s, 29 s, 14 min, 3.2 h."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 5970:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
