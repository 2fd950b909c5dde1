"""The requested IP-Adapter and its image encoder: located, checked, hashed, and among the model's components."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sdcli.errors import Usage
from sdcli.machine import memories
from sdcli.models import adapter_files, cache
from sdcli.models.model import Component, Model
from sdcli.plan.plan import Adapter
from sdcli.request.request import Job, Request


def gather(
    request: Request, jobs: Sequence[Job], model: Model, folders: Iterable[Path]
) -> tuple[Model, tuple[Adapter, ...]]:
    """The model with these as components, and they as part of a setup."""
    if request.reference_model is None or not any(job.references for job in jobs):
        return model, ()
    from sdcli.models import reference  # not for those who draw without

    for layers in dict.fromkeys(one.layers for job in jobs for one in job.references):
        reference.check_layers(layers, model)
    where = adapter_files.search_folders(model, folders)
    adapter = reference.read(adapter_files.find(request.reference_model, "IP-Adapter", where))
    reference.check_fits(adapter, model)
    given = request.reference_encoder
    adapter, encoder = reference.with_encoder(adapter, Path(os.path.expanduser(given)) if given else None)
    components = {**model.components, reference.ENCODER: encoder.component, reference.PART: adapter.component}
    beside = (
        _adapter(adapter.name, "ip-adapter", adapter.component),
        _adapter(encoder.title, "image-encoder", encoder.component),
    )
    return replace(model, components=components), beside


def _adapter(name: str, kind: str, component: Component) -> Adapter:
    whole = cache.sha256_of_all(component.files, memories.store("hashes"))
    return Adapter(name=name, sha256=whole, scale=1.0, path=component.files[0], kind=kind)


def checked(jobs: Iterable[Job], model: Model) -> Iterator[Job]:
    """Jobs as they come; a later one may not have references if the first had none."""
    for job in jobs:
        if job.references and not model.sees_references:
            raise Usage(
                f"prompt {job.index + 1} has a reference image, the first has none: a run loads the same for all its "
                "prompts",
                hint="a first line that has one too",
            )
        yield job
