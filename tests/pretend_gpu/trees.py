"""What operators take and give: values in tuples, lists and dicts. torch's own pytree knows more kinds, and took a
fifth of the time of a drawing here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Size, Tensor

VALUE, TENSOR, SEQUENCE, MAPPING = range(4)


@functools.cache  # kinds are few, and live for ever
def _sort(kind: type) -> int:
    if issubclass(kind, Tensor):
        return TENSOR
    if kind is dict:
        return MAPPING
    return SEQUENCE if issubclass(kind, (tuple, list)) and kind is not Size else VALUE


def leaves(value: Any) -> list[Any]:
    """A list, not an iterator: a generator in each call of an operator took a tenth of the time of a drawing."""
    found: list[Any] = []
    _gather((value,), found)
    return found


def _gather(values: Any, found: list[Any]) -> None:
    for value in values:
        sort = _sort(type(value))
        if sort < SEQUENCE:
            found.append(value)
        else:
            _gather(value.values() if sort == MAPPING else value, found)


def tensors(*values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _gather_tensors(values, found)
    return found


def _gather_tensors(values: Any, found: list[Tensor]) -> None:
    for value in values:
        sort = _sort(type(value))
        if sort == TENSOR:
            found.append(value)
        elif sort:
            _gather_tensors(value.values() if sort == MAPPING else value, found)


def tree_map(change: Callable[[Any], Any], value: Any) -> Any:
    sort = _sort(type(value))
    if sort < SEQUENCE:
        return change(value)
    if sort == MAPPING:
        return {name: tree_map(change, inner) for name, inner in value.items()}
    return type(value)([tree_map(change, inner) for inner in value])  # also torch.return_types


def map_tensors(change: Callable[[Any], Any], value: Any) -> Any:
    """All else stays as it is."""
    sort = _sort(type(value))
    if sort == TENSOR:
        return change(value)
    if sort == VALUE or not value:
        return value
    if sort == MAPPING:
        return {name: map_tensors(change, inner) for name, inner in value.items()}
    return type(value)([map_tensors(change, inner) if _sort(type(inner)) else inner for inner in value])
