"""`--json-lines`: one JSON object for each picture as soon as its fate is known."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from sdcli.events import Event, Failed, Saved
from sdcli.record import documents
from sdcli.record.report import Folding, image_json


class JsonLines:
    """The entry the report will have, with its absolute path. `folding` must see each event before this does."""

    def __init__(self, stream: IO[bytes], folding: Folding, folder: Path) -> None:
        self._stream = stream
        self._folding = folding
        self._folder = folder
        self._unread = False

    def __call__(self, event: Event) -> None:
        if not isinstance(event, (Saved, Failed)) or self._unread:
            return
        image = self._folding.entry(event.index)
        if image is None:
            return
        try:
            self._stream.write(documents.dump(image_json(image, self._folder)) + b"\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._unread = True  # `| head -1`: the reader has what it wanted; drawing goes on
