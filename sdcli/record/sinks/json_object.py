"""`--json`: the whole report as the one object on stdout."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from sdcli.record import documents
from sdcli.record.report import Report, to_json


def write_object(report: Report, folder: Path, stream: IO[bytes]) -> None:
    """One line, so that it can be read with a single readline; a closed pipe is not an error."""
    try:
        for piece in documents.pieces(to_json(report, folder)):
            stream.write(piece)
        stream.write(b"\n")
        stream.flush()
    except (OSError, ValueError):
        pass
