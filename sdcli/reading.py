"""Files from outside, opened so that they can neither make their reader wait nor fill its memory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def opened(path: str | Path) -> BinaryIO:
    """A regular file, to be read; OSError for anything else. A pipe is not waited for, and what is opened is what is
    looked at."""
    file = os.open(path, _FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "not a file but a folder, a pipe or a device", str(path))
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def whole(path: str | Path, most: int) -> bytes:
    """All of a file that may have so many bytes; OSError where it has more."""
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most >> 20} MiB", str(path))
    return content
