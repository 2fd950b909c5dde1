"""Adapters, the files used beside a model (LoRAs, embeddings, a VAE): parsed, located and hashed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sdcli.errors import BadFile, ModelMissing, Usage
from sdcli.models import hub_name, searching
from sdcli.models.cache import HashStore, sha256_of
from sdcli.models.headers import read_header
from sdcli.models.hub_name import SUFFIX, HubName
from sdcli.models.kinds import TITLES, kind_of
from sdcli.models.model import Component, Model
from sdcli.models.shipped import parameters_of
from sdcli.models.sniff import PICKLE_SUFFIXES
from sdcli.near import nearest
from sdcli.terminal import show

FLAGS = {
    "LoRA": "--lora", "embedding": "--embedding", "VAE": "--vae", "ControlNet": "--control",
    "IP-Adapter": "--reference-model", "upscaler": "--upscaler",
}  # fmt: skip
_FOLDERS = (  # what other programs call them
    "lora", "loras", "lycoris", "embeddings", "vae", "controlnet", "t2i_adapter", "ipadapter", "ip-adapter",
    "ip_adapter", "esrgan", "realesrgan", "upscale_models", "upscalers",
)  # fmt: skip
_WEIGHT = re.compile(r"[+-]?(\d{1,4}(\.\d{0,6})?|\.\d{1,6})", re.ASCII)


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
    name = hub_name.of_page(text) or hub_name.parse(text)
    path = Path(text)
    return None if name is None or os.path.exists(path) or os.path.isdir(path.parent) else name


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


# --- where the files are


class SearchFolder(NamedTuple):
    """A folder searched for names, and how deep."""

    folder: Path
    deepest: int = searching.DEEPEST


def search_folders(model: Model, folders: Iterable[Path]) -> tuple[SearchFolder, ...]:
    """The model's own folder, the adapter folders next to it and one above, then the added folders."""
    near: list[SearchFolder] = []
    if model.path and model.source in ("file", "folder"):
        beside = Path(model.path).parent
        # nothing below it: the model may be in a home or at the top of a disk
        named = [*_adapter_folders(beside), *_adapter_folders(beside.parent)]
        near = [SearchFolder(beside, 0), *map(SearchFolder, named)]
    return tuple(dict.fromkeys([*near, *map(SearchFolder, folders)]))


def _adapter_folders(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    yield from (entry for entry in entries if entry.name.casefold() in _FOLDERS and entry.is_dir())


def find(text: str, what: str, where: tuple[SearchFolder, ...], *, paths: bool = True) -> Path:
    """The file called `text`: a path, or a file's name in `where`. Names from images and prompts are never paths."""
    image = "=IMAGE" if what == "ControlNet" else ""
    if paths and _is_file(text):
        return Path(os.path.abspath(Path(text).expanduser()))
    if paths and (re.search(r"[\\/]", text) or text.casefold().endswith((SUFFIX, *PICKLE_SUFFIXES))):
        raise ModelMissing(f"there is no file {show(text, 200)}", hint=f"{FLAGS[what]} FILE{SUFFIX}{image}")
    by_name = _files_by_name(where, what)
    matches = by_name.get(text) or by_name.get(text.casefold())
    if matches is None:
        raise _unknown(text, what, where, by_name)
    if len(matches) > 1:
        listed = ", ".join(show(path, 120) for path in matches[:3])
        raise Usage(
            f'"{show(text, 80)}" matches {len(matches)} files: {listed}',
            hint=f'{FLAGS[what]} "{show(matches[0], 300)}"' + image,
        )
    return matches[0]


def _files_by_name(where: tuple[SearchFolder, ...], what: str) -> dict[str, list[Path]]:
    """Files by name, exact and in lower case; a name that occurs twice lists both files. A ControlNet in a diffusers
    folder is called as that is."""
    by_name: dict[str, list[Path]] = {}
    for folder in where:
        for path in _files(folder):
            whole = what == "ControlNet" and path.name in hub_name.COMPONENT and (path.parent / "config.json").is_file()
            found, called = (path.parent, path.parent.name) if whole else (path, path.stem)
            for name in {called, called.casefold()}:
                files = by_name.setdefault(name, [])
                if found not in files:
                    files.append(found)
    return by_name


def _files(where: SearchFolder) -> Iterator[Path]:
    for entry in searching.files([Path(os.path.abspath(where.folder))], where.deepest):
        if entry.name.casefold().endswith(SUFFIX):
            yield Path(entry.path)


def _unknown(text: str, what: str, where: tuple[SearchFolder, ...], names: Iterable[str]) -> ModelMissing:
    near = nearest(text, names, 2)
    tail = f"\n  near: {'   '.join(show(name, 80) for name in near)}" if near else ""
    searched = ", ".join(show(one.folder, 60) for one in where[:3])
    there = f" in {searched}" if searched else ""
    example = (show(near[0], 80) if near else f"FILE{SUFFIX}") + ("=IMAGE" if what == "ControlNet" else "")
    return ModelMissing(
        f'no {what} "{show(text, 80)}": no file has that name{there}{tail}',
        hint=f"{FLAGS[what]} {example}",
        near=list(near),
    )


# --- hashes


def tensors_sha256(path: Path, store: HashStore | None = None) -> str:
    """The sha256 of what follows the header, by which galleries identify a LoRA whatever its metadata."""
    header = read_header(path)
    in_metadata = header.metadata.get("sshs_model_hash", "")
    if re.fullmatch(r"[0-9a-f]{64}", in_metadata):
        return in_metadata
    return sha256_of(path, store, start=header.data_start)


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
    _check_vae(path, kind.latent_channels, part.parameters, model, own)
    component = Component(
        parameters=part.parameters, stored_bytes=part.bytes, stored_dtype=part.dtype, config=own.config,
        files=(str(path),),
    )  # fmt: skip
    return replace(model, components={**model.components, "vae": component})


def _check_vae(path: Path, channels: int, parameters: int, model: Model, own: Component) -> None:
    expected = own.config.get("latent_channels", 4)
    if channels != expected:
        raise BadFile(
            f"{show(path)} is a VAE with {channels} latent channels; {show(model.name, 80)} has {show(expected, 20)}",
            hint=f"{FLAGS['VAE']} FILE{SUFFIX}",
        )
    described = parameters_of("vae", own.config)
    if parameters < described:
        raise BadFile(
            f"{show(path)} has {parameters:,} VAE parameters; the VAE of {show(model.name, 80)} has {described:,}",
            hint=f"{FLAGS['VAE']} FILE{SUFFIX}",
        )
