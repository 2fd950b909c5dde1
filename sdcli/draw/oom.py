"""Tells running out of memory from any other failure: each library reports it differently.

Without torch: its import may be what runs out of memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from sdcli.errors import HARDLY_ANY, OutOfMemory, names_memory
from sdcli.machine import memory
from sdcli.terminal import show, size_text

# These give no reason. Where hardly any memory is left, that is taken as the reason.
_UNEXPLAINED = (
    "could not create a primitive",
    "could not execute a primitive",
    "cannot map zero-fill pages",
    "cannot open shared object file",
    "error return without exception set",
    "returned null without setting an exception",
)
_UNEXPLAINED_ON_A_GPU = (
    "cublas_status_not_initialized",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error",
    "unable to find an engine",
    "miopenstatusunknownerror",
    "miopenstatusinternalerror",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Also where a library has wrapped the failure in another one: `… requirements defined correctly?`"""
    return any(map(_says_so, _chain(error)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then its causes."""
    visited: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in visited:
        yield link
        visited.add(id(link))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if not isinstance(
        error, (RuntimeError, OSError, ImportError, SystemError)
    ):  # torch.OutOfMemoryError is a RuntimeError
        return False
    if type(error).__name__ == "OutOfMemoryError":
        return True
    if names_memory(str(error)):
        return True
    text = str(error).lower()
    if any(words in text for words in _UNEXPLAINED):
        return _hardly_any_left()
    return any(words in text for words in _UNEXPLAINED_ON_A_GPU) and _hardly_any_left_on_the_gpu()


def _hardly_any_left() -> bool:
    host = memory.read()
    return host.total > 0 and host.available < HARDLY_ANY


def _hardly_any_left_on_the_gpu() -> bool:
    if "torch" not in sys.modules:
        return False
    from sdcli.draw import devices

    device = devices.first_usable()
    free = None if device.type == "cpu" else devices.functions(device).free()
    return free is not None and free < HARDLY_ANY


def without_a_plan(error: BaseException) -> OutOfMemory:
    """The error where what was needed is not known, only what is free."""
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
    """The exception's message, short and safe to show: the line about memory if there is one."""
    origin = next((link for link in _chain(error) if _says_so(link)), error)
    lines = [line.strip() for line in str(origin).splitlines() if line.strip()]
    return show((list(filter(names_memory, lines)) or lines or [type(origin).__name__])[0], 160)
