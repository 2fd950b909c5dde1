"""Frozen dataclasses to JSON and back, for everything that is written or sent.

Rules: keys are always present; NaN and infinity become null; unknown keys are ignored when reading;
a field marked `transient()` (paths, pixels) is never recorded, and sent to another sdcli process only with `whole`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sdcli.errors import BadFile
from sdcli.terminal import show

T = TypeVar("T")


def transient(**kwargs: Any) -> Any:
    """A field that is never recorded: reading fills in its default."""
    return dataclasses.field(metadata={"transient": True}, **kwargs)


def renamed(key: str, **kwargs: Any) -> Any:
    """A field whose JSON key differs from its name: `from` is reserved in Python, older records have an older name."""
    return dataclasses.field(metadata={"key": key}, **kwargs)


_PLAIN = frozenset((str, int, bool, type(None)))


def to_json(value: Any, whole: bool = False) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (tuple, list)):
        return [to_json(item, whole) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            key: item if type(item := getattr(value, name)) in _PLAIN else to_json(item, whole)
            for name, key in _keys(type(value), whole)
        }
    if isinstance(value, Mapping):
        return {str(key): to_json(item, whole) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@functools.cache
def _keys(cls: type, whole: bool) -> tuple[tuple[str, str], ...]:
    """The names of its fields, and what they are called in JSON."""
    fields = [field for field in dataclasses.fields(cls) if whole or not field.metadata.get("transient")]
    return tuple((field.name, field.metadata.get("key", field.name)) for field in fields)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


class _Wrong(ValueError):
    """The wrong key and what is wrong with it: "job.steps should be a whole number, not null"."""


def from_json(cls: type[T], data: Any, where: str = "", whole: bool = False) -> T:
    """`cls` from what `to_json` made; a wrong shape is BadFile, naming `where` and the key."""
    try:
        return _object(cls, data, "", whole)
    except _Wrong as wrong:
        raise BadFile(f"{where or cls.__name__}: {wrong}") from None


def _object(cls: type[T], data: Any, at: str, whole: bool) -> T:
    values: dict[str, Any] = {}
    document = _typed(Mapping, data, at)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        key = field.metadata.get("key", field.name)
        if field.metadata.get("transient") and not whole:
            continue
        if key in document:
            values[field.name] = _read(_hints(typing.cast(Any, cls))[field.name], document[key], _below(at, key), whole)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _Wrong(f"{_below(at, key)} is missing")
    return cls(**values)


def _below(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _read(hint: Any, data: Any, at: str, whole: bool) -> Any:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if hint is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return _read_union([a for a in arguments if a is not type(None)], data, at, whole)
    if origin is typing.Literal:
        if data in arguments:
            return data
        raise _Wrong(f"{at} should be one of {', '.join(map(str, arguments))}, not {_shown(data)}")
    if origin in (tuple, Sequence):
        items = _typed(list, data, at)
        if origin is Sequence or arguments[1:] == (Ellipsis,):
            return tuple(_read(arguments[0], item, f"{at}[{i}]", whole) for i, item in enumerate(items))
        if len(items) != len(arguments):
            raise _Wrong(f"{at} should have {len(arguments)} values, not {len(items)}")
        return tuple(
            _read(a, item, f"{at}[{i}]", whole) for i, (a, item) in enumerate(zip(arguments, items, strict=True))
        )
    if origin is not None and issubclass(origin, Mapping):
        return {
            str(key): _read(arguments[1], item, _below(at, key), whole)
            for key, item in _typed(Mapping, data, at).items()
        }
    if dataclasses.is_dataclass(hint):
        return _object(typing.cast(type, hint), data, at, whole)
    return _read_plain(hint, data, at)


def _read_union(choices: list[Any], data: Any, at: str, whole: bool) -> Any:
    for choice in choices[:-1]:
        try:
            return _read(choice, data, at, whole)
        except _Wrong:
            continue
    return _read(choices[-1], data, at, whole)


def _read_plain(hint: Any, data: Any, at: str) -> Any:
    if hint is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError:
            raise _Wrong(f"{at} is too large a number") from None
    if hint is float and data is None:
        return math.nan
    if hint is int and isinstance(data, bool):
        raise _Wrong(f"{at} should be {_WORDS[int]}, not {_shown(data)}")
    return _typed(hint, data, at)


_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list", Mapping: "an object",
}  # fmt: skip


def _typed(kind: Any, data: Any, at: str) -> Any:
    if isinstance(data, (list, tuple) if kind is list else kind):
        return data
    raise _Wrong(f"{at or 'it'} should be {_WORDS.get(kind, kind.__name__)}, not {_shown(data)}")


def _shown(data: Any) -> str:
    """The value as JSON; only the kind of a list or an object, which may be long."""
    if isinstance(data, (list, tuple)):
        return "a list"
    return "an object" if isinstance(data, Mapping) else show(json.dumps(data), 60)
