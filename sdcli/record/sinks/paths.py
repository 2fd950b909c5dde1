"""The plainest result: the path of each image on stdout, one per line, as soon as it is on disk."""

from __future__ import annotations

import os
from collections.abc import Callable

from sdcli.events import Event, Saved


class Paths:
    """Byte for byte as the file system knows it, and short where it lies below the current folder."""

    def __init__(self, put: Callable[[bytes], object], here: str) -> None:
        self._put = put
        self._here = here.rstrip(os.sep) + os.sep

    def __call__(self, event: Event) -> None:
        if isinstance(event, Saved):
            self._put(os.fsencode(event.path.removeprefix(self._here)) + b"\n")
