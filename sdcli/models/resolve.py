"""From a name to a Model: an existing path, an alias, a file in the added folders, the Hub cache, then the Hub.

In that order. Only JSON and headers are read; nothing of a model can run code or choose what runs.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from sdcli.errors import BadFile, ModelMissing, Usage
from sdcli.models import checkpoint, folder, hub_cache
from sdcli.models.families import families
from sdcli.models.families.family import Family, Known
from sdcli.models.model import Model
from sdcli.models.shipped import component_of
from sdcli.terminal import show

MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


def resolve(
    name: str,
    *,
    revision: str | None = None,
    folders: Iterable[Path] = (),
    hub: Path | None = None,
    builtin: Path | None = None,
) -> Model:
    """The model called `name`. `hub` is the Hub cache's folder; what it lacks comes back with cached=False if known."""
    text = name.strip()
    if not text:
        raise Usage("--model: no name", hint='sdcli generate "a cat" -m sd15')
    path = _existing(text)
    if path is not None:
        return at(path)
    if text == "builtin":
        return _builtin(builtin)
    known = _known(text)
    if known is not None:
        return _from_hub(known.repository, revision or known.revision, hub, known=known)
    short = _short_names(folders)
    if text in short:
        return at(short[text])
    if _is_hub_id(text):
        return _from_hub(text, revision, hub)
    raise _unknown(text, short, hub)


def at(path: Path) -> Model:
    """The model in this folder or file."""
    return folder.read(path) if path.is_dir() else checkpoint.read(path)


def _existing(text: str) -> Path | None:
    """A path if it is one; a name that can only be a path but does not exist is said to be absent."""
    try:
        path = Path(text).expanduser()
        if path.exists():
            return path.absolute()
    except (OSError, ValueError, RuntimeError):
        raise ModelMissing(f"-m {show(text, 120)} is no path", hint="sdcli doctor") from None
    looks_like_path = (
        text.startswith((".", "~", "/", "\\")) or text.casefold().endswith(MODEL_SUFFIXES) or "\\" in text
        or text.count("/") > 1
    )  # fmt: skip
    if looks_like_path:
        raise ModelMissing(f"there is nothing at {show(text, 200)}{_beside(path)}", hint="sdcli doctor")
    return None


def _beside(path: Path) -> str:
    """The nearest name in the same folder, for a slip of the finger."""
    try:
        names = [entry.name for entry in os.scandir(path.parent)][:5000]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"; near: {show(near[0], 120)}" if near else ""


def _builtin(shipped: Path | None) -> Model:
    if shipped is None:
        raise ModelMissing("this build of sdcli has no built-in model", hint='sdcli generate "a cat" -m sd15')
    return folder.read(shipped, family="builtin")


def _known(text: str) -> Known | None:
    for family in families().values():
        known = family.known
        if known is not None and text in (known.alias, known.repository, *known.formerly):
            return known
    return None


def _is_hub_id(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}", text, re.ASCII) is not None


def _from_hub(repository: str, revision: str | None, hub: Path | None, known: Known | None = None) -> Model:
    snapshot = hub_cache.snapshot(hub, repository, revision) if hub is not None else None
    if snapshot is not None:
        return folder.read(
            snapshot.path, name=known.alias if known else repository.split("/")[1], source="hub",
            repository=repository, revision=snapshot.revision, licence=known.licence if known else None,
        )  # fmt: skip
    if known is None:
        raise ModelMissing(
            f"{show(repository)} is not in the Hugging Face cache of this machine",
            hint=f"hf download {show(repository)}",
        )
    return _not_yet_here(known)


def _not_yet_here(known: Known) -> Model:
    """A known model, described by the shipped configs: enough to plan with before anything is fetched."""
    family = next(f for f in families().values() if f.known is known)
    components = {name: component_of(family.name, name, "fp16") for name in family.components}
    size = sum(component.stored_bytes for component in components.values())
    return Model(
        name=known.alias, kind=family.name, family=family.name, source="hub", revision=known.revision, cached=False,
        download_bytes=size, disk_bytes=size, components=components, repository=known.repository,
        licence=known.licence, scheduler=folder.shipped_scheduler(family.name),
    )  # fmt: skip


def _short_names(folders: Iterable[Path]) -> dict[str, Path]:
    """Files and model folders by their names without the ending; a name that stands twice belongs to neither."""
    found: dict[str, list[Path]] = {}
    for base in folders:
        for path in sorted(base.glob("*")) if base.is_dir() else ():
            if path.suffix == ".safetensors" or (path / "model_index.json").is_file():
                found.setdefault(path.stem if path.is_file() else path.name, []).append(path)
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}


def _unknown(text: str, short: dict[str, Path], hub: Path | None) -> ModelMissing:
    cached = hub_cache.repositories(hub) if hub is not None else ()
    names = ["builtin", *(f.known.alias for f in families().values() if f.known), *short, *cached]
    near = difflib.get_close_matches(text, names, n=2, cutoff=0.5)
    tail = f"; near: {', '.join(show(n, 80) for n in near)}" if near else ""
    return ModelMissing(
        f'no model "{show(text, 80)}": not an alias, a path, or in the Hugging Face cache{tail}',
        hint=f'sdcli generate "a cat" -m {show(near[0], 80) if near else "sd15"}',
        near=near,
    )


def family_of(model: Model) -> Family:
    """The family that draws it, or BadFile naming what it is instead."""
    found = families().get(model.family)
    if found is None:
        raise BadFile(f"{show(model.name)} cannot be drawn with", hint='sdcli generate "a cat" -m sd15')
    return found
