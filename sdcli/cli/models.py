"""`sdcli models`: the models on this machine, the folders searched for them, and whether a model's files are sound."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from sdcli import __version__, data, schema
from sdcli.asking.planning import added_folders
from sdcli.cli import builtin, complete
from sdcli.cli.answer import print_json
from sdcli.cli.download import Download
from sdcli.cli.line import joined
from sdcli.errors import BadFile, CannotWrite, ModelMissing, SdcliError, Usage
from sdcli.machine.folders import cache_folder, config_file
from sdcli.models import check, checkpoint, folder, hub_cache, hub_name, listing, resolve
from sdcli.models.check import Check
from sdcli.models.families import find
from sdcli.models.folder import Incomplete
from sdcli.models.hub import Progress
from sdcli.models.kinds import TITLES
from sdcli.models.listing import Entry
from sdcli.models.model import Model
from sdcli.request import config
from sdcli.request.options import SCREEN
from sdcli.request.options import command as make
from sdcli.terminal import cells, disk_text, fit, say, show, tell, width

_VERBS = {"add": "DIR", "rm": "NAME", "check": "MODEL"}
_SYNONYMS = {**dict.fromkeys(("remove", "delete", "del", "uninstall"), "rm"), "verify": "check"}
_ORDER = ("builtin", "sd15", "sdxl", "lora", "embedding", "vae", "controlnet", "controlnet-union", "t2i-adapter")
_SOURCES = {"builtin": "shipped with sdcli", "cache": "Hugging Face cache"}
_LONGEST_NAME = 34
_NAMED = 8  # missing tensors that the report lists


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    path: str
    exists: bool


@dataclass(frozen=True, kw_only=True)
class Listing:
    schema: str = "sdcli.models/1"
    version: str = __version__
    folders: tuple[ModelFolder, ...]
    models: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """The folder that was forgotten, or the repository that was deleted."""

    schema: str = "sdcli.models-rm/1"
    removed: str
    freed_bytes: int


def command() -> Callable[..., None]:
    options = [option for option in SCREEN if option.field in ("json", "quiet", "debug")]
    return make(
        _models, options, name="models", words="DIR | add DIR | rm NAME | check MODEL", complete=complete.asked(),
        help="List local models; add or rm a model folder; check a model.",
    )  # fmt: skip


def _models(typed: dict[str, Any]) -> None:
    words = list(typed.get("words", ()))
    if words and words[0] in _SYNONYMS and not os.path.exists(words[0]):
        meant = joined(["models", _SYNONYMS[words[0]], *words[1:]]) if words[1:] else ""
        raise Usage(f'models has no "{show(words[0], 40)}"', hint=meant or "sdcli models --help")
    verb = words[0] if words and words[0] in _VERBS else ""
    rest = words[1:] if verb else words
    if len(rest) > 1 or (verb and not rest):
        usage = f"models {verb} takes one {_VERBS[verb]}" if verb else "models takes one folder at most"
        raise Usage(f"{usage}, not {len(rest)}", hint="sdcli models --help")
    {"": _list, "add": _add, "rm": _remove, "check": _check}[verb](rest[0] if rest else "", typed)


# --- what is here


def _list(text: str, typed: dict[str, Any]) -> None:
    if text and not os.path.isdir(os.path.expanduser(text)):
        raise ModelMissing(f"no folder {show(text, 200)}", hint="sdcli models")
    folders = (Path(os.path.expanduser(text)).absolute(),) if text else added_folders()
    cache = listing.recall(cache_folder() / "listing.json")
    entries = listing.listed(
        folders=folders, hub=None if text else hub_cache.folder(os.environ),
        builtin=None if text else data.builtin_model(), cache=cache,
    )  # fmt: skip
    listing.save(cache)
    searched = tuple(ModelFolder(path=str(folder), exists=os.path.isdir(folder)) for folder in folders)
    if typed.get("json"):
        print_json(schema.to_json(Listing(folders=searched, models=tuple(entries))))
        return
    for line in table(entries, searched, width(sys.stdout)):
        tell(line)
    if not typed.get("quiet"):
        say(_advice(entries, folders))


def _advice(entries: Sequence[Entry], folders: Sequence[Path]) -> str:
    first = next((entry for entry in entries if entry.drawn and entry.source != "builtin" and _is_whole(entry)), None)
    if first is not None:
        name = first.name if first.source == "cache" or not _is_twice(first, entries) else first.path
        return f'Draw with one: sdcli generate "a cat" -m "{show(name, 300)}"'
    if folders:
        return builtin.photographs() if any(entry.source == "builtin" for entry in entries) else ""
    return "Add a folder of models: sdcli models add DIR    From the Hub: sdcli pull sd15"


def _is_whole(entry: Entry) -> bool:
    """Whether it draws from a prompt alone, as a refiner does not."""
    return not find(entry.family).refines


def _is_twice(entry: Entry, entries: Sequence[Entry]) -> bool:
    return sum(other.name == entry.name for other in entries) > 1


def table(entries: Sequence[Entry], folders: Sequence[ModelFolder], columns: int) -> list[str]:
    """Folder by folder: models first, then adapters, then refused files."""
    lines: list[str] = []
    for source in ("builtin", "cache"):
        lines += _block(_SOURCES[source], [entry for entry in entries if entry.source == source], columns)
    for one in folders:
        inside = [entry for entry in entries if entry.source == "folder" and Path(entry.path).is_relative_to(one.path)]
        title = show(one.path, 200) + ("" if inside else ": no models" if one.exists else ": not found")
        lines += _block(title, inside, columns) or [title]
    return lines or ["no models found"]


def _block(title: str, entries: Sequence[Entry], columns: int) -> list[str]:
    if not entries:
        return []
    ordered = sorted(entries, key=_rank)
    names = [show(_called(entry, entries), 200) for entry in ordered]
    name = min(_LONGEST_NAME, max(map(cells, names)))
    kinds = [_kind(entry) for entry in ordered]
    kind = max(map(cells, kinds))
    lines = [title]
    for entry, named, called in zip(ordered, names, kinds, strict=True):
        shown = _padded(named, name)
        if entry.error is not None:
            lines.append(fit(f"  {shown}  {show(entry.error, 300)}", columns))
            continue
        size = disk_text(entry.bytes)
        more = [entry.dtype, "" if entry.prediction == "epsilon" else entry.prediction, ", ".join(entry.words)]
        line = f"  {shown}  {_padded(called, kind)}  {size:>8}  " + "  ".join(
            show(piece, 200) for piece in more if piece
        )
        lines.append(fit(line.rstrip(), columns))
    return lines


def _called(entry: Entry, entries: Sequence[Entry]) -> str:
    """The name as -m takes it; a folder and a file of the same name differ."""
    if entry.source != "folder" or not _is_twice(entry, entries):
        return entry.name
    path = Path(entry.path)
    return path.name if path.suffix.casefold() == ".safetensors" else f"{path.name}/"


def _rank(entry: Entry) -> tuple[bool, bool, int, str, str]:
    rank = _ORDER.index(entry.kind) if entry.kind in _ORDER else len(_ORDER)
    return entry.error is not None, not entry.drawn, rank, entry.kind, entry.name.casefold()


def _kind(entry: Entry) -> str:
    """`sd15`, `LoRA sdxl`, `VAE`: short, for a column."""
    if entry.drawn:
        return builtin.WHAT.removeprefix("a ") if entry.source == "builtin" else entry.kind
    title = "embedding" if entry.kind == "embedding" else TITLES.get(entry.kind, entry.kind)
    for article in ("a ", "an ", "the "):
        title = title.removeprefix(article)
    return fit(f"{title} {entry.family}" if entry.kind in ("lora", "embedding", "unet") else title, 26).rstrip()


def _padded(text: str, columns: int) -> str:
    shown = fit(text, columns)
    return shown + " " * (columns - cells(shown))


# --- model folders


def _add(text: str, typed: dict[str, Any]) -> None:
    path = Path(os.path.abspath(os.path.expanduser(text)))
    if not os.path.isdir(path):
        raise ModelMissing(f"no folder {show(path, 200)}", hint="sdcli models")
    folders = config.folders(config_file())
    if path not in folders:
        config.set_folders(config_file(), [*folders, path])
    if not typed.get("quiet") and not typed.get("json"):
        say(f"Added {show(path, 200)} to the model folders ({show(config_file(), 200)})")
    _list(str(path), typed)


def _remove(text: str, typed: dict[str, Any]) -> None:
    """Forget an added folder, or delete a repository from the Hub's cache. Files in the user's folders are kept."""
    folders = config.folders(config_file())
    path = Path(os.path.abspath(os.path.expanduser(text)))
    named = [folder for folder in folders if folder == path] or [folder for folder in folders if folder.name == text]
    if len(named) > 1:
        raise Usage(f"{show(text, 80)} is {len(named)} folders", hint=f'sdcli models rm "{show(named[0], 200)}"')
    if named:
        config.set_folders(config_file(), [folder for folder in folders if folder != named[0]])
        _removed(typed, removed=str(named[0]), freed=0, text=f"Removed {show(named[0], 200)} from the model folders")
        return
    alias = resolve.known_as(text)
    repository = alias.repository if alias is not None else text
    cached = hub_cache.repository_folder(hub_cache.folder(os.environ), repository)
    if not hub_name.is_repository(repository) or not cached.is_dir():
        raise ModelMissing(
            f"{show(text, 200)} is neither an added folder nor in the Hugging Face cache; sdcli deletes nothing else",
            hint="sdcli models",
        )
    freed = _delete(cached)
    _removed(
        typed, removed=repository, freed=freed,
        text=f"Deleted {show(repository, 120)} from the Hugging Face cache, {disk_text(freed)} freed",
    )  # fmt: skip


def _delete(path: Path) -> int:
    try:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
        shutil.rmtree(path)
    except OSError as error:
        raise CannotWrite(f"{show(path, 200)}: {show(error.strerror or error)}", hint="sdcli models") from None
    return size


def _removed(typed: dict[str, Any], *, removed: str, freed: int, text: str) -> None:
    if typed.get("json"):
        print_json(schema.to_json(Removal(removed=removed, freed_bytes=freed)))
    elif not typed.get("quiet"):
        say(text)


# --- whether a model is sound


def _check(text: str, typed: dict[str, Any]) -> None:
    name, result = _checked(text, bool(typed.get("quiet")))
    if typed.get("json"):
        print_json(schema.to_json(result))
    else:
        for line in _report(name, result):
            tell(line)
        if not result.sound:
            raise BadFile(f"{show(name, 120)} is damaged", hint=_repair(text))
    raise typer.Exit(0 if result.sound else BadFile.code)


def _repair(text: str) -> str:
    alias = resolve.known_as(text)
    if alias is None and not hub_name.is_repository(text):
        return BadFile.usual_hint
    return f"sdcli models rm {show(text, 120)}\nthen: sdcli pull {show(text, 120)}"


def _checked(text: str, quiet: bool) -> tuple[str, Check]:
    path = Path(os.path.expanduser(text))
    if os.path.isfile(path):  # any file of tensors, a LoRA too
        name, reading = path.name, check.check(path.name, (path,), _checkpoint(path))
    else:
        model = _model(text)
        name, reading = model.name, check.check(model.name, check.files_of(model), model)
    screen = Download(sys.stderr, quiet=quiet)
    try:
        while True:
            position = next(reading)
            screen(Progress(file=position.file, part="read", done=position.done, total=position.total))
    except StopIteration as end:
        result: Check = end.value
        return name, result
    finally:
        screen.finish()


def _checkpoint(path: Path) -> Model | None:
    try:
        return checkpoint.for_inspection(path)
    except SdcliError:  # the check itself says what is wrong with the file
        return None


def _model(text: str) -> Model:
    """The model of this name, even if it lacks tensors."""
    try:
        return resolve.resolve(
            text, offline=True, folders=added_folders(), hub=hub_cache.folder(os.environ),
            builtin=data.builtin_model(),
        )  # fmt: skip
    except Incomplete as error:
        return folder.read(Path(error.details["folder"]), whole=False)


def _report(name: str, result: Check) -> list[str]:
    lines = []
    for one in result.files:
        hashed = {True: "matches the Hub", False: "does NOT match the Hub", None: "nothing to compare it with"}
        agrees = None if one.expected is None else one.expected == one.sha256
        lines.append(f"{show(one.path, 300)}  {disk_text(one.bytes)}")
        lines.append(f"  sha256 {one.sha256}, {hashed[agrees]}")
        if one.error is not None:
            lines.append(f"  {show(one.error, 300)}")
        for fault in one.not_finite[: check.MOST_NAMED]:
            lines.append(f"  {show(fault.name, 120)}: {fault.count:,} of {fault.of:,} numbers are not finite")
    for what, names in (("missing", result.missing), ("of another shape", result.mismatched)):
        lines += [f"  {what}: {show(name, 120)}" for name in names[:_NAMED]]
        lines += [f"  {what}: at least {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    lines.append(f"{show(name, 80)}: " + ("sound" if result.sound else "damaged"))
    return lines
