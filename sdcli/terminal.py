"""Foreign text made safe to show, and the two consoles: results on stdout, messages on stderr."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import unicodedata
from typing import IO, TYPE_CHECKING, Any

from sdcli.errors import CannotWrite

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

    `first` begins the first line, `rest` (by default spaces of its width) those below.
    """
    import textwrap  # few commands print long texts

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


_CAUSES = {
    "ENOSPC": "the disk is full",
    "EDQUOT": "your disk quota is used up",
    "EROFS": "the file system is read-only",
    "EIO": "the disk reported an error",
    "EACCES": "no permission",
    "EPERM": "not permitted",
    "ENAMETOOLONG": "the name is too long for this file system",
    "EFBIG": "the file would be larger than allowed",
    "ENOTDIR": "part of the path is a file, not a folder",
    "EISDIR": "it is a folder",
    "ENOENT": "the folder is gone",
    "EMFILE": "too many files are open",
    "ENFILE": "too many files are open",
}


def cause(error: OSError) -> str:
    """Why a file could not be written, in words."""
    name = errno.errorcode.get(error.errno or 0, "")
    return _CAUSES.get(name) or show(error.strerror or error, 120)


class StdoutLost(CannotWrite):
    """Results could not be written. A reader that has closed the pipe (`| head`) is not such a loss."""


def put(*pieces: bytes) -> None:
    """Results, byte for byte, to stdout: all of them or, where memory is short, none."""
    content = b"".join(pieces)
    stream = sys.stdout
    if stream is None:
        raise StdoutLost("stdout is closed: results cannot be written to it", hint="the same command with > FILE")
    try:
        buffer = getattr(stream, "buffer", None)
        if buffer is None:  # a stand-in that takes text alone
            stream.write(content.decode("utf-8", "surrogateescape"))
        else:
            stream.flush()
            buffer.write(content)
        stream.flush()
    except (OSError, ValueError) as error:
        drop_stdout()
        if not _unread(error):
            raise lost(error) from None


def tell(text: str = "") -> None:
    """A line of results, in the characters the console can show."""
    stream = sys.stdout
    line = text if stream is None or speaks_unicode(stream) else plain(text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    put(line.encode(encoding, "backslashreplace") + b"\n")


def lost(error: OSError | ValueError) -> StdoutLost:
    because = cause(error) if isinstance(error, OSError) else show(error, 120)
    return StdoutLost(f"results could not be written to stdout: {because}", hint="the same command with > FILE")


def drop_stdout() -> None:
    """What is still on its way to stdout goes nowhere: otherwise Python reports it at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdout_left() -> StdoutLost | None:
    """Why what a command printed did not arrive, if it did not; the last thing that is done with stdout."""
    try:
        put()
    except StdoutLost as error:
        return error
    return None


def _unread(error: OSError | ValueError) -> bool:
    """A pipe whose reader has what it wanted; on Windows that is an invalid argument."""
    return isinstance(error, BrokenPipeError) or (os.name == "nt" and getattr(error, "errno", None) == errno.EINVAL)


def say(text: str = "", stream: IO[str] | None = None) -> None:
    """One line of messages, by default on stderr; a closed stream, or one of few characters, is not an error."""
    stream = stream if stream is not None else sys.stderr
    if stream is None:
        return
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


def counted(number: int, word: str) -> str:
    """1 step, 20 steps, 2 processes."""
    return f"{number} {word}{'' if number == 1 else 'es' if word.endswith('s') else 's'}"


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
