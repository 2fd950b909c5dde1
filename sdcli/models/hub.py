"""From a Hub id to files in the cache. With hub_connection, the only part of sdcli that uses a network.

`offer` asks what there is and checks that sdcli draws with it, before any weights; `fetch` brings it, telling how far
it is. Nothing is printed here.
"""

from __future__ import annotations

import contextlib
import errno
import io
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from sdcli.errors import BadFile, CannotWrite, ModelMissing, Offline, SdcliError
from sdcli.models import folder, headers, hub_connection, hub_files, hub_store
from sdcli.models.families import families
from sdcli.models.headers import Header
from sdcli.models.hub_connection import Broken, Connection
from sdcli.models.hub_files import File
from sdcli.models.hub_name import HubName
from sdcli.models.hub_store import Hash, Place
from sdcli.models.kinds import kind_of
from sdcli.terminal import disk_text, seconds_text, show

INDEX = "model_index.json"
UNET = "unet/config.json"
NEWS = 1 << 20  # bytes that count as getting on, so that attempts are counted anew
_ANOTHER = "-m sd15"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A model on the Hub, or one file, by one commit: what it is, what fetching it takes, and what is already here."""

    repository: str
    revision: str  # as asked for: main, a tag, a commit
    commit: str
    family: str
    licence: str | None
    gated: bool
    files: tuple[File, ...]
    small: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # already read, not yet in the cache
    cache: Path
    kept: int = 0  # bytes that are in the cache already, whole files and beginnings
    kind: str = "model"  # a single file's own kind: lora, vae, sd15 …
    file: str | None = None  # the one that was asked for

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        return self.size - self.kept

    @property
    def snapshot(self) -> Path:
        return Place(self.cache, self.repository).snapshot(self.commit)

    @property
    def name(self) -> HubName:
        """By which it is found again, whatever `main` is by then."""
        return HubName(self.repository, self.commit, self.file)


class NoIndex(BadFile):
    """A repository of single files."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a download is, in bytes of all its files; `note` where something is to be said."""

    file: str
    part: str  # unet, vae …; the file's name where it belongs to none
    done: int
    total: int
    note: str = ""


# --- what there is


def offer(connection: Connection, repository: str, revision: str | None, cache: Path) -> Offer:
    """The facts, from one commit; a refusal where sdcli does not draw with it. Writes nothing."""
    asked = revision or "main"
    info, commit = _info(connection, repository, asked)
    files = hub_files.listed(info.get("siblings"))
    if INDEX not in files:
        raise _no_index(repository, files)
    small = {name: _small(connection, repository, commit, files[name]) for name in (INDEX, UNET) if name in files}
    family = _family(repository, small)
    components = families()[family].components
    first = hub_files.configs(files, components)
    small |= {file.path: _small(connection, repository, commit, file) for file in first}
    _family(repository, small)
    chosen = (
        *hub_files.weights(files, components, repository),
        *hub_files.tokenizers(files, components),
        *first,
        files[INDEX],  # last: a snapshot with an index is a whole one
    )
    _check_hashes(connection, chosen)
    found = Offer(
        repository=repository, revision=asked, commit=commit, family=family, licence=_licence(info),
        gated=bool(info.get("gated")), files=chosen, small=small, cache=cache,
    )  # fmt: skip
    return replace(found, kept=_held(found, Place(cache, repository)))


def offer_file(
    connection: Connection, name: HubName, cache: Path, check: Callable[[Header], None] = lambda header: None
) -> Offer:
    """One .safetensors file of a repository. `check` refuses it by its header, before its weights are fetched."""
    asked = name.revision or "main"
    info, commit = _info(connection, name.repository, asked)
    files = hub_files.listed(info.get("siblings"))
    if name.file is None and INDEX in files:
        raise BadFile(
            f"{show(name.repository)} is a whole model, and none of its files is named",
            hint=f"-m {show(name.repository)}",
        )
    chosen = hub_files.single(files, name)
    _check_hashes(connection, chosen)
    header = _header(connection, name.repository, commit, chosen[0], check)
    kind = kind_of(header)
    found = Offer(
        repository=name.repository, revision=asked, commit=commit, family=kind.family, licence=_licence(info),
        gated=bool(info.get("gated")), files=chosen, cache=cache, kind=kind.kind, file=chosen[0].path,
    )  # fmt: skip
    return replace(found, kept=_held(found, Place(cache, name.repository)))


def _info(connection: Connection, repository: str, revision: str) -> tuple[Mapping[str, Any], str]:
    """What the hub tells of a repository, and the commit that it tells it of."""
    url = f"{connection.endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
    info = hub_connection.read_json(connection, url, repository)
    commit = info.get("sha")
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise Offline(f"{connection.host} does not say which commit {show(revision, 60)} is", hint=_ANOTHER)
    return info, commit


