"""`python -m sdcli`, and the `sdcli` script: the first thing is that no signal ends in a traceback."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # what is imported before signals are heeded is interrupted with a traceback
    from typing import Any, NoReturn

_ENDINGS = {"SIGINT": (130, b"interrupted"), "SIGTERM": (143, b"terminated"), "SIGHUP": (143, b"terminated")}


def run() -> NoReturn:
    _occupy()
    for name, (code, word) in _ENDINGS.items():
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leaving(code, word))
    from sdcli.cli.main import run

    run()


def _occupy() -> None:
    """The number of a closed stdin, stdout or stderr goes to no file of a run, where a library's prints would land."""
    try:
        while (file := os.open(os.devnull, os.O_RDONLY)) <= 2:  # so that writing to it fails as before
            pass
        os.close(file)
    except OSError:  # no file can be opened: then none takes the number either
        pass


def _leaving(code: int, word: bytes) -> Any:
    """Until the command itself heeds signals there is nothing to keep, and this is all there is to say."""

    def leave(number: int, frame: object) -> None:
        rest = b'"message": "%s", "done": "", "hint": "", "details": {}' % word
        answer = b'{"error": {"code": %d, "type": "%s", %s}}\n' % (code, word, rest)
        try:
            os.write(*((1, answer) if "--json" in sys.argv else (2, word + b"\n")))
        finally:
            os._exit(code)  # said or not

    return leave


if __name__ == "__main__":
    run()
