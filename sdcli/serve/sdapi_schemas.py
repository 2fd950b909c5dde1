"""What A1111's bodies and answers hold, for /openapi.json: values as sdapi_body reads them, objects and lists of them.
What is null counts as absent, and a number may come as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sdcli.serve.openapi import bounded
from sdcli.serve.sdapi_body import NUMBER, Body

Schema = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What a field takes. `read` refuses anything else, also where the field is of no use; without one, whoever uses
    the field looks at all of it."""

    schema: Schema
    read: Callable[[Body, str], Any] | None = None


Fields = dict[str, Kind]
TEXT = Kind({"type": ["string", "null"]}, Body.text)
YES = Kind({"enum": [True, False, 0, 1, None]}, Body.yes)
IMAGE = Kind({"type": ["string", "null"], "contentEncoding": "base64"})
ONE_IMAGE = Kind({"type": "string", "contentEncoding": "base64", "minLength": 1})
ANYTHING = Kind({})


def any_number(within: tuple[float, float] | None = None) -> Kind:
    return Kind(_number("number", within), Body.number)


def any_whole(within: tuple[float, float] | None = None) -> Kind:
    return Kind(_number("integer", within), Body.whole)


def _number(kind: str, within: tuple[float, float] | None) -> Schema:
    return {
        "anyOf": [{"type": kind, **bounded(within)}, {"type": "string", "pattern": f"^{NUMBER}$"}, {"type": "null"}]
    }


def number_of(values: Iterable[int]) -> Kind:
    return Kind({"anyOf": [{"enum": list(values)}, *_number("integer", None)["anyOf"][1:]]}, Body.whole)


def one_of(values: Iterable[Any]) -> Kind:
    """0 and 1 may be false and true."""
    alike: dict[float, list[Any]] = {0: [0, False], 1: [1, True]}
    spelled = [alike.get(value, [value]) if isinstance(value, (int, float)) else [value] for value in values]
    return Kind({"enum": [*(one for spellings in spelled for one in spellings), None]})


def any_list(items: Schema) -> Kind:
    return Kind({"type": ["array", "null"], "items": items}, Body.listed)


def any_object(fields: Fields) -> Kind:
    """To PHP an empty one is a list."""
    return Kind({"anyOf": [of_object(fields), {"enum": [[], None]}]}, Body.inner)


def of_object(fields: Fields, *required: str) -> Schema:
    properties = {name: kind.schema for name, kind in fields.items()}
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def check(body: Body, fields: Fields) -> None:
    for name, kind in fields.items():
        if kind.read is not None:
            kind.read(body, name)


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
