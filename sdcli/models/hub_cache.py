"""The Hugging Face cache on this disk, read without the network: which repositories and commits it has."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sdcli import reading
from sdcli.models import hub_name
from sdcli.models.hub_name import HubName


class Snapshot(NamedTuple):
    path: Path
    revision: str


def folder(environment: Mapping[str, str]) -> Path:
    """HF_HUB_CACHE, else HF_HOME/hub, else the default: the same order as in huggingface_hub."""
    named = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return Path(os.path.expanduser(named))
    home = environment.get("HF_HOME")
    if home:
        return Path(os.path.expanduser(home)) / "hub"
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "huggingface" / "hub"


def repository_folder(cache: Path, repository: str) -> Path:
    """One repository's folder in the cache: blobs by hash, snapshots by commit, refs by branch."""
    return cache / f"models--{repository.replace('/', '--')}"


def reference(base: Path, revision: str) -> Path | None:
    """The file that says which commit a branch or a tag was; None for what cannot be the name of one."""
    plain = re.fullmatch(r"\w[\w.\-/]{0,199}", revision, re.ASCII) and ".." not in revision
    return base / "refs" / revision if plain else None


def snapshot(cache: Path, repository: str, revision: str | None) -> Snapshot | None:
    """The files of one commit: `revision`, or what `main` pointed at when it was fetched."""
    commit = _commit(repository_folder(cache, repository), revision or "main")
    if commit is None:
        return None
    path = repository_folder(cache, repository) / "snapshots" / commit
    return Snapshot(path, commit) if (path / "model_index.json").is_file() else None


def file(cache: Path, name: HubName) -> Snapshot | None:
    """One file of a repository, and its commit: the file named, else the obvious one of those cached."""
    commit = _commit(repository_folder(cache, name.repository), name.revision or "main")
    if commit is None:
        return None
    base = repository_folder(cache, name.repository) / "snapshots" / commit
    chosen = name.file or hub_name.the_one(path.relative_to(base).as_posix() for path in base.rglob("*"))
    if chosen is None or (name.file is None and (base / "model_index.json").is_file()):
        return None
    return Snapshot(base / chosen, commit) if (base / chosen).is_file() else None


def _commit(base: Path, revision: str) -> str | None:
    """The full commit that a commit, its first letters, a branch or a tag stands for."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    file = reference(base, revision)
    if file is None:
        return None
    try:
        commit = reading.whole(file, 1000).decode("ascii").strip()
    except (OSError, ValueError):
        return _by_first_letters(base, revision)
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


def _by_first_letters(base: Path, revision: str) -> str | None:
    if not re.fullmatch(r"[0-9a-f]{7,39}", revision):
        return None
    try:
        fitting = [entry.name for entry in os.scandir(base / "snapshots") if entry.name.startswith(revision)]
    except OSError:
        return None
    return fitting[0] if len(fitting) == 1 else None


def expected_sha256(path: Path) -> str | None:
    """The hub's sha256 of a file: in the cache a large file is a link to a blob named after it."""
    blob = path.resolve().name if path.is_symlink() else ""
    return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None


def repositories(cache: Path) -> tuple[str, ...]:
    try:
        names = [entry.name for entry in os.scandir(cache) if entry.name.startswith("models--")]
    except OSError:
        return ()
    return tuple(sorted(name.removeprefix("models--").replace("--", "/", 1) for name in names))
