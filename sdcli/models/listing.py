"""The models on this machine: every file and folder identified by its header, and remembered by path, size and time,
so that ten thousand files are listed without opening any of them again."""

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
from sdcli.models.hub_name import SUFFIX
from sdcli.models.resolve import known_as
from sdcli.models.searching import DEEPEST, MOST_FILES
from sdcli.models.sniff import PICKLE_SUFFIXES
from sdcli.terminal import show

INDEX = "model_index.json"
MOST_WORDS = 5
_SCHEMA = "sdcli.listing/2"  # raised when what is read from a file changes, so that old caches are ignored
_LARGEST_CACHE = 64 << 20
_MOST_REMEMBERED = 50_000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file or folder. `error` says why it cannot be used; then the rest is what could be read."""

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
class Cache:
    """What was read before. `path` None remembers nothing; a damaged file is an empty cache."""

    path: Path | None = None
    stored: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)  # stored and still there, or new
    changed: bool = False

    def get(self, key: str, stamp: list[int]) -> Entry | None:
        item = self.stored.get(key)
        if not isinstance(item, dict) or item.get("stamp") != stamp:
            return None
        entry = _remembered(item.get("entry"))
        if entry is not None:
            self.seen[key] = item
        return entry

    def put(self, key: str, stamp: list[int], entry: Entry) -> None:
        self.seen[key] = {"stamp": stamp, "entry": schema.to_json(entry)}
        self.changed = True


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "path", "source", "kind", "family", "layout", "dtype", "prediction"), (str,)),
    "bytes": (int,), "drawn": (bool,), "words": (list,), "revision": (str, type(None)), "error": (str, type(None)),
}  # fmt: skip


def _remembered(fields: Any) -> Entry | None:
    """An Entry from its JSON, checked here, not by schema: ten thousand must be read fast."""
    if not isinstance(fields, dict) or fields.keys() != _TYPES.keys():
        return None
    if not all(type(fields[name]) in types for name, types in _TYPES.items()):
        return None
    if not all(isinstance(word, str) for word in fields["words"]):
        return None
    return Entry(**{**fields, "words": tuple(fields["words"])})


def recall(path: Path | None) -> Cache:
    if path is None:
        return Cache()
    data = reading.recall(path, _LARGEST_CACHE)
    entries = data.get("entries") if data.get("schema") == _SCHEMA else None
    return Cache(path, entries if isinstance(entries, dict) else {})


def save(cache: Cache) -> None:
    """Save what is new beside what is stored of other folders; failing to save costs only time."""
    if cache.path is None or not cache.changed:
        return
    newest = dict(list({**cache.stored, **cache.seen}.items())[-_MOST_REMEMBERED:])
    content = json.dumps({"schema": _SCHEMA, "entries": newest}).encode()
    with contextlib.suppress(OSError):
        cache.path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(REAL, cache.path, [content], sync=False)


# --- where models are


@dataclass(frozen=True)
class Candidate:
    """Something that may be a model. Its stamp: the sizes and times of everything that is read of it."""

    path: Path
    stamp: list[int]
    size: int
    is_folder: bool = False


def listed(
    *, folders: Iterable[Path] = (), hub: Path | None = None, builtin: Path | None = None, cache: Cache | None = None
) -> list[Entry]:
    """Everything in these folders, the Hub's cache, and the built-in model."""
    cache = cache or Cache()
    entries = [_entry(candidate, "builtin", cache) for candidate in _folder_itself(builtin)]
    entries += list(_cached(hub, cache)) if hub is not None else []
    for base in folders:
        entries += [_entry(candidate, "folder", cache) for candidate in sorted(scan(base), key=lambda f: str(f.path))]
    return entries


def scan(base: Path, deepest: int = DEEPEST) -> Iterator[Candidate]:
    """Model files and model folders, at most `deepest` below; nothing inside a folder that is a model."""
    itself = list(_folder_itself(base))
    if itself:
        yield from itself
        return
    left = MOST_FILES
    waiting = [(str(base), 0)]
    while waiting and left > 0:
        path, depth = waiting.pop()
        try:
            with os.scandir(path) as scanned:
                entries = list(scanned)
        except OSError:
            continue
        left -= len(entries)
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    inside = list(_folder_itself(Path(entry.path)))
                    yield from inside
                    if not inside and depth < deepest and not entry.name.startswith("."):
                        waiting.append((entry.path, depth + 1))
                elif entry.name.casefold().endswith((SUFFIX, ".gguf", *PICKLE_SUFFIXES)):
                    about = entry.stat()
                    yield Candidate(Path(entry.path), [about.st_size, about.st_mtime_ns], about.st_size)


