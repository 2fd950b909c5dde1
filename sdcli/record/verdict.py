"""Whether an image is what its settings draw: how far off it is, and what of its record explains that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sdcli import __version__, schema
from sdcli.images.difference import Difference
from sdcli.machine.environment import PACKAGES
from sdcli.plan.plan import Setup
from sdcli.record.metadata.own import ImageRecord
from sdcli.request.request import Job

NOT_DRAWN = ("index", "id")  # of a job, without a say in its pixels


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Something of the record that is otherwise now."""

    field: str
    then: str
    now: str


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What drawing it again took and gave."""

    version: str
    job: Job
    setup: Setup
    scheduler: Mapping[str, Any]
    environment: Mapping[str, Any]
    model_hash: str | None
    unet_sha256: str | None
    pixel_sha256: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`edited`: the pixels in the file are not those that its record names. `difference` is None where the file keeps
    no exact pixels (jpg, webp), or has another size."""

    file: str
    verdict: str  # identical | different
    dialect: str
    edited: bool = False
    difference: Difference | None = None
    explained: tuple[Explanation, ...] = ()
    not_followed: Mapping[str, str] | None = None  # settings of another program that sdcli has nothing for

    @property
    def identical(self) -> bool:
        return self.verdict == "identical"


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    schema: str = "sdcli.verify/1"
    version: str = __version__
    images: tuple[Verdict, ...]


def explanations(record: ImageRecord, drawn: Drawn, text: Mapping[str, Any]) -> Iterator[Explanation]:
    """All that is otherwise now; first what the file says of itself twice, and not alike: then it was altered. `text`
    holds what the settings text beside the chunk says, in the terms of a Request."""
    yield from _told_twice(record, text)
    yield from _of_job(record.job, drawn.job)
    yield from _of_setup(record.setup, drawn.setup)
    yield from _of_scheduler(record.scheduler, schema.to_json(drawn.scheduler))
    if record.model.hash and drawn.model_hash:
        yield from _pair("model", record.model.hash, drawn.model_hash)
    if record.model.unet_sha256 and drawn.unet_sha256:
        yield from _pair("model", record.model.unet_sha256, drawn.unet_sha256)
    yield from _pair("version", record.version, drawn.version)
    for name in PACKAGES:
        yield from _pair(name, record.environment.get(name), drawn.environment.get(name))
    if record.environment.get("device"):
        yield from _pair("device", record.environment["device"], drawn.environment.get("device"))
    if record.degraded:
        reason = str(record.degraded[-1].get("because", "memory ran out"))
        yield Explanation(field="setup", then=f"changed while it was drawn: {reason}", now="the same throughout")
    if record.batch.size > 1 and not record.batch.members:
        yield Explanation(field="batch", then=f"{record.batch.size} images at once", now="alone")


_LEFT_OUT = {"negative_prompt": "", "clip_skip": 1}  # by the text where they are these
_IN_TEXT = {
    "prompts": "prompt", "negative_prompt": "negative_prompt", "seeds": "seed", "steps": "steps",
    "guidance": "guidance", "width": "width", "height": "height", "sampler": "sampler", "clip_skip": "clip_skip",
}  # fmt: skip


def _told_twice(record: ImageRecord, text: Mapping[str, Any]) -> Iterator[Explanation]:
    for name, field in _IN_TEXT.items() if text else ():
        value = text.get(name, _LEFT_OUT.get(name))
        value = value[0] if isinstance(value, tuple) and value else value
        if value is None or (field == "prompt" and not value):
            continue
        mine = getattr(record.job, field)
        if value != mine:
            yield Explanation(field=field, then=f"{mine} in one place, {value} in another", now=f"{mine} was drawn")


def _of_job(then: Job, now: Job) -> Iterator[Explanation]:
    before, after = schema.to_json(then), schema.to_json(now)
    for name in before:
        if name not in NOT_DRAWN:
            yield from _pair(name, before[name], after[name])


def _of_setup(then: Setup, now: Setup) -> Iterator[Explanation]:
    for one in fields(Setup):
        before, after = (schema.to_json(getattr(setup, one.name)) for setup in (then, now))
        if one.name == "adapters":
            before, after = ([_known(adapter) for adapter in adapters] for adapters in (before, after))
        yield from _pair(one.name, before, after)


def _of_scheduler(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Explanation]:
    """Of another kind all its settings are others."""
    if then.get("_class_name") != now.get("_class_name"):
        yield from _pair("sampler", then.get("_class_name"), now.get("_class_name"))
        return
    for name in dict.fromkeys((*then, *now)):
        yield from _pair(f"scheduler.{name}", then.get(name), now.get(name))


def _known(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """What of an adapter moves pixels."""
    return {name: adapter[name] for name in ("kind", "sha256", "scale", "word")}


def _pair(field: str, then: Any, now: Any) -> Iterator[Explanation]:
    if then != now:
        yield Explanation(field=field, then=_shown(then), now=_shown(now))


def _shown(value: Any) -> str:
    return "nothing" if value in (None, "", [], {}) else str(value)
