"""What models there are: every file and folder named from its header, and remembered by path, size and time, so that
ten thousand files are listed without opening one of them again."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdcli import reading, schema
from sdcli.errors import SdcliError, Unsafe
from sdcli.files import REAL, replace_whole
from sdcli.models import embedding, folder, hub_cache, kinds
from sdcli.models.headers import Header, read_header
from sdcli.models.resolve import known_as
from sdcli.models.searching import DEEPEST, MOST_FILES
from sdcli.models.sniff import PICKLE_SUFFIXES
from sdcli.terminal import show

SUFFIX = ".safetensors"
INDEX = "model_index.json"
MOST_WORDS = 5
_WHAT = "sdcli.listing/2"  # raised when what is read out of a file changes, so that old memories are forgotten
_LARGEST_MEMORY = 64 << 20
_MOST_REMEMBERED = 50_000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file or folder. `error` says why it is not one to use; then the rest is what could be found out."""

    name: str
    path: str
    source: str  # builtin | cache | folder
    kind: str = "unknown"  # sd15 | sdxl | lora | vae …
    family: str = ""
    layout: str = ""
    bytes: int = 0
    dtype: str = ""
    prediction: str = ""
    drawn: bool = False  # sdcli can draw with it
    words: tuple[str, ...] = ()  # that a LoRA was trained on, or that an embedding stands for
    revision: str | None = None
    error: str | None = None


@dataclass
class Memory:
    """What was read before. `path` None remembers nothing; a damaged file is an empty memory."""

    path: Path | None = None
    known: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)  # what is known and still there, or new
    changed: bool = False

    def get(self, key: str, stamp: list[int]) -> Entry | None:
        held = self.known.get(key)
        if not isinstance(held, dict) or held.get("stamp") != stamp:
            return None
        entry = _remembered(held.get("entry"))
        if entry is not None:
            self.seen[key] = held
        return entry

    def put(self, key: str, stamp: list[int], entry: Entry) -> None:
        self.seen[key] = {"stamp": stamp, "entry": schema.to_json(entry)}
        self.changed = True


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "path", "source", "kind", "family", "layout", "dtype", "prediction"), (str,)),
    "bytes": (int,), "drawn": (bool,), "words": (list,), "revision": (str, type(None)), "error": (str, type(None)),
}  # fmt: skip


def _remembered(fields: Any) -> Entry | None:
    """An Entry from its JSON, checked here, not by schema: ten thousand of them must be read fast."""
    if not isinstance(fields, dict) or fields.keys() != _TYPES.keys():
        return None
    if not all(type(fields[name]) in types for name, types in _TYPES.items()):
        return None
    if not all(isinstance(word, str) for word in fields["words"]):
        return None
    return Entry(**{**fields, "words": tuple(fields["words"])})


def recall(path: Path | None) -> Memory:
    if path is None:
        return Memory()
    data = reading.recall(path, _LARGEST_MEMORY)
    entries = data.get("entries") if data.get("schema") == _WHAT else None
    return Memory(path, entries if isinstance(entries, dict) else {})


def keep(memory: Memory) -> None:
    """Write down what is new, beside what is known of other places; a memory that cannot be kept costs time only."""
    if memory.path is None or not memory.changed:
        return
    newest = dict(list({**memory.known, **memory.seen}.items())[-_MOST_REMEMBERED:])
    content = json.dumps({"schema": _WHAT, "entries": newest}).encode()
    with contextlib.suppress(OSError):
        memory.path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(REAL, memory.path, [content], sync=False)


# --- what is where


@dataclass(frozen=True)
class Found:
    """Something that may be a model: its stamp is the sizes and times of all that was read of it."""

    path: Path
    stamp: list[int]
    size: int
    is_folder: bool = False


def listed(
    *, folders: Iterable[Path] = (), hub: Path | None = None, builtin: Path | None = None, memory: Memory | None = None
) -> list[Entry]:
    """Everything in these folders, the Hub's cache, and the built-in model."""
    memory = memory or Memory()
    entries = [_entry(found, "builtin", memory) for found in _folder_itself(builtin)]
    entries += list(_cached(hub, memory)) if hub is not None else []
    for base in folders:
        entries += [_entry(found, "folder", memory) for found in sorted(scan(base), key=lambda f: str(f.path))]
    return entries


def scan(base: Path, deepest: int = DEEPEST) -> Iterator[Found]:
    """Model files and model folders, at most `deepest` below; the inside of a folder that is a model is skipped."""
    itself = list(_folder_itself(base))
    if itself:
        yield from itself
        return
    left = MOST_FILES
    waiting = [(str(base), 0)]
    while waiting and left > 0:
        place, depth = waiting.pop()
        try:
            with os.scandir(place) as entries:
                held = list(entries)
        except OSError:
            continue
        left -= len(held)
        for entry in held:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    inside = list(_folder_itself(Path(entry.path)))
                    yield from inside
                    if not inside and depth < deepest and not entry.name.startswith("."):
                        waiting.append((entry.path, depth + 1))
                elif entry.name.casefold().endswith((SUFFIX, ".gguf", *PICKLE_SUFFIXES)):
                    about = entry.stat()
                    yield Found(Path(entry.path), [about.st_size, about.st_mtime_ns], about.st_size)


