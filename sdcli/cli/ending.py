"""Ctrl-C, SIGTERM and SIGHUP end a command in order and keep what is done, even where a library swallows them."""

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

PATIENCE = 2.0  # seconds after which another signal ends the process at once


class SignalHandler:
    """Handles all three: raises once, and remembers, since an exception raised in a destructor is lost."""

    def __init__(self) -> None:
        self.asked: BaseException | None = None
        self.over = False
        self.held = False
        self._at = 0.0

    def __call__(self, number: int, frame: object) -> None:
        if self.asked is None:
            self.asked, self._at = KeyboardInterrupt() if number == signal.SIGINT else Stop(), time.monotonic()
            if self.over or self.held:
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
    handler = SignalHandler()
    before = {number: old for number in numbers if (old := signal.getsignal(number)) is not signal.SIG_IGN}
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
    """Called between steps: raises what a signal asked for, in case that exception was lost or held back."""
    handler = _handler()
    if handler is None:
        return
    handler.held = False
    if handler.asked is not None:
        raise handler.asked


def hold() -> None:
    """Signals wait for the next check: what is saved until then is also said."""
    handler = _handler()
    if handler is not None:
        handler.held = True


def over() -> None:
    """From here on signals change nothing: how the command ends is settled, and is only recorded and shown."""
    handler = _handler()
    if handler is not None:
        handler.over = True


def _handler() -> SignalHandler | None:
    handlers: list[Any] = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return next((handler for handler in handlers if isinstance(handler, SignalHandler)), None)
