"""Frozen dataclasses into JSON and back: the one translator for everything that flows or is written.

Rules: keys are always present; NaN and infinity become null; unknown keys are ignored when reading;
a field marked `live()` (paths, pixels) is in no record, and crosses to a process of our own only with `whole`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from sdcli.errors import BadFile

T = TypeVar("T")


def live(**kwargs: Any) -> Any:
    """A field that is never recorded: where it is not given, reading fills in its default."""
    return dataclasses.field(metadata={"live": True}, **kwargs)


def renamed(key: str, **kwargs: Any) -> Any:
    """A field whose JSON key is a word Python keeps for itself (`from`)."""
    return dataclasses.field(metadata={"key": key}, **kwargs)


def to_json(value: Any, whole: bool = False) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.metadata.get("key", field.name): to_json(getattr(value, field.name), whole)
            for field in dataclasses.fields(value)
            if whole or not field.metadata.get("live")
        }
    if isinstance(value, Mapping):
        return {str(key): to_json(item, whole) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item, whole) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def from_json(cls: type[T], data: Any, where: str = "", whole: bool = False) -> T:
    """`cls` from what `to_json` made; a wrong shape is BadFile naming the key."""
    where = where or cls.__name__
    if not isinstance(data, Mapping):
        raise BadFile(f"{where}: expected an object, got {type(data).__name__}")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        key = field.metadata.get("key", field.name)
        if field.metadata.get("live") and not whole:
            continue
        if key in data:
            values[field.name] = _read(_hints(typing.cast(Any, cls))[field.name], data[key], f"{where}.{key}", whole)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BadFile(f"{where}.{key} is missing")
    return cls(**values)


def _read(hint: Any, data: Any, where: str, whole: bool) -> Any:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if hint is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return _read_union([a for a in arguments if a is not type(None)], data, where, whole)
    if origin is typing.Literal:
        if data in arguments:
            return data
        raise BadFile(f"{where}: {data!r} is none of {', '.join(map(str, arguments))}")
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise BadFile(f"{where}: expected a list, got {type(data).__name__}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_read(arguments[0], item, f"{where}[{i}]", whole) for i, item in enumerate(data))
        if len(data) != len(arguments):
            raise BadFile(f"{where}: expected {len(arguments)} values, got {len(data)}")
        return tuple(
            _read(a, item, f"{where}[{i}]", whole) for i, (a, item) in enumerate(zip(arguments, data, strict=True))
        )
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise BadFile(f"{where}: expected an object, got {type(data).__name__}")
        return {str(key): _read(arguments[1], item, f"{where}.{key}", whole) for key, item in data.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), data, where, whole)
    return _read_plain(hint, data, where)


def _read_union(choices: list[Any], data: Any, where: str, whole: bool) -> Any:
    for choice in choices[:-1]:
        try:
            return _read(choice, data, where, whole)
        except BadFile:
            continue
    return _read(choices[-1], data, where, whole)


def _read_plain(hint: Any, data: Any, where: str) -> Any:
    if hint is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if hint is float and data is None:
        return math.nan
    if isinstance(data, hint) and not (hint is int and isinstance(data, bool)):
        return data
    raise BadFile(f"{where}: expected {hint.__name__}, got {type(data).__name__}")
