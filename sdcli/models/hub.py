"""From a Hub id to files in the cache. With hub_connection, the only part of sdcli that uses a network.

`offer` asks what there is and checks that sdcli draws with it, before any weights; `fetch` brings it, telling how far
it is. huggingface_hub transports; what it does not do is done here: every file is compared with the hub's checksum,
and an interrupted one goes on where it stopped. Nothing is printed here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdcli.errors import BadFile, CannotWrite, ModelMissing, Offline, SdcliError
from sdcli.files import REAL, cannot_write, replace_whole
from sdcli.models import folder, headers, hub_cache, hub_connection, hub_files
from sdcli.models.cache import digest
from sdcli.models.families import families
from sdcli.models.headers import Header
from sdcli.models.hub_connection import Connection
from sdcli.models.hub_files import File
from sdcli.models.hub_name import HubName
from sdcli.models.kinds import kind_of
from sdcli.terminal import disk_text, show

INDEX = "model_index.json"
UNET = "unet/config.json"
_ANOTHER = "-m sd15"
_LARGER = "HF_HOME=<a folder on a larger disk> in front of the same command"


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
    cache: Path
    kind: str = "model"  # a single file's own kind: lora, vae, sd15 …
    file: str | None = None  # the one that was asked for
    kept: int = 0  # bytes that are in the cache already, whole files and beginnings

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        return self.size - self.kept

    @property
    def folder(self) -> Path:
        return hub_cache.repository_folder(self.cache, self.repository)

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / self.commit

    @property
    def name(self) -> HubName:
        """By which it is found again, whatever `main` is by then."""
        return HubName(self.repository, self.commit, self.file)

    def blob(self, file: File) -> Path:
        return self.folder / "blobs" / file.hash

    def beginning(self, file: File) -> Path:
        """What an interrupted attempt left of it."""
        return self.folder / "blobs" / f"{file.hash}.sdcli.incomplete"


class NoIndex(BadFile):
    """A repository of single files."""


class Altered(BadFile):
    """Other bytes than the hub has."""

    repeats = 1


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
    """The facts, from one commit; a refusal where sdcli does not draw with it. Nothing is written that stays."""
    with hub_connection.in_use(connection), tempfile.TemporaryDirectory(prefix="sdcli-") as made:
        info, files = _listed(connection, repository, revision)
        if INDEX not in files:
            raise _no_index(repository, files)
        base = Path(made, repository.split("/")[-1])
        _bring_json(connection, repository, info.sha, (files[path] for path in (INDEX, UNET) if path in files), base)
        family = _family(repository, base)
        components = families()[family].components
        first = hub_files.configs(files, components)
        _bring_json(connection, repository, info.sha, first, base)
        _family(repository, base)
    chosen = (
        *hub_files.weights(files, components, repository),
        *hub_files.tokenizers(files, components),
        *first,
        files[INDEX],  # last: a snapshot with an index is a whole one
    )
    return _offer(HubName(repository, revision), info, chosen, cache, family=family)


def offer_file(
    connection: Connection, name: HubName, cache: Path, check: Callable[[Header], None] = lambda header: None
) -> Offer:
    """One .safetensors file of a repository. `check` refuses it by its header, before its weights are fetched."""
    where = show(name.repository)
    with hub_connection.in_use(connection):
        info, files = _listed(connection, name.repository, name.revision)
        if name.file is None and INDEX in files:
            raise BadFile(f"{where} is a whole model, and none of its files is named", hint=f"-m {where}")
        chosen = hub_files.single(files, name)
        kind = kind_of(_header(connection, name.repository, info.sha, chosen[0], check))
    path = chosen[0].path
    return _offer(name, info, chosen, cache, family=kind.family, kind=kind.kind, file=path)


def _listed(connection: Connection, repository: str, revision: str | None) -> tuple[Any, dict[str, File]]:
    """What the hub tells of a repository, and its files. The commit is looked up this once."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    def ask() -> Any:
        api = HfApi(endpoint=connection.endpoint, token=False)
        try:
            return api.model_info(repository, revision=revision or "main", files_metadata=True)
        except HFValidationError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError):  # no JSON, or of another shape
            raise hub_connection.no_hub(connection) from None

    info = hub_connection.patiently(connection, repository, ask)
    if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)):
        asked = show(revision or "main", 60)
        raise Offline(f"{connection.host} does not say which commit {asked} is", hint=_ANOTHER)
    files = hub_files.listed(info.siblings or ())
    for file in files.values():
        if not file.hash:
            raise BadFile(f"{connection.host} gives no checksum for {show(file.path, 120)}", hint=_ANOTHER)
    return info, files


