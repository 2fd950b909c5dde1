"""A JSON Schema (draft 2020-12) from the types that a document is written from: dataclasses and typed dictionaries.

Readers ignore unknown keys, so other keys are allowed; every key that is named is required, unless it is NotRequired.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: dict[Any, str | list[str]] = {
    str: "string", int: "integer", bool: "boolean", float: ["number", "null"], type(None): "null",
}  # fmt: skip  # a float that is not finite becomes null


class Shapes:
    """The schemas of types, each named once under `$defs`. `known` has keys whose mapping has a type of its own,
    wherever it stands: "error"."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.known = known
        self.types: dict[str, Any] = {}
        self.defined: dict[str, Schema] = {}

    def document(self, name: str, shape: Any) -> Schema:
        """The schema of a whole document, or of any of several."""
        several = typing.get_args(shape)
        body = {"anyOf": [self.of(one) for one in several]} if several else self.members(shape)
        return {
            "$schema": DRAFT,
            "$id": f"urn:{name.replace('.', ':').replace('/', ':')}",
            "title": name,
            **body,
            **({"$defs": self.defined} if self.defined else {}),
        }

    def of(self, hint: Any, key: str = "") -> Schema:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return {}
        if hint in _PLAIN:
            return {"type": _PLAIN[hint]}
        if origin is typing.NotRequired:
            return self.of(arguments[0], key)
        if origin is typing.Literal:
            return {"const": arguments[0]} if len(arguments) == 1 else {"enum": list(arguments)}
        if origin in (typing.Union, types.UnionType):
            return _any([self.of(one, key) for one in arguments])
        if origin in (tuple, list, Sequence):
            return self._array(origin, arguments, key)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            if key in self.known and arguments[1] is Any:
                return self.of(self.known[key])
            values = self.of(arguments[1])
            return {"type": "object", **({"additionalProperties": values} if values else {})}
        return self._reference(hint)

    def _array(self, origin: Any, arguments: tuple[Any, ...], key: str) -> Schema:
        if origin is not tuple or arguments[1:] == (Ellipsis,):
            items = self.of(arguments[0], key)
            return {"type": "array", **({"items": items} if items else {})}
        count = len(arguments)
        return {
            "type": "array", "prefixItems": [self.of(one) for one in arguments], "minItems": count, "maxItems": count,
        }  # fmt: skip

    def _reference(self, cls: Any) -> Schema:
        name = cls.__name__
        if self.types.setdefault(name, cls) is not cls:
            raise TypeError(f"two types of a document are called {name}")
        if name not in self.defined:
            self.defined[name] = {}  # its place, also where a type holds its own kind
            self.defined[name] = self.members(cls)
        return {"$ref": f"#/$defs/{name}"}

    def members(self, cls: Any) -> Schema:
        """The object that a type becomes, key by key."""
        properties = {key: self.of(hint, key) for key, hint in keys_of(cls).items()}
        if not properties:
            return {**_described(cls), "type": "object", "maxProperties": 0}
        if "schema" in properties:
            properties["schema"] = {"const": _name_of(cls)}
        optional: frozenset[str] = getattr(cls, "__optional_keys__", frozenset())
        return {
            **_described(cls),
            "type": "object",
            "properties": properties,
            "required": [key for key in properties if key not in optional],
        }


def keys_of(cls: Any) -> dict[str, Any]:
    """The keys of the object that a dataclass or a typed dictionary becomes, and their types."""
    hints = typing.get_type_hints(cls, include_extras=True)
    if not dataclasses.is_dataclass(cls):
        return hints
    kept = [field for field in dataclasses.fields(cls) if not field.metadata.get("transient")]
    return {field.metadata.get("key", field.name): hints[field.name] for field in kept}


def _name_of(cls: Any) -> str:
    if not dataclasses.is_dataclass(cls):
        return str(typing.get_args(typing.get_type_hints(cls)["schema"])[0])
    return str(next(field.default for field in dataclasses.fields(cls) if field.name == "schema"))


def _described(cls: Any) -> Schema:
    """Its docstring, unless that is the one that `dataclass` makes up."""
    text = cls.__dict__.get("__doc__") or ""
    if not text or text.startswith(f"{cls.__name__}("):
        return {}
    return {"description": " ".join(inspect.cleandoc(text).split())}


def _any(choices: list[Schema]) -> Schema:
    """One of several, as a list of types where no more is said of any."""
    if {} in choices:
        return {}
    if not all(set(one) == {"type"} for one in choices):
        return {"anyOf": choices}
    names: list[str] = []
    for one in choices:
        names += one["type"] if isinstance(one["type"], list) else [one["type"]]
    return {"type": list(dict.fromkeys(names))}