def _folder_itself(path: Path | None) -> Iterator[Candidate]:
    """A diffusers folder as one candidate, by the sizes and times of its files."""
    if path is None or not (path / INDEX).is_file():
        return
    stamp: list[int] = []
    size = 0
    for inside, _, names in sorted(os.walk(path)):
        for name in sorted(names):
            if name.endswith((".json", SUFFIX)):
                with contextlib.suppress(OSError):
                    about = os.stat(os.path.join(inside, name))
                    stamp += [about.st_size, about.st_mtime_ns]
                    size += about.st_size if name.endswith(SUFFIX) else 0
    yield Candidate(path, stamp, size, is_folder=True)


def _cached(hub: Path, cache: Cache) -> Iterator[Entry]:
    """Each commit of each repository; of repositories that are not models, the files that are LoRAs or the like."""
    for repository in hub_cache.repositories(hub):
        known = known_as(repository)
        name = known.alias if known is not None and known.repository == repository else repository
        snapshots = hub_cache.repository_folder(hub, repository) / "snapshots"
        for snapshot in sorted(snapshots.glob("*")):
            for candidate in sorted(scan(snapshot, deepest=0), key=lambda f: str(f.path)):
                entry = _entry(candidate, "cache", cache)
                if candidate.is_folder:
                    yield replace(entry, name=name, revision=snapshot.name)
                elif entry.error is None and entry.kind != "unknown":
                    yield replace(entry, name=f"{repository}/{candidate.path.name}", revision=snapshot.name)


def _entry(candidate: Candidate, source: str, cache: Cache) -> Entry:
    key = str(candidate.path)
    remembered = cache.get(key, candidate.stamp)
    if remembered is not None:
        return remembered if remembered.source == source else replace(remembered, source=source)
    read = _folder_entry if candidate.is_folder else _file_entry
    plain = Entry(name=_name_of(candidate), path=key, source=source, bytes=candidate.size)
    try:
        entry = read(candidate, plain)
    except SdcliError as error:
        kind = "pickle" if isinstance(error, Unsafe) and not candidate.is_folder else plain.kind
        entry = replace(plain, kind=kind, error=error.message.replace(show(candidate.path), "it", 1))
    cache.put(key, candidate.stamp, entry)
    return entry


def _name_of(candidate: Candidate) -> str:
    return candidate.path.name if candidate.is_folder or candidate.path.suffix != SUFFIX else candidate.path.stem


# --- words that embeddings stand for


def learned_words(cache: Cache, folders: Iterable[Path]) -> dict[str, list[Path]]:
    """The embeddings in these folders by their words, as last listed: every word of every prompt is looked up here, so
    the disk is not read."""
    inside = tuple(os.path.join(folder, "") for folder in folders)
    files: dict[str, list[Path]] = {}
    for key, item in cache.stored.items():
        data = item.get("entry") if isinstance(item, dict) and key.startswith(inside) else None
        entry = _remembered(data) if isinstance(data, dict) and data.get("kind") == "embedding" else None
        for word in (entry.name, *entry.words) if entry is not None else ():
            files.setdefault(word.casefold(), []).append(Path(key))
    return files


# --- what each is


def _folder_entry(candidate: Candidate, plain: Entry) -> Entry:
    model = folder.read(candidate.path, family="builtin" if plain.source == "builtin" else None)
    unet = model.components["unet"]
    return replace(
        plain, name=model.name, kind=model.kind, family=model.family, layout=model.layout, bytes=model.disk_bytes,
        dtype=unet.stored_dtype, prediction=model.prediction, drawn=True,
    )  # fmt: skip


def _file_entry(candidate: Candidate, plain: Entry) -> Entry:
    if candidate.path.suffix.casefold() in PICKLE_SUFFIXES:  # by its name alone: it is not opened
        return replace(plain, kind="pickle", error="a pickle, which can run code: refused")
    header = read_header(candidate.path)
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
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    if phrase:
        return tuple(word.strip() for word in phrase.split(",") if word.strip())[:MOST_WORDS]
    try:
        frequencies = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return ()
    counts: Counter[str] = Counter()
    for tags in frequencies.values() if isinstance(frequencies, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and not isinstance(count, bool) and tag.strip():
                counts[tag.strip()] += count
    return tuple(tag for tag, _ in counts.most_common(MOST_WORDS))
