"""`python -m sdcli`, and the `sdcli` script: the first thing is that no signal ends in a traceback."""

import os
import signal
import sys
from typing import Any, NoReturn

_ENDINGS = {"SIGINT": (130, b"interrupted"), "SIGTERM": (143, b"terminated"), "SIGHUP": (143, b"terminated")}


def run() -> NoReturn:
    for name, (code, word) in _ENDINGS.items():
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leaving(code, word))
    from sdcli.cli.main import run

    run()


def _leaving(code: int, word: bytes) -> Any:
    """Until the command itself heeds signals there is nothing to keep, and this is all there is to say."""

    def leave(number: int, frame: object) -> None:
        if "--json" in sys.argv:
            rest = b'"message": "%s", "done": "", "hint": "", "details": {}' % word
            os.write(1, b'{"error": {"code": %d, "type": "%s", %s}}\n' % (code, word, rest))
        else:
            os.write(2, word + b"\n")
        os._exit(code)

    return leave


if __name__ == "__main__":
    run()
