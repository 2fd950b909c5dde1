"""What A1111's bodies and answers hold, for /openapi.json: values as sdapi_body reads them, objects and lists of them.
What is null counts as absent, and a number may come as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sdcli.serve.sdapi_body import NUMBER

Schema = dict[str, Any]

TEXT: Schema = {"type": ["string", "null"]}
YES: Schema = {"enum": [True, False, 0, 1, None]}
IMAGE: Schema = {"type": ["string", "null"], "contentEncoding": "base64"}
ONE_IMAGE: Schema = {"type": "string", "contentEncoding": "base64", "minLength": 1}


def any_number(within: tuple[float, float] | None = None, kind: str = "number") -> Schema:
    bounds = {} if within is None else {"minimum": within[0], "maximum": within[1]}
    return {"anyOf": [{"type": kind, **bounds}, {"type": "string", "pattern": f"^{NUMBER}$"}, {"type": "null"}]}


def any_whole(within: tuple[float, float] | None = None) -> Schema:
    return any_number(within, "integer")


def one_of(values: Iterable[Any]) -> Schema:
    """0 and 1 may be false and true."""
    alike = {0: [0, False], 1: [1, True]}
    spelled = [alike.get(value, [value]) if isinstance(value, (int, float)) else [value] for value in values]
    return {"enum": [*(one for spellings in spelled for one in spellings), None]}


def number_of(values: Iterable[int]) -> Schema:
    return {"anyOf": [{"enum": list(values)}, *any_whole()["anyOf"][1:]]}


def listed(items: Schema, **more: int) -> Schema:
    return {"type": ["array", "null"], "items": items, **more}


def inner(properties: dict[str, Schema]) -> Schema:
    """An object in a body; to PHP an empty one is a list."""
    return {"anyOf": [{"type": "object", "properties": properties}, {"enum": [[], None]}]}


def body(properties: dict[str, Schema], *required: str) -> Schema:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


_TEXTS: Schema = {"type": "array", "items": {"type": "string"}}
DRAWN: Schema = {
    "type": "object", "required": ["images", "parameters", "info"],
    "properties": {"images": _TEXTS, "parameters": {"type": "object"}, "info": {"type": "string"}},
}  # fmt: skip
MADE: Schema = {"type": "object", "required": ["html_info", "image"], "properties": {"image": {"type": "string"}}}
ALL_MADE: Schema = {"type": "object", "required": ["html_info", "images"], "properties": {"images": _TEXTS}}
STORED: Schema = {"type": "object", "required": ["info", "parameters", "items"], "properties": {
    "info": {"type": "string"}, "parameters": {"type": "object"}, "items": {"type": "object"},
}}  # fmt: skip
SEEN: Schema = {"type": "object", "required": ["images", "info"], "properties": {"images": _TEXTS}}
PROGRESS: Schema = {
    "type": "object", "required": ["progress", "eta_relative", "state", "current_image", "textinfo"],
    "properties": {
        "progress": {"type": "number", "minimum": 0, "maximum": 1}, "eta_relative": {"type": "number"},
        "state": {"type": "object"}, "current_image": {"type": ["string", "null"]},
    },
}  # fmt: skip
