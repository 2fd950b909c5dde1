"""A model that another machine names, with the files it has on this one: those of the same paths where folders are
shared, else those of the same name, fetched from the Hub where they are missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace

from sdcli import data
from sdcli.errors import BadFile, ModelMissing, SdcliError, from_json
from sdcli.machine import memories
from sdcli.machine.folders import config_file
from sdcli.models import cache, hub_cache, resolve
from sdcli.models.model import REFINER, Component, Model
from sdcli.request import config
from sdcli.terminal import show
from sdcli.workers.worker import environment


def hashes(model: Model) -> dict[str, str]:
    """What the files of each component are known by."""
    return {name: _hash(part) for name, part in model.components.items()}


def located(model: Model, name: str, expected: Mapping[str, str], *, offline: bool = False) -> Model:
    """`name` is what was asked for; `expected` what the files of each component must hash to."""
    found = _with_files_here(model, name, offline)
    for component, part in found.components.items():
        if _hash(part) != expected[component]:
            raise BadFile(f"{show(model.name, 80)} is another one here: its {component} differs")
    return found


def _with_files_here(model: Model, name: str, offline: bool) -> Model:
    if all(map(_is_here, model.components.values())):
        return model
    refiner = model.refiner and _with_files_here(model.refiner, model.refiner.name, offline)
    own = _own(name, model.revision, offline)
    components = {
        one: part if _is_here(part) else _same(one, own, refiner) or _missing(part)
        for one, part in model.components.items()
    }
    path, vocabulary = (
        mine if theirs is not None and not os.path.exists(theirs) else theirs
        for theirs, mine in ((model.path, own.path), (model.vocabulary, own.vocabulary))
    )
    return replace(model, components=components, path=path, vocabulary=vocabulary, refiner=refiner)


def _same(component: str, own: Model, refiner: Model | None) -> Component | None:
    if component.startswith(REFINER) and refiner is not None:
        return refiner.components.get(component.removeprefix(REFINER))
    return own.components.get(component)


def _missing(part: Component) -> Component:
    file = next(file for file in part.files if not os.path.exists(file))
    raise ModelMissing(f"there is no {show(file, 200)}", hint="a folder that all machines see")


def _is_here(part: Component) -> bool:
    return all(map(os.path.exists, part.files))


def _own(name: str, revision: str | None, offline: bool) -> Model:
    found = _resolved(name, revision)
    if isinstance(found, Model) and found.cached:
        return found
    if offline or os.path.isabs(name):
        if isinstance(found, SdcliError):
            raise found
        raise ModelMissing(f"{show(name, 80)} is not on this machine", hint=f"sdcli pull {show(name, 80)}")
    _pull(name, revision)
    found = _resolved(name, revision)
    if isinstance(found, Model):
        return found
    raise found


def _resolved(name: str, revision: str | None) -> Model | SdcliError:
    try:
        return resolve.resolve(
            name, revision=revision, folders=config.folders(config_file()), hub=hub_cache.folder(os.environ),
            builtin=data.builtin_model(),
        )  # fmt: skip
    except ModelMissing as error:
        return error


def _pull(name: str, revision: str | None) -> None:
    """As a command of its own: others here that lack it wait for the one that fetches it."""
    words: Iterable[str] = [name, *(["--revision", revision] if revision else [])]
    command = [sys.executable, "-P", "-m", "sdcli", "pull", *words, "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, env=environment(), stdin=subprocess.DEVNULL)
    if done.returncode:
        try:
            raise from_json(json.loads(done.stdout)["error"])
        except (ValueError, KeyError, TypeError):
            raise ModelMissing(f"{show(name, 80)} could not be fetched", hint=f"sdcli pull {show(name, 80)}") from None


def _hash(part: Component) -> str:
    return cache.sha256_of_all(part.files, memories.store("hashes"))
