"""The requested ControlNets: located, checked against the model, hashed, and among its components."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sdcli.errors import Usage
from sdcli.machine import memories
from sdcli.models import adapter_files, cache, controlnet
from sdcli.models.controlnet import ControlNet
from sdcli.models.model import Model
from sdcli.plan.plan import Adapter
from sdcli.request.request import Job
from sdcli.terminal import show


def gather(
    jobs: Sequence[Job], model: Model, folders: Iterable[Path]
) -> tuple[tuple[Job, ...], Model, tuple[Adapter, ...]]:
    """The jobs with their nets' names and components, the model with these, and the nets as part of a setup."""
    asked = dict.fromkeys(control.net for job in jobs for control in job.controls)
    if not asked:
        return tuple(jobs), model, ()
    folders = tuple(folders)
    nets = {name: controlnet.read(_located(name, model, folders)) for name in asked}
    for net in nets.values():
        controlnet.check_fits(net, model)
    parts = {name: controlnet.part(number) for number, name in enumerate(nets)}
    components = {**model.components, **{parts[name]: net.component for name, net in nets.items()}}
    named = tuple(
        replace(job, controls=tuple(
            replace(control, net=nets[control.net].name, part=parts[control.net]) for control in job.controls
        ))
        for job in jobs
    )  # fmt: skip
    return named, replace(model, components=components), tuple(map(_adapter, nets.values()))


def same_nets(jobs: Iterable[Job], first: Sequence[Job], asked: Sequence[Job]) -> Iterator[Job]:
    """Jobs as they come; a later one may not ask for a net that the `first`, as they were `asked` for, did not load."""
    known = {
        typed.net: (control.net, control.part)
        for job, before in zip(first, asked, strict=True)
        for control, typed in zip(job.controls, before.controls, strict=True)
    }
    for job in jobs:
        new = next((control.net for control in job.controls if control.net not in known), None)
        if new is not None:
            raise Usage(
                f"prompt {job.index + 1} uses the ControlNet {show(new, 60)}, the first does not: a run loads the same "
                "for all its prompts",
                hint="a first line that uses it too",
            )
        named = ((control, *known[control.net]) for control in job.controls)
        yield replace(job, controls=tuple(replace(control, net=net, part=part) for control, net, part in named))


def made_again(before: Model, model: Model) -> Model:
    """A model whose files were read anew, with what was planned for beside its own components."""
    beside = {name: part for name, part in before.components.items() if name not in model.components}
    return replace(model, components={**model.components, **beside})


def _located(name: str, model: Model, folders: tuple[Path, ...]) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    return adapter_files.find(name, "ControlNet", adapter_files.search_folders(model, folders))


def _adapter(net: ControlNet) -> Adapter:
    whole = cache.sha256_of_all(net.component.files, memories.store("hashes"))
    return Adapter(name=net.name, sha256=whole, scale=1.0, path=net.path, kind="controlnet")
