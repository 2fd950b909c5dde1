"""Whether an image is what its settings draw: how far off it is, and what of its record explains that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sdcli import __version__
from sdcli.images.difference import Difference
from sdcli.record.metadata import a1111, differing
from sdcli.record.metadata.differing import Differing
from sdcli.record.metadata.own import ImageRecord


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Something of the record that is otherwise now. `confirmed`: it was drawn so, and gave the very pixels."""

    field: str
    then: str
    now: str
    confirmed: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`edited`: the pixels in the file are not those that its record names. `difference` is None where the file keeps
    no exact pixels (jpg, webp), or has another size. `searched`: how often it was drawn with one thing otherwise."""

    file: str
    verdict: str  # identical | different
    dialect: str
    edited: bool = False
    difference: Difference | None = None
    explained: tuple[Explanation, ...] = ()
    searched: int = 0
    not_searched: str = ""  # what more of that would take, where it was too much to do unasked
    not_followed: Mapping[str, str] | None = None  # settings of another program that sdcli has nothing for

    @property
    def identical(self) -> bool:
        return self.verdict == "identical"


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    schema: str = "sdcli.verify/1"
    version: str = __version__
    images: tuple[Verdict, ...]


def explanations(record: ImageRecord, now: ImageRecord, text: str | None) -> Iterator[Explanation]:
    """All that is otherwise now; first what the file says of itself twice, and not alike: then it was altered. `text`
    is what it holds for other programs, beside the record."""
    for row in _told_twice(record, text):
        ours, theirs = _shown(row.a), _shown(row.b)
        yield Explanation(field=row.name, then=f"{ours} in one place, {theirs} in another", now=f"{ours} was drawn")
    for row in differing.moving(record, now):
        if row.name == "degraded":
            reason = str(record.degraded[-1].get("because", "memory ran out"))
            yield Explanation(field="setup", then=f"changed while it was drawn: {reason}", now="the same throughout")
        else:
            yield Explanation(field=row.name, then=_shown(row.a), now=_shown(row.b))


def _told_twice(record: ImageRecord, text: str | None) -> Iterator[Differing]:
    """In the record and in the text that was made of it; in the record and in its batch."""
    if text is not None:
        made = a1111.write(a1111.infotext(record.job, record.setup, record.model, record.version))
        ours, theirs = (a1111.values(a1111.read(one))[0] for one in (made, text))
        yield from differing.of_values(ours, theirs)
    members, position = record.batch.members, record.batch.position
    if position < len(members):
        yield from differing.moving(record, replace(record, job=members[position]))


def _shown(value: Any) -> str:
    return "nothing" if value in (None, "", [], {}) else str(value)
