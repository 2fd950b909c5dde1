"""The files a plan draws from, and whether they are still as they were: what a run needs to go on with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sdcli.models.model import Model
from sdcli.plan.plan import Plan


@dataclass(frozen=True, kw_only=True)
class UsedFile:
    """A file as it was when the run began. Gigabytes of weights are not hashed for that."""

    path: str
    bytes: int
    modified_ns: int


def seen(plan: Plan) -> tuple[UsedFile, ...]:
    return tuple(one for path in _paths(plan) if (one := _now(path)) is not None)


def changed(files: Iterable[UsedFile]) -> UsedFile | None:
    """The first that is no longer what it was."""
    return next((one for one in files if _now(one.path) != one), None)


def is_gone(file: UsedFile) -> bool:
    return not os.path.exists(file.path)


def _now(path: str) -> UsedFile | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return UsedFile(path=path, bytes=status.st_size, modified_ns=status.st_mtime_ns)


def _paths(plan: Plan) -> Iterable[str]:
    return dict.fromkeys([*_of_model(plan.model), *[one.path for one in plan.setup.adapters if one.path]])


def _of_model(model: Model) -> Iterator[str]:
    for component in model.components.values():
        yield from component.files
    if model.refiner is not None:
        yield from _of_model(model.refiner)
