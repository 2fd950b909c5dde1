"""A stream that may go away or know few characters, wrapped so that neither ends a run."""

from __future__ import annotations

import contextlib
from typing import IO

from sdcli.terminal import is_terminal, plain


class Tolerant:
    """Looks like the stream to whoever writes; a closed pipe is silence, not an error."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "ascii"
        self.errors = "strict"

    def write(self, text: str) -> int:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(plain(text))
        except (OSError, ValueError):
            pass  # ValueError: the file is closed
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return is_terminal(self._stream)

    def fileno(self) -> int:
        return self._stream.fileno()