def _folder_itself(path: Path | None) -> Iterator[Found]:
    """A diffusers folder as one thing: what is in it, by size and time."""
    if path is None or not (path / INDEX).is_file():
        return
    stamp: list[int] = []
    size = 0
    for place, _, names in sorted(os.walk(path)):
        for name in sorted(names):
            if name.endswith((".json", SUFFIX)):
                with contextlib.suppress(OSError):
                    about = os.stat(os.path.join(place, name))
                    stamp += [about.st_size, about.st_mtime_ns]
                    size += about.st_size if name.endswith(SUFFIX) else 0
    yield Found(path, stamp, size, is_folder=True)


def _cached(hub: Path, memory: Memory) -> Iterator[Entry]:
    """Each commit of each repository; of repositories that are not models, the files that are LoRAs or the like."""
    for repository in hub_cache.repositories(hub):
        known = known_as(repository)
        name = known.alias if known is not None and known.repository == repository else repository
        snapshots = hub / f"models--{repository.replace('/', '--')}" / "snapshots"
        for snapshot in sorted(snapshots.glob("*")):
            for found in sorted(scan(snapshot, deepest=0), key=lambda f: str(f.path)):
                entry = _entry(found, "cache", memory)
                if found.is_folder:
                    yield replace(entry, name=name, revision=snapshot.name)
                elif entry.error is None and entry.kind != "unknown":
                    yield replace(entry, name=f"{repository}/{found.path.name}", revision=snapshot.name)


def _entry(found: Found, source: str, memory: Memory) -> Entry:
    key = str(found.path)
    known = memory.get(key, found.stamp)
    if known is not None:
        return known if known.source == source else replace(known, source=source)
    read = _folder_entry if found.is_folder else _file_entry
    plain = Entry(name=_short(found), path=key, source=source, bytes=found.size)
    try:
        entry = read(found, plain)
    except SdcliError as error:
        what = "pickle" if isinstance(error, Unsafe) and not found.is_folder else plain.kind
        entry = replace(plain, kind=what, error=error.message.replace(show(found.path), "it", 1))
    memory.put(key, found.stamp, entry)
    return entry


def _short(found: Found) -> str:
    return found.path.name if found.is_folder or found.path.suffix != SUFFIX else found.path.stem


# --- words that files stand for


def learned_words(memory: Memory, folders: Iterable[Path]) -> dict[str, list[Path]]:
    """The words of prompts that are embeddings in these folders, as the last listing saw them: the disk is left alone,
    since every word of every prompt is looked up here."""
    inside = tuple(os.path.join(folder, "") for folder in folders)
    found: dict[str, list[Path]] = {}
    for key, held in memory.known.items():
        told = held.get("entry") if isinstance(held, dict) and key.startswith(inside) else None
        entry = _remembered(told) if isinstance(told, dict) and told.get("kind") == "embedding" else None
        for word in (entry.name, *entry.words) if entry is not None else ():
            found.setdefault(word.casefold(), []).append(Path(key))
    return found


# --- what it is


def _folder_entry(found: Found, plain: Entry) -> Entry:
    model = folder.read(found.path, family="builtin" if plain.source == "builtin" else None)
    unet = model.components["unet"]
    return replace(
        plain, name=model.name, kind=model.kind, family=model.family, layout=model.layout, bytes=model.disk_bytes,
        dtype=unet.stored_dtype, prediction=model.prediction, drawn=True,
    )  # fmt: skip


def _file_entry(found: Found, plain: Entry) -> Entry:
    if found.path.suffix.casefold() in PICKLE_SUFFIXES:  # by its name alone: nothing of it is read
        return replace(plain, kind="pickle", error="a pickle, which can run code: refused")
    header = read_header(found.path)
    kind = kinds.kind_of(header)
    part = kind.parts.get("unet") or next(iter(kind.parts.values()), None)
    drawn = kind.kind in kinds.DRAWN
    return replace(
        plain, kind=kind.kind, family=kind.family, layout=kind.layout, dtype=part.dtype if part else "",
        prediction=kind.prediction or ("epsilon" if drawn else ""), drawn=drawn,
        words=_words(kind.kind, header),
    )  # fmt: skip


def _words(kind: str, header: Header) -> tuple[str, ...]:
    if kind == "embedding":
        return tuple(filter(None, (embedding.token_of(header),)))
    return trigger_words(header.metadata) if kind == "lora" else ()


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What its maker says to write, else the tags it was trained on most often."""
    said = metadata.get("modelspec.trigger_phrase", "").strip()
    if said:
        return tuple(word.strip() for word in said.split(",") if word.strip())[:MOST_WORDS]
    try:
        told = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return ()
    counts: Counter[str] = Counter()
    for tags in told.values() if isinstance(told, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and not isinstance(count, bool) and tag.strip():
                counts[tag.strip()] += count
    return tuple(tag for tag, _ in counts.most_common(MOST_WORDS))
