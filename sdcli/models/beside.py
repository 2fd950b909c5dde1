"""Adapters, the files used beside a model (LoRAs, embeddings, a VAE): parsed, located and hashed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sdcli import reading
from sdcli.errors import BadFile, ModelMissing, Usage
from sdcli.models import hub_name, searching
from sdcli.models.cache import Memory
from sdcli.models.headers import Header, read_header
from sdcli.models.hub_name import HubName
from sdcli.models.kinds import TITLES, kind_of
from sdcli.models.model import Component, Model
from sdcli.models.shipped import parameters_of
from sdcli.models.sniff import PICKLE_SUFFIXES
from sdcli.near import nearest
from sdcli.terminal import show

SUFFIX = ".safetensors"
FLAGS = {"LoRA": "--lora", "embedding": "--embedding", "VAE": "--vae"}
_FOLDERS = ("lora", "loras", "lycoris", "embeddings", "vae")  # what other programs call them
_WEIGHT = re.compile(r"[+-]?(\d{1,4}(\.\d{0,6})?|\.\d{1,6})", re.ASCII)
_AT_ONCE = 4 << 20


# --- what was typed


def weighted(text: str) -> tuple[str, float]:
    """`FILE[:WEIGHT]`. A path that exists wins, whatever colons it has; a drive's colon is not a separator."""
    name, colon, weight = text.rpartition(":")
    if _is_file(text) or not colon or not name:
        return text, 1.0
    if _WEIGHT.fullmatch(weight.strip()):
        return name, float(weight)
    if _is_file(name):
        raise Usage(f'--lora: "{show(weight, 40)}" is not a weight', hint=f'{FLAGS["LoRA"]} "{show(name, 200)}:0.8"')
    return text, 1.0


def with_word(text: str) -> tuple[str, str]:
    """`FILE[:WORD]`; without one the file's name is the word."""
    name, colon, word = text.rpartition(":")
    drive = len(name) == 1 and name.isalpha()
    if _is_file(text) or not colon or not name or drive or not word.strip() or re.search(r"[\\/]", word):
        return text, ""
    return name, word.strip()


def at_hub(text: str) -> HubName | None:
    """A name on the Hub (owner/name, owner/name/file), unless the path or its folder exists on this machine."""
    found = hub_name.of_page(text) or hub_name.parse(text)
    if found is None:
        return None
    path = Path(text)
    return None if path.exists() or path.parent.is_dir() else found


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


# --- where it is


@dataclass(frozen=True)
class Place:
    """A folder searched for names, and how deep."""

    folder: Path
    deepest: int = searching.DEEPEST


def places(model: Model, folders: Iterable[Path]) -> tuple[Place, ...]:
    """The model's own folder, the adapter folders next to it and one above, then the added folders."""
    found: list[Place] = []
    if model.path and model.source in ("file", "folder"):
        beside = Path(model.path).parent
        # not below: the model may lie in a home or at the top of a disk
        found = [Place(beside, 0), *map(Place, _kept_near(beside)), *map(Place, _kept_near(beside.parent))]
    return tuple(dict.fromkeys([*found, *map(Place, folders)]))


