"""The lines of run.jsonl, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from sdcli.errors import ErrorObject


class OutputObject(TypedDict):
    """How files are named. `folder` is null where the records lie in the folder of the images."""

    folder: str | None
    kind: str
    pattern: str
    format: str
    model: str
    overwrite: bool


class RunLine(TypedDict):
    """The first line: what is to be drawn. Like every line it ends with the CRC-32 of its own bytes without `crc`."""

    type: Literal["run"]
    schema: Literal["sdcli.run/1"]
    run: str
    created: str
    version: str
    output: OutputObject
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]
    crc: str


class IntentLine(TypedDict):
    """What an image will be, before its name appears."""

    type: Literal["intent"]
    index: int
    batch: int
    file: str
    bytes: int
    pixel_sha256: str
    file_sha256: str
    status: str
    crc: str


class DoneLine(TypedDict):
    type: Literal["done"]
    index: int
    crc: str


class FailedLine(TypedDict):
    type: Literal["failed"]
    index: int
    error: ErrorObject
    crc: str


DegradedLine = TypedDict(
    "DegradedLine",
    {
        "type": Literal["degraded"], "worker": str, "batch": int, "phase": str, "step": int | None,
        "from": Mapping[str, str], "to": Mapping[str, str], "because": str, "changes_pixels": bool, "crc": str,
    },
)  # fmt: skip


class ResumedLine(TypedDict):
    type: Literal["resumed"]
    at: str
    environment: Mapping[str, Any]
    crc: str


class EndLine(TypedDict):
    type: Literal["end"]
    status: str
    exit_code: int
    crc: str


Line = RunLine | IntentLine | DoneLine | FailedLine | DegradedLine | ResumedLine | EndLine
