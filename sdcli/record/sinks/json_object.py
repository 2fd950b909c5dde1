"""`--json`: the whole report as the one object on stdout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sdcli.record import documents
from sdcli.record.report import Report, to_json


def object_of(report: Report, folder: Path) -> Iterator[bytes]:
    """One line, so that a single readline reads it; yielded in pieces."""
    yield from documents.pieces(to_json(report, folder))
    yield b"\n"
