"""`--json-lines`: one JSON object per image, as soon as it is saved or has failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdcli.events import Event, Failed, Saved
from sdcli.record import documents
from sdcli.record.report import Folding, image_json


class JsonLines:
    """The entry the report will have, with its absolute path. `folding` must see each event before this does."""

    def __init__(self, put: Callable[[bytes], object], folding: Folding, folder: Path) -> None:
        self._put = put
        self._folding = folding
        self._folder = folder

    def __call__(self, event: Event) -> None:
        if not isinstance(event, (Saved, Failed)):
            return
        image = self._folding.entry(event.index)
        if image is not None:
            self._put(documents.dump(image_json(image, self._folder)) + b"\n")
