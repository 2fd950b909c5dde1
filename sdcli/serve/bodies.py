"""JSON bodies, read as strictly as they deserve: a request is an object, and each of its keys is there once."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from sdcli.terminal import show

DEEPEST = 16
_DATA_URL = re.compile(r"data:[a-z0-9.+/-]{0,60};base64,", re.ASCII | re.IGNORECASE)


class BadBody(ValueError):
    """What is wrong with it; `field` is the name of what it is wrong with."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def parsed(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body, object_pairs_hook=_object, parse_constant=_no_number)
    except BadBody:
        raise
    except RecursionError:
        raise BadBody(f"the body is nested deeper than {DEEPEST}") from None
    except ValueError as error:
        raise BadBody(f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadBody("the body has to be a JSON object")
    for name, item in value.items():
        _check(name, "", DEEPEST)
        _check(item, name, DEEPEST - 1)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadBody(f"{name!r} is there twice", name)
        found[name] = value
    return found


def _no_number(text: str) -> float:
    raise BadBody(f"{text} is no number of JSON")


def _check(value: Any, field: str, deeper: int) -> None:
    """`field`: of the body, that it is in."""
    if deeper < 0:
        raise _wrong(field, f"the body is nested deeper than {DEEPEST}")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _wrong(field, "a text holds half of a surrogate pair")
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise _wrong(field, "a number is too large")
    if isinstance(value, int) and abs(value) >= 1 << 64:
        raise _wrong(field, "a number is too large")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check(item, field, deeper - 1)
    for name in value if isinstance(value, dict) else ():
        _check(name, field, deeper)


def _wrong(field: str, what: str) -> BadBody:
    return BadBody(f"{show(field, 60)}: {what}" if field else what, field or None)


def in_data_url(text: str) -> str | None:
    """The base64 in a data URL; None of other text."""
    start = _DATA_URL.match(text)
    return text[start.end() :] if start else None


def from_base64(text: str) -> bytes | None:
    """None of what is no valid base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
