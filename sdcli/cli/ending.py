"""Ctrl-C, SIGTERM and SIGHUP end a command in order, with what is done kept, also where a library swallows them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from sdcli.errors import Interrupted, Stop, Terminated

PATIENCE = 2.0  # seconds until one more signal of the same kind means: now


class Heeded:
    """The handler of all three: it raises once, and remembers, since what it raises may fall into a destructor."""

    def __init__(self) -> None:
        self.asked: BaseException | None = None
        self.over = False
        self._at = 0.0

    def __call__(self, number: int, frame: object) -> None:
        if self.asked is None:
            self.asked, self._at = KeyboardInterrupt() if number == signal.SIGINT else Stop(), time.monotonic()
            if self.over:
                return
            raise self.asked
        if time.monotonic() - self._at > PATIENCE:
            os._exit(Interrupted.code if number == signal.SIGINT else Terminated.code)


@contextlib.contextmanager
def heeded(for_good: bool = False) -> Iterator[None]:
    """Inside, a signal raises KeyboardInterrupt or Stop. One that the caller has switched off stays off (nohup), and
    outside the main thread, where signals cannot be caught, nothing happens. `for_good`: until the process is gone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handler = Heeded()
    before = {number: found for number in numbers if (found := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    complain = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, (KeyboardInterrupt, Stop)) else complain(lost)
    try:
        yield
    finally:
        if not for_good:
            sys.unraisablehook = complain
            for number, old in before.items():
                signal.signal(number, old)


def check() -> None:
    """Between two steps: ends the command if it was told to, and the telling was lost on the way."""
    handler = _handler()
    if handler is not None and handler.asked is not None:
        raise handler.asked


def over() -> None:
    """How the command ends is settled; what is left is to record and to say it, once. A signal changes neither."""
    handler = _handler()
    if handler is not None:
        handler.over = True


def _handler() -> Heeded | None:
    found: list[Any] = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return next((handler for handler in found if isinstance(handler, Heeded)), None)