def _kept_near(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    yield from (entry for entry in entries if entry.name.casefold() in _FOLDERS and entry.is_dir())


def find(text: str, what: str, where: tuple[Place, ...], *, paths: bool = True) -> Path:
    """The file called `text`: a path, or a file's name in `where`. Names from images and prompts are never paths."""
    if paths and _is_file(text):
        return Path(os.path.abspath(Path(text).expanduser()))
    if paths and (re.search(r"[\\/]", text) or text.casefold().endswith((SUFFIX, *PICKLE_SUFFIXES))):
        raise ModelMissing(f"there is no file {show(text, 200)}", hint=f"{FLAGS[what]} FILE{SUFFIX}")
    known = _named(where)
    found = known.get(text) or known.get(text.casefold())
    if found is None:
        raise _unknown(text, what, where, known)
    if len(found) > 1:
        listed = ", ".join(show(path, 120) for path in found[:3])
        raise Usage(
            f'"{show(text, 80)}" matches {len(found)} files: {listed}', hint=f'{FLAGS[what]} "{show(found[0], 300)}"'
        )
    return found[0]


def _named(where: tuple[Place, ...]) -> dict[str, list[Path]]:
    """Files by name, exact and in lower case; a name that occurs twice lists both files."""
    found: dict[str, list[Path]] = {}
    for place in where:
        for path in _files(place):
            for name in {path.stem, path.stem.casefold()}:
                held = found.setdefault(name, [])
                if path not in held:
                    held.append(path)
    return found


def _files(place: Place) -> Iterator[Path]:
    for entry in searching.files([Path(os.path.abspath(place.folder))], place.deepest):
        if entry.name.casefold().endswith(SUFFIX):
            yield Path(entry.path)


def _unknown(text: str, what: str, where: tuple[Place, ...], known: Iterable[str]) -> ModelMissing:
    near = nearest(text, known, 2)
    tail = f"\n  near: {'   '.join(show(name, 80) for name in near)}" if near else ""
    looked = ", ".join(show(place.folder, 60) for place in where[:3])
    there = f" in {looked}" if looked else ""
    example = show(near[0], 80) if near else f"FILE{SUFFIX}"
    return ModelMissing(
        f'no {what} "{show(text, 80)}": no file has that name{there}{tail}',
        hint=f"{FLAGS[what]} {example}",
        near=list(near),
    )


# --- hashes


def tensors_sha256(path: Path, memory: Memory | None = None) -> str:
    """The sha256 of what follows the header, by which galleries identify a LoRA: editing its metadata keeps it."""
    header = read_header(path)
    noted = header.metadata.get("sshs_model_hash", "")
    if re.fullmatch(r"[0-9a-f]{64}", noted):
        return noted
    status = path.stat()
    key, stamp = f"{path.absolute()}\ntensors", [status.st_size, status.st_mtime_ns]
    entry = memory.read().get(key) if memory is not None else None
    if isinstance(entry, dict) and entry.get("stamp") == stamp and isinstance(entry.get("sha256"), str):
        return str(entry["sha256"])
    found = _hash_from(path, header.data_start)
    if memory is not None:
        memory.update(key, lambda _: {"sha256": found, "stamp": stamp})
    return found


def _hash_from(path: Path, start: int) -> str:
    state = hashlib.sha256()
    with reading.opened(path) as file:
        file.seek(start)
        while piece := file.read(_AT_ONCE):
            state.update(piece)
    return state.hexdigest()


# --- another VAE


def with_vae(model: Model, path: Path) -> Model:
    """The model with this file's VAE in place of its own. The scaling of latents stays the model's."""
    header = read_header(path)
    kind = kind_of(header)
    part = kind.parts.get("vae")
    if part is None or kind.kind == "taesd":
        raise BadFile(
            f"{show(path)} is {TITLES.get(kind.kind, kind.kind)}, not a VAE", hint=f"{FLAGS['VAE']} FILE{SUFFIX}"
        )
    own = model.components["vae"]
    _check_vae(path, header, kind.latent_channels, part.parameters, model, own)
    changed = Component(
        parameters=part.parameters, stored_bytes=part.bytes, stored_dtype=part.dtype, config=own.config,
        files=(str(path),),
    )  # fmt: skip
    return replace(model, components={**model.components, "vae": changed})


def _check_vae(path: Path, header: Header, channels: int, parameters: int, model: Model, own: Component) -> None:
    wanted = own.config.get("latent_channels", 4)
    if channels != wanted:
        raise BadFile(
            f"{show(path)} is a VAE with {channels} latent channels; {show(model.name, 80)} has {show(wanted, 20)}",
            hint=f"{FLAGS['VAE']} FILE{SUFFIX}",
        )
    described = parameters_of("vae", own.config)
    if parameters < described:
        raise BadFile(
            f"{show(path)} has {parameters:,} VAE parameters; the VAE of {show(model.name, 80)} has {described:,}",
            hint=f"{FLAGS['VAE']} FILE{SUFFIX}",
        )
