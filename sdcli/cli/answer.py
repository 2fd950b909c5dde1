"""How commands answer: one JSON object on stdout, or an error as two lines on stderr. The one print site of errors."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from sdcli.cli import line
from sdcli.cli.ending import over
from sdcli.errors import Bug, Interrupted, SdcliError, Terminated
from sdcli.terminal import StdoutLost, folded, put, say, show, width


class Answered(Exception):
    """The command has printed everything itself, its error too; only the exit code is left."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def print_json(value: Any) -> None:
    """Exactly one object and a newline on stdout, in UTF-8 whatever the console's encoding."""
    over()
    put((json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace"))


def end(error: SdcliError, words: Sequence[str]) -> int:
    """Print the error as requested, and return its exit code."""
    over()
    with contextlib.suppress(MemoryError, ImportError):  # a better hint is not worth another error
        error.hint = line.corrected(error.hint, words)
    try:
        if "--json" in words and not isinstance(error, StdoutLost):
            print_json({"error": error.to_json()})
        else:
            say_error(error)
    except StdoutLost:
        say_error(error)
    if "--debug" in words:
        trace(error)
    return error.code


def bug_of(failure: Exception) -> Bug:
    """An unforeseen failure, as an error."""
    bug = Bug(f"{type(failure).__name__}: {show(failure)}")
    bug.__cause__ = failure
    return bug


def trace(error: SdcliError) -> None:
    traceback.print_exception(error.__cause__ or error.__context__ or error, file=sys.stderr)


def say_note(message: str) -> None:
    """A warning about what was planned, folded to the terminal."""
    for text in folded(show(message), width(sys.stderr), first="note: "):
        say(text)


def say_error(error: SdcliError) -> None:
    """What happened, what was kept, and a line to paste."""
    if isinstance(error, (Interrupted, Terminated)):
        say(error.message)
    else:
        say(f"error: {error.message}")
    if error.done:
        say(f" kept: {error.done}")
    for number, text in enumerate(text for text in error.hint.splitlines() if text):
        say(("  try: " if number == 0 else "       ") + text)
