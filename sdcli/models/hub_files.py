"""Which of a repository's files a model needs: safetensors, in half precision where there are any, and JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sdcli.errors import BadFile, ModelMissing, SdcliError, Unsafe, Usage
from sdcli.models import folder, hub_name
from sdcli.models.hub_name import HubName
from sdcli.models.sniff import PICKLE_SUFFIXES
from sdcli.terminal import show

_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
_NAMED = 10  # files that an error lists at most
_ANOTHER = "-m sd15"


@dataclass(frozen=True, kw_only=True)
class File:
    """A file as the hub lists it. `sha256` is given for large files, `git` (of a git blob) for small ones."""

    path: str
    size: int
    sha256: str | None = None
    git: str | None = None

    @property
    def hash(self) -> str:
        """Its name in the cache."""
        return self.sha256 or self.git or ""

    @property
    def part(self) -> str:
        """The component it belongs to: unet, vae …"""
        return self.path.split("/")[0]


def listed(siblings: Iterable[Any]) -> dict[str, File]:
    """The hub's list, as far as it can be understood."""
    files = map(_listed, siblings)
    return {file.path: file for file in files if file is not None}


def _listed(entry: Any) -> File | None:
    """By huggingface_hub's RepoSibling. A path that leads outside is no file's."""
    path, size, stored = entry.rfilename, entry.size, entry.lfs
    if not isinstance(path, str) or not hub_name.is_plain(path) or type(size) is not int or size < 0:
        return None
    sha256 = _hex(stored.sha256, 64) if stored else None
    return File(path=path, size=size, sha256=sha256, git=_hex(entry.blob_id, 40))


def _hex(text: Any, length: int) -> str | None:
    return text if isinstance(text, str) and re.fullmatch(rf"[0-9a-f]{{{length}}}", text) else None


def configs(files: Mapping[str, File], components: Iterable[str]) -> tuple[File, ...]:
    """What tells the kind of model, in a few kilobytes."""
    wanted = ["scheduler/scheduler_config.json", *(f"{part}/config.json" for part in components)]
    return _small(files, wanted)


def tokenizers(files: Mapping[str, File], components: Iterable[str]) -> tuple[File, ...]:
    """For models whose tokens are not CLIP's, and for other programs that use the same cache."""
    encoders = [part for part in components if part.startswith("text_encoder")]
    wanted = [f"{part.replace('text_encoder', 'tokenizer')}/{name}" for part in encoders for name in _TOKENIZER]
    return _small(files, wanted)


def _small(files: Mapping[str, File], wanted: Iterable[str]) -> tuple[File, ...]:
    return tuple(files[path] for path in wanted if path in files and files[path].size <= folder.LARGEST_JSON)


def single(files: Mapping[str, File], name: HubName) -> tuple[File, ...]:
    """The one file that is meant, and the settings beside it: peft's, or those of a component by itself."""
    path = name.file or hub_name.the_one(files)
    if path is None or path not in files:
        raise _which(files, name)
    alone = PurePosixPath(path).name in hub_name.COMPONENT
    beside = ("adapter_config.json", *(["config.json"] if alone else []))
    return files[path], *_small(files, [str(PurePosixPath(path).with_name(one)) for one in beside])


def _which(files: Mapping[str, File], name: HubName) -> SdcliError:
    where = show(name.repository)
    present = sorted(path for path in files if path.endswith(hub_name.SUFFIX))
    if not present:
        return _no_weights(files, where)
    listed = ", ".join(show(path, 80) for path in present[:_NAMED]) + (" …" if len(present) > _NAMED else "")
    again = str(HubName(name.repository, name.revision, present[0]))
    hint = f'sdcli pull "{show(again, 300)}"'
    if name.file is not None:
        return ModelMissing(f"{where} holds no {show(name.file, 120)}; it holds {listed}", hint=hint)
    return Usage(f"{where} holds {len(present)} files, and none is named: {listed}", hint=hint)


def weights(files: Mapping[str, File], components: Iterable[str], repository: str) -> tuple[File, ...]:
    """Per component: one file or its shards with their table, fp16 before the plain one."""
    return tuple(file for part in components for file in _weights(files, part, repository))


def _weights(files: Mapping[str, File], part: str, repository: str) -> tuple[File, ...]:
    stem = folder.stem_of(part)
    for variant in folder.VARIANTS:
        whole = files.get(f"{part}/{stem}{variant}.safetensors")
        if whole is not None:
            return (whole,)
        shards = _shards(files, part, stem, variant)
        if shards:
            return shards
    raise _no_weights((path for path in files if path.startswith(f"{part}/")), show(repository), f" for {part}")


def _shards(files: Mapping[str, File], part: str, stem: str, variant: str) -> tuple[File, ...]:
    tables = (f"{part}/{name}" for name in folder.shard_tables(stem, variant))
    table = next((files[path] for path in tables if path in files), None)
    if table is None or table.size > folder.LARGEST_JSON:
        return ()
    mark, number = re.escape(variant), r"-\d{5}-of-\d{5}"
    name = re.compile(rf"{part}/{stem}(?:{mark}{number}|{number}{mark})\.safetensors")
    shards = tuple(file for path, file in sorted(files.items()) if name.fullmatch(path))
    return (table, *shards) if shards else ()


def _no_weights(paths: Iterable[str], where: str, part: str = "") -> BadFile | Unsafe:
    pickles = [path for path in sorted(paths) if path.endswith(tuple(PICKLE_SUFFIXES))]
    if pickles:
        message = f"{where} has only pickles{part} ({show(pickles[0], 80)}); loading one can run code; refused"
        return Unsafe(message, hint=_ANOTHER)
    return BadFile(f"{where} has no .safetensors file{part}", hint=_ANOTHER)
