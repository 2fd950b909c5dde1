"""The plainest result: the path of each picture on stdout, a line each, as soon as it is on the disk."""

from __future__ import annotations

import os
from typing import IO

from sdcli.events import Event, Saved


class Paths:
    """Byte for byte as the file system knows it, and short where it lies below the current folder."""

    def __init__(self, stream: IO[bytes], here: str) -> None:
        self._stream = stream
        self._here = here.rstrip(os.sep) + os.sep
        self._unread = False

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Saved) or self._unread:
            return
        try:
            self._stream.write(os.fsencode(event.path.removeprefix(self._here)) + b"\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._unread = True
