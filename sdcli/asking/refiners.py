"""The requested refiner: found as models are, checked against its base, hashed, and among the base's components."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sdcli import data
from sdcli.errors import BadFile, ModelMissing, SdcliError
from sdcli.machine import memories
from sdcli.models import cache, hub_cache, hub_name, resolve, vae
from sdcli.models.families import find
from sdcli.models.model import REFINER, Model
from sdcli.plan.plan import Adapter
from sdcli.request.request import Job, Refiner
from sdcli.terminal import show

_WITHOUT = "the same command without --refiner"
_PUBLISHED = "--refiner stabilityai/stable-diffusion-xl-refiner-1.0"


def located(asked: Refiner, folders: Iterable[Path], *, offline: bool, recorded: bool) -> Model:
    """The model that it names; `recorded`: in an image, which stores its name and not where it was."""
    folders = tuple(folders)
    try:
        return _named(asked.model.strip(), folders, offline)
    except ModelMissing as error:
        if recorded and not error.details.get("repository"):
            name = show(asked.model, 80)
            raise ModelMissing(
                f"the image was drawn with the refiner {name}, and there is no model of that name on this machine",
                hint=f"the same command with --refiner none   (or with the path of {name})",
            ) from None
        error.hint = _hint(error.hint)
        raise
    except SdcliError as error:
        error.hint = _hint(error.hint)
        raise


def gather(
    refiner: Model | None, jobs: Sequence[Job], model: Model
) -> tuple[tuple[Job, ...], Model, tuple[Adapter, ...]]:  # fmt: skip
    """The jobs with its name, the base with its components, and the refiner as part of a setup."""
    if refiner is None:
        return tuple(jobs), model, ()
    _check(refiner, model)
    parts = (*(encoder.part for encoder in find(refiner.family).encoders), "unet")
    own = {REFINER + part: refiner.components[part] for part in parts}
    together = replace(model, components={**model.components, **own}, refiner=refiner)
    return tuple(named(jobs, refiner)), together, (_adapter(refiner, parts, jobs),)


def named(jobs: Iterable[Job], refiner: Model | None) -> Iterator[Job]:
    """Jobs with its name in place of what was asked for."""
    for job in jobs:
        refined = job.refined
        yield job if refiner is None or refined is None else replace(job, refined=replace(refined, model=refiner.name))


def _named(text: str, folders: tuple[Path, ...], offline: bool) -> Model:
    """As -m takes it, or `owner/name@commit`; of what the Hub's cache holds, its name alone is enough."""
    hub = hub_cache.folder(os.environ)
    at_hub = hub_name.parse(text) if resolve.existing(text) is None else None
    commit = at_hub.revision if at_hub is not None and at_hub.file is None else None
    names = [at_hub.repository if at_hub is not None and commit else text]
    if "/" not in text:
        names += [one for one in hub_cache.repositories(hub) if one.partition("/")[2] == text][:1]
    for number, name in enumerate(names, 1):
        try:
            return resolve.resolve(
                name, revision=commit, offline=offline, folders=folders, hub=hub, builtin=data.builtin_model()
            )
        except ModelMissing:
            if number == len(names):
                raise
    raise AssertionError(names)


def _hint(hint: str) -> str:
    """What is wrong is not -m; another model than a refiner would not help."""
    if hint in ("-m sd15", "-m builtin"):
        return _WITHOUT
    return hint.replace("-m ", "--refiner ", 1) if hint.startswith("-m ") else hint


def _check(refiner: Model, base: Model) -> None:
    family, name, of = find(refiner.family), show(refiner.name, 80), show(base.name, 80)
    if not family.refines:
        raise BadFile(f"{name} is {family.title}, not a refiner", hint=_PUBLISHED)
    if base.family != family.refines:
        wanted = find(family.refines)
        hint = f"-m {wanted.known.alias}" if wanted.known is not None else _WITHOUT
        raise BadFile(f"{name} refines what {wanted.title} draws; {of} is {find(base.family).title}", hint=hint)
    if base.sees_mask:
        raise BadFile(f"{of} was trained to repaint, and {name} sees no mask", hint=_WITHOUT)
    if base.edits:
        raise BadFile(f"{of} was trained to edit an image, and {name} does not see it", hint=_WITHOUT)
    if _noise(refiner) != _noise(base):
        raise BadFile(
            f"{of} and {name} were trained on different noise ({_noise(base)}, {_noise(refiner)}): neither goes on "
            "where the other ends",
            hint=_WITHOUT,
        )
    if _latents(refiner) != _latents(base):
        raise BadFile(f"{name} was made for other latents than those of {of}", hint=_WITHOUT)


def _noise(model: Model) -> str:
    return model.prediction + (" to zero terminal SNR" if model.zero_snr else " with EDM's noise" if model.edm else "")


def _latents(model: Model) -> tuple[object, int]:
    """Their channels, and the pixels that one stands for."""
    return model.components["unet"].config.get("in_channels", 4), vae.scale(model.components["vae"].config)


def _adapter(refiner: Model, parts: Iterable[str], jobs: Sequence[Job]) -> Adapter:
    share = next((job.refined.share for job in jobs if job.refined is not None), 1.0)
    files = dict.fromkeys(file for part in parts for file in refiner.components[part].files)
    return Adapter(
        name=refiner.name, sha256=cache.sha256_of_all(files, memories.store("hashes")), scale=share,
        path=refiner.path, kind="refiner",
    )  # fmt: skip
