"""`--json`: the whole report as the one object on stdout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sdcli.record import documents
from sdcli.record.report import Report, to_json


def object_of(report: Report, folder: Path) -> Iterator[bytes]:
    """One line, so that it can be read with a single readline, bit by bit."""
    yield from documents.pieces(to_json(report, folder))
    yield b"\n"