def _offer(name: HubName, info: Any, files: tuple[File, ...], cache: Path, **more: Any) -> Offer:
    offered = Offer(
        repository=name.repository, revision=name.revision or "main", commit=info.sha,
        licence=_licence(info.card_data), gated=bool(info.gated), files=files, cache=cache, **more,
    )  # fmt: skip
    return replace(offered, kept=_kept_bytes(offered))


def _header(
    connection: Connection, repository: str, commit: str, file: File, check: Callable[[Header], None]
) -> Header:
    def read() -> Header:
        start = _start(_url(connection, repository, commit, file))
        header = headers.read_from(io.BytesIO(start), file.size, Path(repository, file.path))
        check(header)
        return header

    try:
        return hub_connection.patiently(connection, repository, read)
    except BadFile:  # a beginning alone has no checksum: what it says refuses the file only when it is said twice
        return hub_connection.patiently(connection, repository, read)


def _start(url: str) -> bytes:
    """As much of a file as its header takes; the rest is not waited for."""
    from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff  # type: ignore[attr-defined]

    start = b""
    with http_stream_backoff("GET", url) as answer:
        hf_raise_for_status(answer)
        for chunk in answer.iter_bytes():
            start += chunk
            if len(start) >= headers.length_of(start):
                break
    return start


def _bring_json(connection: Connection, repository: str, commit: str, files: Iterable[File], base: Path) -> None:
    """Small files to look into, under `base`."""
    for file in files:
        if file.size > folder.LARGEST_JSON:
            raise BadFile(f"{show(repository)}: {show(file.path, 120)} is larger than 8 MiB", hint=_ANOTHER)
        get = functools.partial(_download, connection, repository, commit, file, base.parent, base)
        hub_connection.patiently(connection, repository, get)


def _family(repository: str, base: Path) -> str:
    """The family of a model of which only the JSON is here: read as a folder would be, up to its missing weights."""
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
    return BadFile(f"{show(repository)} is not a text-to-image model: it has no {INDEX}", hint=_ANOTHER)


def _licence(card: Any) -> str | None:
    licence = card.get("license") if card is not None and hasattr(card, "get") else None
    if licence == "other":
        licence = card.get("license_name") or licence
    return show(licence, 60) if isinstance(licence, str) and licence else None


# --- fetching it


def fetch(
    connection: Connection, offered: Offer, tell: Callable[[Progress], None] = lambda at: None,
    free: Callable[[Path], int | None] | None = None,
) -> None:  # fmt: skip
    """Bring every missing file into the cache. In this thread: a signal ends it at once, and what has come stays."""
    _check_room(offered, free)
    at = Progress(file="", part="", done=0, total=offered.size)
    try:
        with hub_connection.in_use(connection):
            for file in offered.files:
                at = replace(at, file=file.path, part=file.part if "/" in file.path else file.path)
                _fetch(connection, offered, file, at, tell)
                at = replace(at, done=at.done + file.size)
        _refer(offered)
    except Offline as error:
        error.done = kept_text(offered)
        raise
    except OSError as error:
        raise _cannot_write(offered, error) from None


def _fetch(
    connection: Connection, offered: Offer, file: File, begun: Progress, tell: Callable[[Progress], None]
) -> None:
    def report(done: int) -> None:
        tell(replace(begun, done=begun.done + min(done, file.size)))

    def bring() -> None:
        pointer, blob = offered.snapshot / file.path, offered.blob(file)
        if _size(pointer) == file.size:
            return
        for path in (pointer, blob):
            if _size(path) != file.size:
                path.unlink(missing_ok=True)
        if file.sha256 is not None:
            _bring_blob(connection, offered, file, report)
        _download(connection, offered.repository, offered.commit, file, offered.cache, report=report)
        if not pointer.exists():  # the hub has told of another commit
            raise hub_connection.no_hub(connection)
        if not pointer.is_symlink():
            blob.unlink(missing_ok=True)  # huggingface_hub has copied it: there are no links here

    hub_connection.patiently(connection, offered.repository, bring, lambda text: tell(replace(begun, note=text)))
    report(file.size)