def _check_hashes(connection: Connection, files: tuple[File, ...]) -> None:
    for file in files:
        if not file.hash:
            raise BadFile(f"{connection.host} gives no checksum of {show(file.path, 120)}", hint=_ANOTHER)


def _header(
    connection: Connection, repository: str, commit: str, file: File, check: Callable[[Header], None]
) -> Header:
    """Its beginning alone has no checksum: what it says refuses the file only when it is said twice."""
    url = hub_connection.url_of(connection, repository, commit, file.path)
    named = Path(repository, file.path)
    for last in (False, True):
        start = hub_connection.read_start(connection, url, repository, headers.length_of)
        try:
            header = headers.read_from(io.BytesIO(start), file.size, named)
            check(header)
        except BadFile:
            if last:
                raise
        else:
            return header
    raise AssertionError("never reached")


def _small(connection: Connection, repository: str, commit: str, file: File) -> bytes:
    """A JSON file, whole and as the hub's checksum says; once more where it is not."""
    if file.size > hub_files.LARGEST_SMALL:
        raise BadFile(f"{show(repository)}: {show(file.path, 120)} is larger than 8 MiB", hint=_ANOTHER)
    url = hub_connection.url_of(connection, repository, commit, file.path)
    for _ in range(2):
        held = hub_connection.read(connection, url, repository, most=hub_files.LARGEST_SMALL)
        state = hub_store.new_hash(file)
        state.state.update(held)
        if len(held) == file.size and state.right():
            return held
    raise _altered(repository, file)


def _family(repository: str, small: Mapping[str, bytes]) -> str:
    """The family of a model of which only the JSON is here: read as a folder would be, up to its missing weights."""
    with tempfile.TemporaryDirectory(prefix="sdcli-") as made:
        base = Path(made) / repository.split("/")[-1]
        for name, held in small.items():
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            (base / name).write_bytes(held)
        try:
            folder.read(base)
        except ModelMissing:
            pass  # the weights, which are still to be fetched
        except SdcliError as error:
            message = error.message.replace(show(base), show(repository))
            raise type(error)(message, hint=error.hint, **error.details) from None
        return folder.family_of(base)


def _no_index(repository: str, files: Mapping[str, File]) -> BadFile:
    whole = sorted(name for name in files if name.endswith(".safetensors"))
    if whole:
        return NoIndex(
            f"{show(repository)} has no {INDEX}; it holds single files such as {show(whole[0], 80)}",
            hint=f'sdcli pull "{show(repository)}/{show(whole[0], 120)}"   (then -m or --lora with the path it prints)',
        )
    return BadFile(f"{show(repository)} is no text-to-image model: it has no {INDEX}", hint=_ANOTHER)


def _licence(info: Mapping[str, Any]) -> str | None:
    card = info.get("cardData")
    told = card.get("license") if isinstance(card, Mapping) else None
    if told == "other" and isinstance(card, Mapping):
        told = card.get("license_name") or told
    return show(told, 60) if isinstance(told, str) and told else None


def _altered(repository: str, file: File) -> BadFile:
    return BadFile(
        f"{show(repository)}: {show(file.path, 120)} differs from the hub's checksum, twice; it was deleted",
        hint="the same command again, over another network or without a proxy: something alters what is sent",
    )


# --- fetching it


def fetch(
    connection: Connection, offered: Offer, free: Callable[[Path], int | None] | None = None
) -> Iterator[Progress]:
    """Bring every missing file into the cache; when the last Progress has been given, the snapshot is whole."""
    place = Place(offered.cache, offered.repository)
    _check_room(offered, free)
    done = 0
    try:
        for file in offered.files:
            for at in _file(connection, offered, place, file):
                yield replace(at, done=done + at.done, total=offered.size)
            done += file.size
        for file in offered.files:
            hub_store.link(place, offered.commit, file)
        hub_store.refer(place, offered.revision, offered.commit)
    except Broken as broken:
        raise hub_connection.given_up(connection, broken, kept_text(offered)) from None
    except OSError as error:
        raise _cannot_write(offered, error) from None


def _check_room(offered: Offer, free: Callable[[Path], int | None] | None) -> None:
    room = free(offered.cache) if free is not None else None
    if room is not None and room < offered.missing:
        raise CannotWrite(
            f"{show(offered.repository)} needs {disk_text(offered.missing)} in {show(offered.cache, 200)}, where "
            f"{disk_text(room)} are free; nothing was fetched",
            hint="HF_HOME=<a folder on a larger disk> in front of the same command", need=offered.missing, free=room,
        )  # fmt: skip


