"""Two images' settings beside each other: those that differ. One comparison, for diff and for verify."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from sdcli.machine.environment import PACKAGES
from sdcli.record.metadata import own
from sdcli.record.metadata.own import ImageRecord
from sdcli.record.metadata.read import ImageSettings, by_name
from sdcli.request.request import Request
from sdcli.schema import to_json

_TOLD_TWICE = ("threads", "isa")  # in the environment: the setup has them too
_MOVING = (*PACKAGES, "device")  # of the environment
_DEFAULTS = {one.name: one.default for one in fields(Request) if one.default is not MISSING}


@dataclass(frozen=True, kw_only=True)
class Differing:
    """A setting, and its value in either image: None where that does not say."""

    name: str
    a: Any
    b: Any


def differing(a: ImageSettings, b: ImageSettings) -> tuple[Differing, ...]:
    """What drew them in the settings' order; then, where both hold sdcli's own chunk, what else is recorded."""
    both_own = a.record is not None and b.record is not None
    first, second = (_facts(one, whole=both_own) for one in (a, b))
    return tuple(_rows(first, second))


def moving(a: ImageRecord, b: ImageRecord) -> Iterator[Differing]:
    """Of two records only what can move a pixel. What one of them does not know of its model and its versions is no
    difference."""
    first, second = (dict(_moving(one)) for one in (a, b))
    for row in _rows(first, second):
        if None not in (row.a, row.b) or not row.name.startswith(("model.", "environment.")):
            yield row


def of_values(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Differing]:
    """Of the fields of two requests."""
    return _rows(by_name(a), by_name(b))


def _rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Differing]:
    """A scheduler of another kind has other settings: all of them, and none is worth naming."""
    other_kind = first.get("scheduler") != second.get("scheduler")
    for name in {**first, **second}:
        row = Differing(name=name, a=_of(name, first), b=_of(name, second))
        if row.a != row.b and not (other_kind and name.startswith("scheduler.")):
            yield row


def _of(name: str, facts: Mapping[str, Any]) -> Any:
    """Other programs leave out what is as usual."""
    return facts[name] if name in facts else to_json(_DEFAULTS.get(name))


def _facts(settings: ImageSettings, *, whole: bool) -> dict[str, Any]:
    facts: dict[str, Any] = settings.plain | to_json(settings.unknown)
    record = settings.record
    if record is None:
        return facts
    if whole:
        return facts | dict(_moving(record)) | dict(_beside(record))
    known = {"Model hash": record.model.hash, "Version": f"sdcli {record.version}"}
    return facts | {name: value for name, value in known.items() if value}


def _moving(record: ImageRecord) -> Iterator[tuple[str, Any]]:
    yield from by_name(own.settings(record)).items()
    yield from _inputs(record)
    yield "version", record.version
    yield "model.hash", record.model.hash
    for component, fingerprint in record.model.weights.items():
        yield f"model.{component}", fingerprint
    for name, value in to_json(record.setup).items():
        if name != "adapters":
            yield f"setup.{name}", value
    for adapter in record.setup.adapters:
        word = f" as {adapter.word}" if adapter.word else ""
        yield f"{adapter.kind} {adapter.name}", f"{adapter.sha256[:10]} at {adapter.scale:g}{word}"
    yield "scheduler", record.scheduler.get("_class_name")
    for name, value in to_json(record.scheduler).items():
        if not name.startswith("_"):
            yield f"scheduler.{name}", value
    yield "batch.size", record.batch.size
    yield "batch.position", record.batch.position
    yield "degraded", to_json(record.degraded)
    for name in _MOVING:
        yield f"environment.{name}", record.environment.get(name)


def _beside(record: ImageRecord) -> Iterator[tuple[str, Any]]:
    """What is recorded, but moves no pixel by itself."""
    yield "model.revision", record.model.revision
    yield "enlarged", to_json(record.enlarged)
    for name, value in to_json(record.environment).items():
        if name not in (*_TOLD_TWICE, *_MOVING):
            yield f"environment.{name}", value


def _inputs(record: ImageRecord) -> Iterator[tuple[str, str]]:
    """What they were drawn from may differ under one name."""
    start = record.job.start
    if start is not None:
        yield "image.sha256", start.image.sha256
        if start.repaint is not None and start.repaint.mask is not None:
            yield "mask.sha256", start.repaint.mask.sha256
    for number, control in enumerate(record.job.controls):
        how = " ".join(filter(None, (control.net, control.made, control.shows, control.fit)))
        yield f"control.{number}", f"{control.weight:g} from {control.start:g} to {control.end:g}, {how}"
        yield f"control.{number}.sha256", control.image.sha256
    for number, reference in enumerate(record.job.references):
        yield f"reference.{number}", f"{reference.weight:g}, {reference.fit}"
        yield f"reference.{number}.sha256", reference.image.sha256
        if reference.mask is not None:
            yield f"reference.{number}.mask", reference.mask.sha256
