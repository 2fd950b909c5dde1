"""The end when there is no memory even for a sentence with figures. Light: it is loaded before anything else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from sdcli.errors import HARDLY_ANY, OutOfMemory

# Made beforehand: when they are needed there is no room to make them.
_TEXT = b"error: out of memory\n  try: sdcli doctor\n"
_JSON = (
    b'{"error": {"code": 4, "type": "out_of_memory", "message": "out of memory", "done": "", '
    b'"hint": "sdcli doctor", "details": {"need": null, "free": null}}}\n'
)


def say_out_of_memory(words: Sequence[str]) -> int:
    """The exit code."""
    as_json = "--json" in words
    with contextlib.suppress(OSError):
        os.write(1 if as_json else 2, _JSON if as_json else _TEXT)
    return OutOfMemory.code


@contextlib.contextmanager
def library_exits_explained(words: Sequence[str]) -> Iterator[None]:
    """Under `ulimit -v`, libraries in C++ and Rust that find no memory end the whole process: then it says so, too.

    Without such a limit memory is handed out until the system kills somebody, and an abort means something else.
    """
    handlers = _handle_library_exits(words)
    yield
    del handlers  # C knows only their addresses: until here they had to be kept


def hardly_any_left() -> bool:
    """Whether there is a limit, and hardly anything is left of it."""
    with contextlib.suppress(ImportError, MemoryError, OSError):
        limit = _limit()
        return limit is not None and _little_left(limit)
    return False


def _limit() -> int | None:
    """In bytes, of the address space; None where there is none."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _little_left(limit: int) -> bool:
    with contextlib.suppress(OSError, ValueError, MemoryError):
        statm = os.open("/proc/self/statm", os.O_RDONLY)
        mapped = int(os.read(statm, 64).split()[0]) * os.sysconf("SC_PAGE_SIZE")
        return limit - mapped < HARDLY_ANY
    return True


def _handle_library_exits(words: Sequence[str]) -> Any:
    with contextlib.suppress(ImportError, MemoryError, OSError, AttributeError):
        limit = _limit()
        if limit is None:
            return None
        import ctypes
        import signal

        libc = ctypes.CDLL(None)
        libc.signal.restype = ctypes.c_void_p

        def left(status: int = 0, nothing: int | None = None) -> None:
            if _little_left(limit):
                os._exit(say_out_of_memory(words))

        def gave_up(number: int) -> None:
            left()
            libc.signal(number, None)  # something else: on returning, the system does as ever

        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(gave_up)
        libc.signal(int(signal.SIGABRT), handler)
        leaving = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)(left)
        if hasattr(libc, "on_exit"):  # sdcli itself leaves without; OpenMP that gets no thread does not
            libc.on_exit(leaving, None)
        return handler, leaving
    return None
