"""What there is to draw with, by the names that A1111's clients have for it. A request names what is listed here,
never a path."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sdcli.asking import planning
from sdcli.errors import ModelMissing
from sdcli.machine import memories
from sdcli.models import cache, hub_name
from sdcli.models.families import find
from sdcli.models.listing import Entry
from sdcli.near import near_text, nearest
from sdcli.request.config import Sources
from sdcli.serve.service import Service
from sdcli.terminal import show

CONTROL = ("controlnet", "controlnet-union", "t2i-adapter")
_HASH = re.compile(r"[0-9a-f]{8,64}")
_WITH_HASH = re.compile(r"(.+?)\s*\[[0-9a-f]{8,64}\]")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model. `setting` is what -m is given for it; None for the server's own."""

    name: str
    filename: str
    setting: str | None
    path: str = ""
    kind: str = ""
    hash: str | None = None
    sha256: str | None = None

    @property
    def title(self) -> str:
        return self.filename + (f" [{self.hash}]" if self.hash else "")

    def is_called(self, text: str) -> bool:
        """By its title, its name, its file, its hash, in small or capital letters."""
        asked = text.strip().casefold()
        called = {self.name, self.filename, self.title, f"{self.name} [{self.hash}]"}
        whole = self.sha256 or self.hash or ""
        return asked in {name.casefold() for name in called} or bool(_HASH.fullmatch(asked) and whole.startswith(asked))


class Names:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._hashing = threading.Lock()

    @property
    def device(self) -> str:
        """The first of those that draw."""
        return self._service.desks[0].device

    def checkpoints(self) -> list[Checkpoint]:
        """The server's own model first."""
        found = [_checkpoint(name, entry) for name, entry in self._service.models().items()]
        default = self._service.default_model()
        own = [one for one in found if default in (one.setting, one.path)]
        if not own:
            return [_own(default), *found]
        return [replace(own[0], setting=None), *(one for one in found if one is not own[0])]

    def checkpoint(self, text: str) -> Checkpoint:
        listed = self.checkpoints()
        for one in listed:
            if one.is_called(text):
                return one
        plain = _without_hash(text)
        found = next((one for one in listed if one.is_called(plain) and one.hash is None), None)
        found = found or self._by_hash(text.strip().casefold(), listed)
        if found is None:
            near = near_text(nearest(text, [one.title for one in listed], 1))
            raise ModelMissing(f"no checkpoint {show(text, 80)} on this server{near}", hint="GET /sdapi/v1/sd-models")
        return found

    def _by_hash(self, text: str, listed: list[Checkpoint]) -> Checkpoint | None:
        """Of files whose hash is not known yet. Each is hashed once, which takes seconds."""
        if not _HASH.fullmatch(text):
            return None
        with self._hashing:
            for one in listed:
                if one.sha256 is None and Path(one.path).is_file():
                    sha256 = cache.sha256_of(Path(one.path), memories.store("hashes"))
                    if sha256.startswith(text):
                        return replace(one, sha256=sha256, hash=sha256[:10])
        return None

    def of_kind(self, *kinds: str) -> dict[str, Entry]:
        """Files beside models, by the names that they are listed by."""
        named: dict[str, Entry] = {}
        for entry in self._service.entries():
            if entry.kind in kinds and entry.error is None:
                named.setdefault(called(entry), entry)
        return named

    def beside(self, text: str, what: str, *kinds: str) -> Entry:
        """One of them, with or without its hash."""
        listed = self.of_kind(*kinds)
        asked = {text.strip().casefold(), _without_hash(text).casefold()}
        for name, entry in listed.items():
            if {name.casefold(), Path(entry.path).name.casefold()} & asked:
                return entry
        near = near_text(nearest(text, listed, 1))
        raise ModelMissing(f"no {what} {show(text, 80)} on this server{near}", hint="sdcli models")

    def refiner(self, text: str) -> Checkpoint:
        for entry in self._service.entries():
            if entry.drawn and entry.error is None and find(entry.family).refines:
                found = _checkpoint(entry.name, entry)
                if found.is_called(text) or found.is_called(_without_hash(text)):
                    return replace(found, setting=entry.path)
        raise ModelMissing(f"no refiner {show(text, 80)} on this server", hint="sdcli models")


def path_of(entry: Entry) -> str:
    """What its flag is given: of a component in a diffusers folder that folder."""
    path = Path(entry.path)
    return str(path.parent if _component(path) else path)


def called(entry: Entry) -> str:
    path = Path(entry.path)
    return path.parent.name if _component(path) and entry.source == "folder" else entry.name


def _component(path: Path) -> bool:
    return path.name in hub_name.COMPONENT and (path.parent / "config.json").is_file()


def known_hash(path: str) -> str | None:
    """Its sha256, where it was computed before: a list of models shall not read gigabytes."""
    return cache.known_sha256(Path(path), memories.store("hashes"))


def _checkpoint(name: str, entry: Entry) -> Checkpoint:
    if entry.source == "builtin":
        model = planning.find_model(Sources(flag={"model": name}))
        return Checkpoint(name=name, filename=name, setting=name, path=entry.path, kind=entry.kind, hash=model.hash)
    sha256 = known_hash(entry.path)
    return Checkpoint(
        name=name, filename=Path(entry.path).name if entry.source == "folder" else name, setting=name, path=entry.path,
        kind=entry.kind, sha256=sha256, hash=sha256 and sha256[:10],
    )  # fmt: skip


def _own(model: str) -> Checkpoint:
    """The server's model, where it is none of those that are listed: a path, or a name whose files are not here yet."""
    path = Path(model).expanduser()
    sha256 = known_hash(str(path)) if path.is_file() else None
    return Checkpoint(
        name=path.stem if path.is_file() else path.name, filename=path.name, setting=None, path=str(path),
        sha256=sha256, hash=sha256 and sha256[:10],
    )  # fmt: skip


def _without_hash(text: str) -> str:
    found = _WITH_HASH.fullmatch(text.strip())
    return found[1] if found else text.strip()


def sorted_names(entries: dict[str, Entry]) -> Iterator[tuple[str, Entry]]:
    yield from sorted(entries.items(), key=lambda item: item[0].casefold())
