"""Every kind of failure, with its exit code. Only cli/main.py turns them into text."""

from __future__ import annotations

from typing import Any, ClassVar, TypedDict


class ErrorObject(TypedDict):
    """An error in JSON: `code` is the exit code, `done` says what was kept, `hint` is a line to paste."""

    code: int
    type: str
    message: str
    done: str
    hint: str
    details: dict[str, Any]


class SdcliError(Exception):
    """What happened, what was saved (`done`), and what to try (`hint`, a line to paste)."""

    code: ClassVar[int]
    type: ClassVar[str]
    usual_hint: ClassVar[str] = ""  # if no hint is given

    def __init__(self, message: str, *, done: str = "", hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.done = done
        self.hint = hint or self.usual_hint
        self.details = details

    def to_json(self) -> ErrorObject:
        return {
            "code": self.code,
            "type": self.type,
            "message": self.message,
            "done": self.done,
            "hint": self.hint,
            "details": self.details,
        }


class Bug(SdcliError):
    code, type = 1, "bug"
    usual_hint = "the same command with --debug shows where"


class Usage(SdcliError):
    code, type = 2, "usage"


class ModelMissing(SdcliError):
    code, type = 3, "model_missing"


class Offline(SdcliError):
    code, type = 3, "offline"


class Gated(SdcliError):
    code, type = 3, "gated"


class DoesNotFit(SdcliError):
    code, type = 4, "does_not_fit"


class OutOfMemory(SdcliError):
    code, type = 4, "out_of_memory"


class ImagesFailed(SdcliError):
    code, type = 5, "images_failed"
    usual_hint = "sdcli doctor"


class Unsafe(SdcliError):
    code, type = 6, "unsafe"


class CannotWrite(SdcliError):
    code, type = 7, "cannot_write"


class DeviceUnusable(SdcliError):
    code, type = 8, "device"


class BadFile(SdcliError):
    code, type = 9, "bad_file"
    usual_hint = "download the file again, or use another"


class Differs(SdcliError):
    code, type = 10, "differs"


class Slower(SdcliError):
    code, type = 10, "slower"


class Interrupted(SdcliError):
    code, type = 130, "interrupted"


class Cancelled(SdcliError):
    """Whoever asked for it over HTTP wants it no more. Exits with nothing: it ends a request, not a process."""

    code, type = 130, "cancelled"


class Terminated(SdcliError):
    code, type = 143, "terminated"


class Stop(BaseException):
    """SIGTERM or SIGHUP, from its arrival to where it ends the command. Not an Exception, so that nothing that catches
    those, such as a library while it loads, can swallow it and continue."""


def stopped_by(stop: BaseException) -> Interrupted | Terminated:
    """How a command ends on Ctrl-C, or on a signal that terminates it."""
    return Terminated("terminated") if isinstance(stop, Stop) else Interrupted("interrupted")


HARDLY_ANY = 256 << 20  # bytes: where less is left, a failure without a reason is taken for want of memory

# On a CPU: a plain RuntimeError from torch's allocator (on Windows "not enough memory"). CUDA's and ROCm's libraries,
# MPS, XPU and the drivers: a status each. The loader of shared libraries: it cannot map them (on Windows for lack of a
# paging file). A new thread: no room for its stack.
_OUT_OF_MEMORY = (
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
    "rocblas_status_memory_error",
    "error_out_of_device_memory",
    "error_out_of_host_memory",
    "error_out_of_resources",
    "invalid buffer size",
    "could not create a memory object",
    "failed to map segment",
    "cannot create shared object descriptor",
    "cannot allocate symbol search list",
    "paging file is too small",
    "can't start new thread",
)


def names_memory(text: str) -> bool:
    """Whether a library's message says that memory ran out."""
    return any(words in text.lower() for words in _OUT_OF_MEMORY)


REGISTRY: dict[str, type[SdcliError]] = {cls.type: cls for cls in SdcliError.__subclasses__()}

MEANINGS: dict[int, str] = {
    0: "done",
    1: "a bug in sdcli",
    2: "usage: an invalid flag, value or combination",
    3: "the model is not available: unknown, offline, gated, or no such path",
    4: "does not fit, or out of memory after every fallback",
    5: "finished, but an image was not saved or is suspect",
    6: "refused as unsafe: a file that could run code, or a server without a key",
    7: "could not write",
    8: "the device is unusable or was lost",
    9: "a damaged or unsupported file",
    10: "a comparison failed: slower, or not the same image",
    130: "interrupted (Ctrl-C)",
    143: "terminated",
}


def from_json(data: dict[str, Any]) -> SdcliError:
    """The error that `to_json` wrote, possibly in another process."""
    cls = REGISTRY.get(str(data.get("type")), Bug)
    details = data.get("details")
    return cls(
        str(data.get("message", "")),
        done=str(data.get("done", "")),
        hint=str(data.get("hint", "")),
        **(details if isinstance(details, dict) else {}),
    )
