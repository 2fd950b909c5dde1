"""SIGTERM ends a command as Ctrl-C does: in order, with what is done kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from sdcli.errors import Terminated


@contextlib.contextmanager
def termination() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated. Outside the main thread, where signals cannot be caught, it does nothing."""

    def stop(number: int, frame: object) -> None:
        raise Terminated("terminated")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
