"""Writing a drawing: whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sdcli.errors import CannotWrite
from sdcli.terminal import show


def write(path: str, text: str) -> None:
    """Under its name only when complete; a file of that name is replaced."""
    target = Path(path).expanduser()
    part = target.with_name(f".{target.name[:40]}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(part, target)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            part.unlink(missing_ok=True)
        raise _refused(target, error) from None


def _refused(target: Path, error: Exception) -> CannotWrite:
    reason = getattr(error, "strerror", None) or error
    return CannotWrite(f"cannot write {show(target, 200)}: {show(reason)}", hint="sdcli inspect-unet sd15 --svg u.svg")
