"""What a JSON document has that its schema does not allow, in as much of draft 2020-12 as sdcli's schemas use."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from sdcli.cli.json_documents import DOCUMENTS, schema_of

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "null": (type(None),),
    "array": (list,), "object": (dict,),
}  # fmt: skip
_WORDS = {
    "$schema", "$id", "$defs", "$ref", "title", "description", "type", "properties", "required", "additionalProperties",
    "maxProperties", "items", "prefixItems", "minItems", "maxItems", "anyOf", "const", "enum",
}  # fmt: skip


@functools.cache
def schema_named(name: str) -> Any:
    return json.loads(json.dumps(schema_of(name)))


def name_of(data: Any) -> str:
    """The document that this object says it is; an object without a schema is an error."""
    names = {document.schema: name for name, document in DOCUMENTS.items() if name != "json-lines"}
    return names[data.get("schema", "")]


def wrong_in(name: str, data: Any) -> list[str]:
    schema = schema_named(name)
    return list(_wrong(schema, data, schema, "it"))


def _wrong(schema: Any, data: Any, whole: Any, at: str) -> Iterator[str]:
    assert set(schema) <= _WORDS, schema
    if "$ref" in schema:
        yield from _wrong(whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], data, whole, at)
    if "anyOf" in schema:
        tries = [list(_wrong(one, data, whole, at)) for one in schema["anyOf"]]
        if all(tries):
            yield from min(tries, key=len)
    if "const" in schema and data != schema["const"]:
        yield f"{at} is {data!r}, not {schema['const']!r}"
    if "enum" in schema and data not in schema["enum"]:
        yield f"{at} is {data!r}"
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(data, name) for name in names):
            yield f"{at} is {data!r}, not {names}"
            return
    if isinstance(data, dict):
        yield from _wrong_object(schema, data, whole, at)
    if isinstance(data, list):
        yield from _wrong_list(schema, data, whole, at)


def _is(data: Any, name: str) -> bool:
    return isinstance(data, _TYPES[name]) and (name == "boolean" or not isinstance(data, bool))


def _wrong_object(schema: Any, data: dict[str, Any], whole: Any, at: str) -> Iterator[str]:
    """A key that no property names is wrong too: readers may ignore it, but the schema should name it."""
    if len(data) > schema.get("maxProperties", len(data)):
        yield f"{at} has keys"
    yield from (f"{at}.{key} is missing" for key in schema.get("required", ()) if key not in data)
    known = schema.get("properties", {})
    for key, value in data.items():
        if key in known:
            yield from _wrong(known[key], value, whole, f"{at}.{key}")
        elif "additionalProperties" in schema:
            yield from _wrong(schema["additionalProperties"], value, whole, f"{at}.{key}")
        elif known:
            yield f"{at}.{key} is not in the schema"


def _wrong_list(schema: Any, data: list[Any], whole: Any, at: str) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(data) <= schema.get("maxItems", len(data)):
        yield f"{at} has {len(data)} items"
    first = schema.get("prefixItems", ())
    for number, value in enumerate(data):
        inner = first[number] if number < len(first) else schema.get("items", {})
        yield from _wrong(inner, value, whole, f"{at}[{number}]")
