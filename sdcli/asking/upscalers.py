"""The requested upscalers: located, read, hashed, and among the model's components."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdcli.errors import Usage
from sdcli.machine import memories
from sdcli.models import adapter_files, cache
from sdcli.models.adapter_files import SearchFolder
from sdcli.models.model import Model
from sdcli.near import LIKELY, nearest
from sdcli.plan.plan import Adapter
from sdcli.request.request import UPSCALERS, Job
from sdcli.terminal import show

if TYPE_CHECKING:
    from sdcli.models.upscaler import Upscaler


def gather(
    jobs: Sequence[Job], model: Model, folders: Iterable[Path]
) -> tuple[tuple[Job, ...], Model, tuple[Adapter, ...]]:
    """The jobs with their upscalers' names and components, the model with these, and the upscalers as part of a
    setup."""
    asked = dict.fromkeys(job.second.upscaler for job in jobs if job.second is not None and job.second.by_model)
    if not asked:
        return tuple(jobs), model, ()
    from sdcli.models import upscaler  # of no use to most commands

    where = adapter_files.search_folders(model, folders)
    found = {name: upscaler.read(located(name, where)) for name in asked}
    known = {name: (_called(one), upscaler.part(number)) for number, (name, one) in enumerate(found.items())}
    components = {**model.components, **{known[name][1]: one.component for name, one in found.items()}}
    named = tuple(_naming(jobs, known))
    return named, replace(model, components=components), tuple(map(adapter, found.values()))


def same(jobs: Iterable[Job], first: Sequence[Job], asked: Sequence[Job]) -> Iterator[Job]:
    """Jobs as they come; a later one may not ask for one that the `first`, as they were `asked` for, did not load."""
    known = {
        typed.second.upscaler: (job.second.upscaler, job.second.part)
        for job, typed in zip(first, asked, strict=True)
        if job.second is not None and typed.second is not None and typed.second.by_model
    }
    for job in jobs:
        if job.second is not None and job.second.by_model and job.second.upscaler not in known:
            raise Usage(
                f"prompt {job.index + 1} uses the upscaler {show(job.second.upscaler, 60)}, the first does not: a run "
                "loads the same for all its prompts",
                hint="a first line that uses it too",
            )
        yield from _naming([job], known)


def _naming(jobs: Iterable[Job], known: dict[str, tuple[str, str]]) -> Iterator[Job]:
    for job in jobs:
        if job.second is not None and job.second.by_model:
            name, part = known[job.second.upscaler]
            yield replace(job, second=replace(job.second, upscaler=name, part=part))
        else:
            yield job


def located(name: str, where: tuple[SearchFolder, ...]) -> Path:
    path = Path(os.path.expanduser(name))
    if not os.path.exists(path) and (near := nearest(name.casefold(), UPSCALERS, 1, LIKELY)):
        raise Usage(f'--upscaler: "{show(name, 60)}" is no file; did you mean {near[0]}?', hint=f"--upscaler {near[0]}")
    return adapter_files.find(name, "upscaler", where)


def adapter(found: Upscaler) -> Adapter:
    whole = cache.sha256_of_all(found.component.files, memories.store("hashes"))
    scale = float(found.scale)
    return Adapter(name=_called(found), sha256=whole, scale=scale, path=found.path, kind="upscaler")


def _called(found: Upscaler) -> str:
    """Its name, which is never that of a way that needs no model."""
    return Path(found.path).name if found.name.casefold() in UPSCALERS else found.name