def _file(connection: Connection, offered: Offer, place: Place, file: File) -> Iterator[Progress]:
    told = Progress(file=file.path, part=file.part if "/" in file.path else file.path, done=0, total=0)
    if hub_store.is_here(place, offered.commit, file):
        yield replace(told, done=file.size)
        return
    waited = yield from _locked(place, file, told)
    with waited:
        if not hub_store.is_here(place, offered.commit, file):  # another program may have brought it meanwhile
            yield from _download(connection, offered, place, file, told)
    yield replace(told, done=file.size)


def _locked(place: Place, file: File, told: Progress) -> Generator[Progress, None, contextlib.ExitStack]:
    """The lock that huggingface_hub takes for the same file: one program fetches, others wait and find it there."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    path = place.lock(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    note = "another program is fetching this file; waiting for it"
    while True:
        lock = contextlib.ExitStack()
        try:
            lock.enter_context(WeakFileLock(path, timeout=1.0))
            return lock
        except Timeout:
            yield replace(told, note=note)
            note = ""


def _download(connection: Connection, offered: Offer, place: Place, file: File, told: Progress) -> Iterator[Progress]:
    """The file's bytes, from where an earlier attempt ended; wrong ones are deleted and fetched once more."""
    for last in (False, True):
        with hub_store.partial(place, file) as out:
            if file.path in offered.small:
                state = _put(out, file, offered.small[file.path])
            else:
                state = yield from _stream(connection, offered, file, out, told)
            if state.right():
                hub_store.publish(place, file, out)
                return
        hub_store.discard(place, file)
        if not last:
            yield replace(told, note=f"{show(file.path, 120)} differs from the hub's checksum; fetching it again")
    raise _altered(offered.repository, file)


def _put(out: IO[bytes], file: File, held: bytes) -> Hash:
    """What `offer` has read and checked already."""
    hub_store.start_over(out)
    state = hub_store.new_hash(file)
    state.state.update(held)
    hub_store.write(out, held)
    return state


def _stream(
    connection: Connection, offered: Offer, file: File, out: IO[bytes], told: Progress
) -> Generator[Progress, None, Hash]:
    """Go on until the file has its size, however often the connection breaks, as long as something new arrives."""
    state = hub_store.new_hash(file)
    at = furthest = hub_store.take_up(out, file, state)
    failures = 0
    url = hub_connection.url_of(connection, offered.repository, offered.commit, file.path)
    while at < file.size:
        try:
            with hub_connection.attempt(connection, url, offered.repository, at) as body:
                if body.start < at:
                    state, at = _anew(out, file)
                for chunk in body.chunks:
                    piece = chunk[: file.size - at]
                    hub_store.write(out, piece)
                    state.state.update(piece)
                    at += len(piece)
                    yield replace(told, done=at)
                    if at == file.size:
                        return state
            raise Broken(f"{connection.host} ended the file early")
        except Broken as broken:
            if at - furthest >= NEWS:
                furthest, failures = at, 0
            failures += 1
            if hub_connection.is_hopeless(connection, failures, broken):
                raise
            if broken.part:
                state, at = _anew(out, file)
            wait = connection.patience.wait(failures, broken.wait)
            yield replace(told, done=at, note=f"{broken.what}; trying again in {seconds_text(wait)}")
            time.sleep(wait)
    return state


def _anew(out: IO[bytes], file: File) -> tuple[Hash, int]:
    hub_store.start_over(out)
    return hub_store.new_hash(file), 0


# --- when it does not succeed


def _held(offered: Offer, place: Place) -> int:
    return sum(
        file.size if hub_store.is_here(place, offered.commit, file) else hub_store.kept(place, file)
        for file in offered.files
    )


def kept_text(offered: Offer) -> str:
    """0.71 of 2.13 GB, will continue; empty where nothing is kept."""
    held = _held(offered, Place(offered.cache, offered.repository))
    return f"{pair_text(held, offered.size)}, will continue" if held else ""


def pair_text(done: int, total: int) -> str:
    """Two sizes in the unit of the larger one: 0.71 of 2.13 GB."""
    number, unit = disk_text(total).split(" ")
    scale = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    return f"{done / scale:.{len(number.partition('.')[2])}f} of {number} {unit}"


def _cannot_write(offered: Offer, error: OSError) -> CannotWrite:
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    what = "the disk is full" if full else show(error.strerror or error)
    return CannotWrite(
        f"{show(offered.cache, 200)}: {what}",
        done=kept_text(offered),
        hint="HF_HOME=<a folder on a larger disk> in front of the same command" if full else "sdcli doctor",
    )
