"""From a name to a Model: an existing path, an alias, a file in the added folders, the Hub cache, then the Hub.

In that order. Only JSON and headers are read; nothing of a model can run code or choose what runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdcli.errors import BadFile, ModelMissing, Offline, SdcliError, Usage
from sdcli.models import checkpoint, folder, hub_cache, hub_name, searching
from sdcli.models.families import families
from sdcli.models.families.family import Family, Known
from sdcli.models.model import Model
from sdcli.models.shipped import component_of
from sdcli.models.sniff import PICKLE_SUFFIXES
from sdcli.near import nearest
from sdcli.terminal import disk_text, quoted, show

MODEL_SUFFIXES = (".safetensors", ".gguf", *sorted(PICKLE_SUFFIXES))


def resolve(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    folders: Iterable[Path] = (),
    hub: Path | None = None,
    builtin: Path | None = None,
) -> Model:
    """The model called `name`. `hub` is the Hub cache's folder; a known model that it lacks has cached=False, or raises
    Offline in offline mode."""
    text = name.strip()
    page = hub_name.of_page(text)
    if page is not None:
        text, revision = str(page._replace(revision=None)), revision or page.revision
    if not text:
        raise Usage("--model: no name", hint="-m sd15")
    folders = tuple(folders)
    path = existing(text)
    if path is not None and _is_meant(text, path):
        return at(path)
    model = _named(text, revision, offline, hub, builtin) or _added(text, folders)
    model = model or _single(text, revision, hub)
    if model is None and hub_name.is_repository(text):
        model = _cached_or_missing(text, revision, hub, offline)
    if model is not None:
        return model
    if path is not None:  # a folder without a model, and nothing else has that name
        return at(path)
    if _looks_like_a_path(text):
        at_hub = hub_name.parse(text)
        near = _near_file(Path(text))
        hint = f'sdcli pull "{show(text, 300)}"' if at_hub is not None and at_hub.file else "sdcli models"
        hint = f"-m {quoted(show(Path(text).with_name(near)))}" if near else hint
        tail = f"; near: {show(near, 120)}" if near else ""
        raise ModelMissing(f"there is no file or folder {show(text, 200)}{tail}", hint=hint)
    if hub_name.is_repository(text):
        raise _not_cached(text, revision, offline)
    raise _unknown(text, folders, hub)


def at(path: Path) -> Model:
    """The model in this folder or file."""
    path = Path(os.path.abspath(path))
    return folder.read(path) if os.path.isdir(path) else checkpoint.read(path)


def family_of(model: Model) -> Family:
    """The family that draws it, or BadFile naming what it is instead."""
    family = families().get(model.family)
    if family is None:
        raise BadFile(f"sdcli cannot draw with {show(model.name)}", hint="-m sd15")
    return family


# --- paths


def existing(text: str) -> Path | None:
    """The file or folder of that name, which may begin with `~`."""
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, the home of an unknown user
        raise ModelMissing(f"{show(text, 120)} is not a path", hint="sdcli models") from None


def _is_meant(text: str, path: Path) -> bool:
    """A bare word that happens to be a folder here need not be a path: `builtin`, `sd15`."""
    return _looks_like_a_path(text) or not os.path.isdir(path) or os.path.exists(path / "model_index.json")


def _looks_like_a_path(text: str) -> bool:
    return (
        text.startswith((".", "~", "/"))
        or "\\" in text
        or text.count("/") > 1
        or text.casefold().endswith(MODEL_SUFFIXES)
        or re.match(r"[A-Za-z]:", text) is not None
    )


def _near_file(path: Path) -> str:
    """The nearest name in the same folder, for a typo."""
    try:
        with os.scandir(path.expanduser().parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(5000), strict=False)]
    except (OSError, ValueError, RuntimeError):
        return ""
    near = nearest(path.name, names, 1)
    return near[0] if near else ""


# --- names that sdcli knows


def _named(text: str, revision: str | None, offline: bool, hub: Path | None, builtin: Path | None) -> Model | None:
    if text.casefold() == "builtin":
        if builtin is None:
            raise ModelMissing("this build of sdcli has no built-in model", hint="-m sd15")
        return folder.read(builtin, family="builtin")
    known = known_as(text)
    return None if known is None else _from_known(text, known, revision, offline, hub, builtin)


def known_as(text: str) -> Known | None:
    """The repository that an alias, its own id or a former one stands for."""
    word = text.casefold()
    names = ((known, (known.alias, known.repository, *known.formerly)) for known in _all_known())
    return next((known for known, aliases in names if word in map(str.casefold, aliases)), None)


def _all_known() -> Iterator[Known]:
    return (family.known for family in families().values() if family.known is not None)


def _from_known(
    text: str, known: Known, revision: str | None, offline: bool, hub: Path | None, builtin: Path | None
) -> Model:  # fmt: skip
    for repository, commit in ((known.repository, revision or known.revision), (text, revision)):
        if repository not in (known.repository, *known.formerly):
            continue
        try:  # incomplete or pickles only: download it
            cached = _cached(repository, commit, hub, known)
        except (ModelMissing, folder.OnlyPickles):
            continue
        if cached is not None:
            return cached
    absent = _not_downloaded(known, revision)
    if offline:
        raise Offline(
            f"{known.alias} ({known.repository}) is not on this machine, and offline mode forbids downloading it "
            f"({disk_text(absent.download_bytes)})",
            hint="-m builtin" if builtin else f"sdcli pull {known.alias}   (not in offline mode)",
        )
    return absent


def _not_downloaded(known: Known, revision: str | None) -> Model:
    """A known model, described by the shipped configs: enough to plan with before anything is downloaded."""
    family = next(f for f in families().values() if f.known is known)
    components = {name: component_of(family.name, name, "fp16") for name in family.components}
    size = sum(component.stored_bytes for component in components.values())
    return Model(
        name=known.alias, kind=family.name, family=family.name, source="hub", revision=revision or known.revision,
        cached=False, download_bytes=size, disk_bytes=size, components=components, repository=known.repository,
        licence=known.licence, empty_is_zeros=family.empty_is_zeros, scheduler=folder.shipped_scheduler(family.name),
    )  # fmt: skip


# --- the Hub's cache


def _cached(repository: str, revision: str | None, hub: Path | None, known: Known | None = None) -> Model | None:
    snapshot = hub_cache.snapshot(hub, repository, revision) if hub is not None else None
    if snapshot is None:
        return None
    return folder.read(
        snapshot.path, name=known.alias if known else repository.split("/")[1], source="hub",
        repository=repository, revision=snapshot.revision, licence=known.licence if known else None,
    )  # fmt: skip


def _single(text: str, revision: str | None, hub: Path | None) -> Model | None:
    """`owner/name/file.safetensors`, where the cache has that file."""
    name = hub_name.parse(text)
    if name is None or name.file is None or hub is None:
        return None
    file = hub_cache.file(hub, name._replace(revision=name.revision or revision))
    if file is None:
        return None
    return replace(checkpoint.read(file.path), source="hub", repository=name.repository, revision=file.revision)


def _cached_or_missing(repository: str, revision: str | None, hub: Path | None, offline: bool) -> Model | None:
    """The cached repository; an incomplete or pickles-only one is to be downloaded unless offline."""
    try:
        return _cached(repository, revision, hub)
    except (ModelMissing, folder.OnlyPickles) as error:
        if not offline:
            error.details.update(repository=repository, revision=revision)
            error.hint = f"sdcli pull {show(repository)}" + (f" --revision {show(revision, 60)}" if revision else "")
        raise


def _not_cached(repository: str, revision: str | None, offline: bool) -> SdcliError:
    error = Offline if offline else ModelMissing
    to_fetch: dict[str, Any] = {} if offline else {"repository": repository, "revision": revision}
    commit = f" at {show(revision, 60)}" if revision else ""
    return error(
        f"{show(repository)}{commit} is not in the Hugging Face cache of this machine",
        hint=f"sdcli pull {show(repository)}" + (f" --revision {show(revision, 60)}" if revision else ""),
        **to_fetch,
    )


# --- files in added folders


def _added(text: str, folders: tuple[Path, ...]) -> Model | None:
    """The model of that short name, or file name, if the added folders have just one."""
    paths = [path for path in _models_in(folders) if text in (path.name, _short(path))]
    safe = [path for path in paths if path.suffix.casefold() not in PICKLE_SUFFIXES] or paths
    if len(safe) > 1:
        raise Usage(
            f'"{show(text, 80)}" matches {len(safe)} models: {", ".join(show(path, 120) for path in safe[:3])}',
            hint=f'-m "{show(safe[0], 300)}"',
        )
    return at(safe[0]) if safe else None


def _models_in(folders: tuple[Path, ...]) -> Iterator[Path]:
    """Model files and diffusers folders, at most DEEPEST below; nothing inside a folder that is a model."""
    for entry in searching.files(folders, is_model=_is_model):
        if entry.is_dir(follow_symlinks=False) or entry.name.casefold().endswith(MODEL_SUFFIXES):
            yield Path(entry.path)


def _is_model(folder: Path) -> bool:
    return os.path.isfile(folder / "model_index.json")


def _short(path: Path) -> str:
    return path.stem if path.name.casefold().endswith(MODEL_SUFFIXES) else path.name


# --- unknown names


def _unknown(text: str, folders: tuple[Path, ...], hub: Path | None) -> ModelMissing:
    paths = {_short(path): path for path in _models_in(folders)}
    cached = hub_cache.repositories(hub) if hub is not None else ()
    names = ["builtin", *(known.alias for known in _all_known()), *paths, *cached]
    near = nearest(text, names, 2)
    tail = f"\n  near: {'   '.join(_described(name, paths) for name in near)}" if near else ""
    searched = ", ".join(show(base, 60) for base in folders[:2])
    where = f"in {searched} or the Hugging Face cache" if searched else "or in the Hugging Face cache"
    return ModelMissing(
        f'no model "{show(text, 80)}": not an alias, a path, {where}{tail}',
        hint=f"-m {show(near[0], 80) if near else 'sd15'}",
        near=list(near),
    )


def _described(name: str, paths: dict[str, Path]) -> str:
    """`dreamshaper_8 (sd15, 2.13 GB)`; the bare name where its file is not a model."""
    if name not in paths:
        return show(name, 80)
    try:
        model = at(paths[name])
    except SdcliError:
        return show(name, 80)
    return f"{show(name, 80)} ({model.kind}, {disk_text(model.disk_bytes)})"