def _bring_blob(connection: Connection, offered: Offer, file: File, report: Callable[[int], None]) -> None:
    """A large file's bytes, from where an earlier attempt ended, under their name once they are known to be right.

    hf_hub_download alone would begin it anew after every interruption; http_get, its own transport, can go on."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    blob, beginning = offered.blob(file), offered.beginning(file)
    lock = offered.cache / ".locks" / offered.folder.name / f"{file.hash}.lock"  # the one that hf_hub_download takes
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():  # another program has brought it meanwhile
            return
        if _size(beginning) > file.size:
            beginning.unlink()
        with beginning.open("ab") as out:
            http_get(
                _url(connection, offered.repository, offered.commit, file), out, resume_size=out.tell(),
                expected_size=file.size, tqdm_class=_bar(report),
            )  # fmt: skip
        _check(offered.repository, file, beginning)
        os.replace(beginning, blob)


def _url(connection: Connection, repository: str, commit: str, file: File) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, file.path, revision=commit, endpoint=connection.endpoint)


def _download(
    connection: Connection, repository: str, commit: str, file: File, cache: Path, local: Path | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> None:  # fmt: skip
    """Into the cache, or to a folder. What huggingface_hub is not told it takes from the environment at its import."""
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(
        repository, file.path, revision=commit, endpoint=connection.endpoint, token=False,
        cache_dir=cache, local_dir=local, tqdm_class=_bar(report),
    )  # fmt: skip
    if (
        file.sha256 is None or Path(path).resolve().name != file.sha256
    ):  # no blob is called so before it has been checked
        _check(repository, file, Path(path))


def _check(repository: str, file: File, path: Path) -> None:
    """Delete what has other bytes than the hub's checksum says; git's own for a small file, which counts its size."""
    state = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    if digest(path, state=state) != file.hash:
        for wrong in (path.resolve(), path):
            wrong.unlink(missing_ok=True)
        raise Altered(
            f"{show(repository)}: {show(file.path, 120)} differs from the Hub's checksum; it was deleted",
            hint="the same command again, over another network or without a proxy: something alters what is sent",
        )


def _bar(report: Callable[[int], None]) -> Any:
    """Instead of huggingface_hub's progress bar: tells how many bytes of the file are here."""

    class Bar(contextlib.ExitStack):
        def __init__(self, *, initial: int = 0, **rest: Any) -> None:
            super().__init__()
            self.at = initial

        def update(self, count: int) -> None:
            self.at += count
            report(self.at)

    return Bar


def _refer(offered: Offer) -> None:
    """That this branch or tag was this commit when it was asked for."""
    path = hub_cache.reference(offered.folder, offered.revision)
    if path is not None and offered.revision != offered.commit:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(REAL, path, [offered.commit.encode("ascii")], sync=False)


def _check_room(offered: Offer, free: Callable[[Path], int | None] | None) -> None:
    room = free(offered.cache) if free is not None else None
    if room is not None and room < offered.missing:
        raise CannotWrite(
            f"{show(offered.repository)} needs {disk_text(offered.missing)} in {show(offered.cache, 200)}, where "
            f"{disk_text(room)} is free; nothing was downloaded",
            hint=_LARGER, need=offered.missing, free=room,
        )  # fmt: skip


# --- when it does not succeed


def _kept_bytes(offered: Offer) -> int:
    def kept(file: File) -> int:
        whole = any(_size(path) == file.size for path in (offered.snapshot / file.path, offered.blob(file)))
        return file.size if whole else min(max(0, _size(offered.beginning(file))), file.size)

    return sum(map(kept, offered.files))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def kept_text(offered: Offer) -> str:
    """0.71 of 2.13 GB, will continue; empty where nothing is kept."""
    kept = _kept_bytes(offered)
    return f"{pair_text(kept, offered.size)}, will continue" if kept else ""


def pair_text(done: int, total: int) -> str:
    """Two sizes in the unit of the larger one: 0.71 of 2.13 GB."""
    number, unit = disk_text(total).split(" ")
    scale = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    return f"{done / scale:.{len(number.partition('.')[2])}f} of {number} {unit}"


def _cannot_write(offered: Offer, error: OSError) -> CannotWrite:
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    return cannot_write(offered.cache, error, done=kept_text(offered), hint=_LARGER if full else "sdcli doctor")
