"""Tells running out of memory from every other failure: each part of the stack says it in its own way.

Without torch: it may be the very import of torch that finds no memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from sdcli.errors import OutOfMemory
from sdcli.machine import memory
from sdcli.terminal import show, size_text

# A CPU's is a plain RuntimeError from torch's allocator (on Windows "not enough memory"); CUDA's and ROCm's libraries,
# MPS and the drivers name a status of their own; the loader of shared libraries fails to map them (on Windows for want
# of a paging file); a new thread finds no room.
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "insufficient memory",
    "exceed allowed memory",
    "bad allocation",
    "std::bad_alloc",
    "_status_alloc_failed",
    "host_allocation_failed",
    "error_out_of_memory",
    "erroroutofmemory",
    "cudaerrormemoryallocation",
    "invalid buffer size",
    "could not create a memory object",
    "failed to map segment",
    "cannot create shared object descriptor",
    "cannot allocate symbol search list",
    "paging file is too small",
    "can't start new thread",
)

# These give no reason: it is memory where hardly any is left, and something else where there is plenty.
_UNEXPLAINED = (
    "could not create a primitive",
    "could not execute a primitive",
    "cannot map zero-fill pages",
    "cannot open shared object file",
    "error return without exception set",
    "returned null without setting an exception",
)
_UNEXPLAINED_ON_A_CARD = (
    "cublas_status_not_initialized",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error",
    "unable to find an engine",
)
HARDLY_ANY = 256 << 20


def is_out_of_memory(error: BaseException) -> bool:
    """Also where the failure was wrapped in another one on its way: `… requirements defined correctly?`"""
    return any(map(_says_so, _chain(error)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that led to it."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        yield found
        seen.add(id(found))
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if not isinstance(
        error, (RuntimeError, OSError, ImportError, SystemError)
    ):  # torch.OutOfMemoryError is a RuntimeError
        return False
    if type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    if any(words in text for words in _WORDS):
        return True
    if any(words in text for words in _UNEXPLAINED):
        return _hardly_any_left()
    return any(words in text for words in _UNEXPLAINED_ON_A_CARD) and _hardly_any_left_on_the_card()


def _hardly_any_left() -> bool:
    host = memory.read()
    return host.total > 0 and host.available < HARDLY_ANY


def _hardly_any_left_on_the_card() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    try:
        return int(torch.cuda.mem_get_info()[0]) < HARDLY_ANY
    except RuntimeError:  # a lost device cannot tell
        return False


def without_a_plan(error: BaseException) -> OutOfMemory:
    """Where nothing is known of what was needed, only of what is free."""
    host, limit = memory.read(), memory.address_space_left()
    free = f"{size_text(host.available)} free now"
    if limit is not None:
        free += " within this process's limit (ulimit -v)"
    return OutOfMemory(
        f"out of memory: more needed than the {free} ({first_line(error)})",
        hint="ulimit -v unlimited, then the same command" if limit is not None else "sdcli doctor",
        need=None, free=host.available,
    )  # fmt: skip


def first_line(error: BaseException) -> str:
    """The exception's own words, made harmless and short: the line that tells of memory where there is one."""
    origin = next((one for one in _chain(error) if _says_so(one)), error)
    lines = [line.strip() for line in str(origin).splitlines() if line.strip()]
    telling = [line for line in lines if any(words in line.lower() for words in _WORDS)]
    return show((telling or lines or [type(origin).__name__])[0], 160)
