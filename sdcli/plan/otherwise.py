"""Plans in which one thing is otherwise: what an image may have been drawn with, where it was not what is recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sdcli.plan.plan import Plan, Setup
from sdcli.plan.techniques import TECHNIQUES, attention
from sdcli.plan.techniques.technique import Technique
from sdcli.plan.techniques.vae import TILES
from sdcli.request.options import OPTIONS

MOST = 16
_MARKS = re.compile(r"[()\[\]]|\bBREAK\b")


@dataclass(frozen=True, kw_only=True)
class Otherwise:
    """`field` is named as verify and diff name it; `before` is what the plan had there."""

    field: str
    before: str
    choice: str
    plan: Plan


def otherwise(plan: Plan) -> tuple[Otherwise, ...]:
    """One thing each, of the setup or of what the jobs of a batch share; the likeliest first. Not all of them can be
    drawn on every device."""
    dtype, *slots = (technique for technique in TECHNIQUES if technique.moves_pixels)
    every = [*_slot(plan, dtype), *_of_jobs(plan)]
    for technique in slots:
        every += _slot(plan, technique)
    return tuple([*every, *_threads(plan)][:MOST])


def _slot(plan: Plan, technique: Technique) -> Iterator[Otherwise]:
    """Choices that are taken without being asked for, and make a difference."""
    now = technique.of(plan.setup)
    if technique.slot == "guidance" and not any(job.guided for job in plan.jobs):
        return
    for choice in technique.choices:
        alike = {now, choice} <= technique.alike or (technique.slot == "vae" and _is_one_tile(choice, plan))
        if choice == now or alike or choice in technique.by_pin | technique.lossy:
            continue
        setup = technique.put(plan.setup, choice)
        if choice == "blocked" and not setup.blocks:
            setup = attention.settled(setup, plan.hardware)
        yield _with_setup(plan, technique.slot, now, choice, setup)


def _is_one_tile(choice: str, plan: Plan) -> bool:
    return all(max(job.size) <= TILES.get(choice, 0) for job in plan.jobs)


def _threads(plan: Plan) -> Iterator[Otherwise]:
    now = plan.setup.threads
    if plan.setup.device == "cpu":
        for count in dict.fromkeys((plan.hardware.best_threads, plan.hardware.threads, 1)):
            if count != now:
                yield _with_setup(plan, "threads", str(now), str(count), replace(plan.setup, threads=count))


def _with_setup(plan: Plan, field: str, before: str, choice: str, setup: Setup) -> Otherwise:
    return Otherwise(field=f"setup.{field}", before=before, choice=choice, plan=replace(plan, setup=setup))


def _of_jobs(plan: Plan) -> Iterator[Otherwise]:
    job = plan.jobs[0]
    yield _with_jobs(plan, "rng", "cpu" if job.rng == "nv" else "nv")
    yield _with_jobs(plan, "clip_skip", 1 if job.clip_skip > 1 else 2)
    if any(_MARKS.search(one.prompt + one.negative_prompt) for one in plan.jobs):
        ways = next(option.choices for option in OPTIONS if option.field == "emphasis")
        for way in ways:
            if way != job.emphasis:
                yield _with_jobs(plan, "emphasis", way)


def _with_jobs(plan: Plan, field: str, choice: Any) -> Otherwise:
    changed = replace(plan, jobs=tuple(replace(job, **{field: choice}) for job in plan.jobs))
    return Otherwise(field=field, before=str(getattr(plan.jobs[0], field)), choice=str(choice), plan=changed)
