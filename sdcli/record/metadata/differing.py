"""Two images' settings beside each other: those that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from sdcli.record.metadata.own import ImageRecord
from sdcli.record.metadata.read import ImageSettings
from sdcli.request.request import Request
from sdcli.schema import to_json

_TOLD_TWICE = ("threads", "isa")  # in the environment: the setup has them too
_DEFAULTS = {one.name: one.default for one in fields(Request) if one.default is not MISSING}


@dataclass(frozen=True, kw_only=True)
class Differing:
    """A setting, and its value in either image: None where that does not say."""

    name: str
    a: Any
    b: Any


def differing(a: ImageSettings, b: ImageSettings) -> tuple[Differing, ...]:
    """What drew them in the settings' order; then, where both hold sdcli's own chunk, what else can move a pixel."""
    both_own = a.record is not None and b.record is not None
    first, second = (_facts(one, whole=both_own) for one in (a, b))
    every = {**first, **second}
    rows = (Differing(name=name, a=_of(name, first), b=_of(name, second)) for name in every)
    return tuple(row for row in rows if row.a != row.b)


def _facts(settings: ImageSettings, *, whole: bool) -> dict[str, Any]:
    facts: dict[str, Any] = settings.plain | to_json(settings.unknown)
    if settings.record is None:
        return facts
    if whole:
        return facts | dict(_chunk(settings.record))
    known = {"Model hash": settings.record.model.hash, "Version": f"sdcli {settings.record.version}"}
    return facts | {name: value for name, value in known.items() if value}


def _of(name: str, facts: Mapping[str, Any]) -> Any:
    """Other programs leave out what is as usual."""
    return facts[name] if name in facts else to_json(_DEFAULTS.get(name))


def _chunk(record: ImageRecord) -> Iterator[tuple[str, Any]]:
    """All of it that no setting says, under the names that it has there."""
    yield "version", record.version
    for name in ("revision", "hash", "unet_sha256"):
        yield f"model.{name}", getattr(record.model, name)
    for name, value in to_json(record.setup).items():
        if name != "adapters":
            yield f"setup.{name}", value
    for adapter in record.setup.adapters:
        yield f"{adapter.kind} {adapter.name}", f"{adapter.sha256[:10]} at {adapter.scale:g}"
    for name, image in _inputs(record):
        yield name, image
    for name, value in to_json(record.scheduler).items():
        if not name.startswith("_"):
            yield f"scheduler.{name}", value
    yield "batch.size", record.batch.size
    yield "batch.position", record.batch.position
    yield "degraded", to_json(record.degraded)
    yield "enlarged", to_json(record.enlarged)
    for name, value in to_json(record.environment).items():
        if name not in _TOLD_TWICE:
            yield f"environment.{name}", value


def _inputs(record: ImageRecord) -> Iterator[tuple[str, str]]:
    """What they were drawn from may differ under one name."""
    start = record.job.start
    if start is not None:
        yield "image.sha256", start.image.sha256
        if start.repaint is not None and start.repaint.mask is not None:
            yield "mask.sha256", start.repaint.mask.sha256
    for number, control in enumerate(record.job.controls):
        yield f"control.{number}", f"{control.weight:g} from {control.start:g} to {control.end:g}, {control.made}"
        yield f"control.{number}.sha256", control.image.sha256
    for number, reference in enumerate(record.job.references):
        yield f"reference.{number}.sha256", reference.image.sha256
