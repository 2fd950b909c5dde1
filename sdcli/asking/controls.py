"""The requested ControlNets and T2I-Adapters: located, checked against the model, hashed, among its components."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.asking.adapters import Fetch, in_cache, of_hub
from sdcli.errors import Usage
from sdcli.images.control import SHOWN
from sdcli.machine import memories
from sdcli.models import adapter_files, cache
from sdcli.models.model import Model, net_kind
from sdcli.plan.plan import Adapter
from sdcli.request.request import Control, Job
from sdcli.terminal import quoted, show

if TYPE_CHECKING:  # most commands use no net: what reads and counts them is imported by those that do
    from sdcli.models.controlnet import ControlNet


def gather(
    jobs: Sequence[Job], model: Model, folders: Iterable[Path], fetch: Fetch | None = None, offline: bool = False
) -> tuple[tuple[Job, ...], Model, tuple[Adapter, ...]]:
    """The jobs with their nets' names and components, the model with these, and the nets as part of a setup. The Hub's
    are fetched first."""
    asked = dict.fromkeys(control.net for job in jobs for control in job.controls)
    if not asked:
        return tuple(jobs), model, ()
    from sdcli.models import controlnet

    folders = tuple(folders)
    found = {name: _found(name, model, folders, fetch, offline) for name in asked}
    parts = dict(zip(found, controlnet.parts(net for net, _ in found.values()), strict=True))
    components = {**model.components, **{parts[name]: net.component for name, (net, _) in found.items()}}
    steered = replace(model, components=components)
    known = {name: (adapter.name, parts[name]) for name, (_, adapter) in found.items()}
    named = tuple(_named(job, known, steered) for job in jobs)
    return named, steered, tuple(adapter for _, adapter in found.values())


def _found(
    name: str, model: Model, folders: tuple[Path, ...], fetch: Fetch | None, offline: bool
) -> tuple[ControlNet, Adapter]:
    """A net that fits the model, and what is recorded of it."""
    from sdcli.models import controlnet

    path = Path(os.path.expanduser(name))
    at_hub = adapter_files.at_hub(name)
    snapshot = in_cache(at_hub, model, "ControlNet", fetch, offline) if at_hub is not None else None
    if snapshot is not None:
        path = snapshot.path
    elif not os.path.exists(path):
        path = adapter_files.find(name, "ControlNet", adapter_files.search_folders(model, folders))
    net = controlnet.read(path)
    adapter = _adapter(net)
    if at_hub is not None and snapshot is not None:
        adapter = of_hub(adapter, at_hub, snapshot)
        net = replace(net, name=adapter.name)
    controlnet.check_fits(net, model)
    return net, adapter


Known = Mapping[str, tuple[str, str]]  # a net as it was asked for → its name and its component


def _named(job: Job, known: Known, model: Model) -> Job:
    """The job with its nets' names and components, if these can steer it."""
    controls = []
    if job.controls:
        from sdcli.models import t2i_walk
    for asked in job.controls:
        name, part = known[asked.net]
        config = model.components[part].config
        kind = net_kind(part)
        control = replace(asked, net=name, part=part)
        if kind == "controlnet_union":
            control = replace(control, shows=_shown_by(control, asked.net, config))
        elif control.shows:
            raise Usage(
                f"{show(name, 60)} is no ControlNet Union: nothing tells it what an image shows",
                hint=f"--control {quoted(asked.net)}=FILE",
            )
        if kind == "t2i_adapter":
            _check_sizes(job, control, t2i_walk.unshuffled(config))
        controls.append(control)
    adapters = [control for control in controls if net_kind(control.part) == "t2i_adapter"]
    if adapters and len(adapters) == len(controls) and job.guess_mode:
        raise Usage(
            f"--guess-mode is for ControlNets; {show(adapters[0].net, 60)} is a T2I-Adapter",
            hint="the same command without --guess-mode",
        )
    return replace(job, controls=tuple(controls))


def _shown_by(control: Control, asked: str, config: Mapping[str, Any]) -> str:
    """What a ControlNet Union is told that its image shows: what was said, or what was made of it."""
    from sdcli.models import control_walk

    kinds = [kind for kind, number in SHOWN.items() if number < config.get("num_control_type", control_walk.KINDS)]
    shows = control.shows or control.made
    if shows in kinds:
        return shows
    hint = f"--control {quoted(asked)}:{kinds[min(1, len(kinds) - 1)]}={quoted(control.image.name)}"
    if shows in SHOWN:
        raise Usage(f"{show(control.net, 60)} was trained for {', '.join(kinds)}, not for {shows}", hint=hint)
    raise Usage(
        f"{show(control.net, 60)} is a ControlNet Union and has to be told what {show(control.image.name, 60)} shows: "
        f"{', '.join(kinds)}",
        hint=hint,
    )


def _check_sizes(job: Job, control: Control, multiple: int) -> None:
    wrong = [one for one in job.passes if one.width % multiple or one.height % multiple]
    if wrong:
        near = "x".join(str(max(multiple, side // multiple * multiple)) for side in (job.width, job.height))
        raise Usage(
            f"{show(control.net, 60)} steers sizes that are multiples of {multiple}, not "
            f"{wrong[0].width}×{wrong[0].height}",
            hint=f"--size {near}" if wrong[0] == job.passes[0] else "--hires 2",
        )


def same_nets(jobs: Iterable[Job], first: Sequence[Job], asked: Sequence[Job], model: Model) -> Iterator[Job]:
    """Jobs as they come; a later one may not ask for a net that the `first`, as they were `asked` for, did not load
    into the `model`."""
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
        yield _named(job, known, model)


def _adapter(net: ControlNet) -> Adapter:
    whole = cache.sha256_of_all(net.component.files, memories.store("hashes"))
    kind = "t2i-adapter" if net.part == "t2i_adapter" else "controlnet"
    return Adapter(name=net.name, sha256=whole, scale=1.0, path=net.path, kind=kind)
