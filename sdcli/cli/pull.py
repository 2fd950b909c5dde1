"""`sdcli pull`: downloads a model, or one file, from the Hub into the cache; generate does the same when it needs a
model. Never asks: naming it is consent."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli import __version__, data, schema
from sdcli.asking.adapters import Fetch
from sdcli.asking.planning import PlannedRun, added_folders, plan_again, plan_for
from sdcli.cli import complete
from sdcli.cli.answer import print_json
from sdcli.cli.download import Download, facts
from sdcli.errors import ModelMissing, Offline, Stop, Usage, stopped_by
from sdcli.machine.memory import disk_free
from sdcli.models import controlnet, hub, hub_cache, hub_connection, hub_name, lora, resolve
from sdcli.models.adapter_files import FLAGS
from sdcli.models.headers import Header, read_header
from sdcli.models.hub import NoIndex, Offer
from sdcli.models.hub_files import File
from sdcli.models.hub_name import HubName
from sdcli.models.kinds import kind_of
from sdcli.models.model import Model
from sdcli.request.options import OPTIONS, SCREEN
from sdcli.request.options import command as make
from sdcli.terminal import disk_text, say, show, tell

if TYPE_CHECKING:
    from sdcli.machine.several import Seat
    from sdcli.record.metadata.read import ImageSettings

_FIELDS = ("revision", "offline", "json", "quiet", "debug")


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What is in the cache now. `kind` is a single file's own: lora, vae, sd15 …"""

    schema: str = "sdcli.pull/1"
    version: str = __version__
    name: str
    repository: str | None
    revision: str | None  # the commit
    kind: str = "model"
    family: str
    licence: str | None
    path: str
    bytes: int
    fetched_bytes: int
    files: tuple[File, ...]


def command() -> Callable[..., None]:
    options = [option for option in (*OPTIONS, *SCREEN) if option.field in _FIELDS]
    return make(
        _pull, options, name="pull", words="NAME", complete=complete.asked(),
        help="Download a model, or a file of a repository, into the Hugging Face cache: sdcli pull sdxl",
    )  # fmt: skip


def _pull(typed: dict[str, Any]) -> None:
    names = typed.get("words", ())
    if len(names) != 1:
        raise Usage(f"pull takes one name, not {len(names)}", hint="sdcli pull sd15")
    offline, quiet = bool(typed.get("offline")), bool(typed.get("quiet"))
    pulled = _named(names[0], typed.get("revision"), offline, quiet)
    if typed.get("json"):
        print_json(schema.to_json(pulled))
    else:
        tell(pulled.path)


def _named(text: str, revision: str | None, offline: bool, quiet: bool) -> Pulled:
    """An alias, a path, `owner/name` or `owner/name/file.safetensors`, the latter two with @commit if need be."""
    one = None if os.path.exists(text) else hub_name.of_page(text) or hub_name.parse(text)
    if one is None:
        return pull(text, revision, offline, quiet)
    if revision and one.revision:
        raise Usage(
            f"two revisions: {show(revision, 60)} and {show(one.revision, 60)}",
            hint="the same command without --revision",
        )
    one = one._replace(revision=one.revision or revision)
    if one.file is None and not (offline and hub_cache.file(hub_cache.folder(os.environ), one)):
        return pull(one.repository, one.revision, offline, quiet)
    return _pull_file(one, offline, quiet)


def pull(name: str, revision: str | None = None, offline: bool = False, quiet: bool = False) -> Pulled:
    """The model called `name`, downloaded if it is not here yet."""
    cache = hub_cache.folder(os.environ)
    known = resolve.known_as(name)
    repository = known.repository if known else name
    if known is None and not hub_name.is_repository(name):
        return _already(_find(name, revision, cache, offline), quiet)
    if offline or known is not None or _is_commit(revision):  # what cannot have changed needs no network
        try:
            model = _find(name, revision, cache, offline)
        except ModelMissing:
            model = None
        if model is not None and model.cached:
            return _already(model, quiet)
    _check_online(name, offline)
    asked = revision or (known.revision if known else None)
    licence = known.licence if known else None
    try:
        offer = hub.offer(hub_connection.connect(os.environ), repository, asked, cache)
    except NoIndex:
        return _pull_file(HubName(repository, asked), offline, quiet)
    fetched = _bring(known.alias if known else name, offer, licence, quiet)
    model = resolve.resolve(repository, revision=offer.commit, hub=cache)  # read once, so that damage shows now
    return Pulled(
        name=name, repository=offer.repository, revision=offer.commit, family=offer.family,
        licence=licence or offer.licence, path=str(model.path), bytes=offer.size, fetched_bytes=fetched,
        files=offer.files,
    )  # fmt: skip


def _find(name: str, revision: str | None, cache: Path, offline: bool) -> Model:
    return resolve.resolve(
        name, revision=revision, offline=offline, folders=added_folders(), hub=cache,
        builtin=data.builtin_model(),
    )  # fmt: skip


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == 40 and all(letter in "0123456789abcdef" for letter in revision)


def _already(model: Model, quiet: bool) -> Pulled:
    if not quiet:
        say(f"{show(model.name, 80)} is already here, {disk_text(model.disk_bytes)}")
    return Pulled(
        name=model.name, repository=model.repository, revision=model.revision, family=model.family,
        licence=model.licence, path=str(model.path), bytes=model.disk_bytes, fetched_bytes=0, files=(),
    )  # fmt: skip


def _check_online(name: str, offline: bool) -> None:
    if offline or hub_connection.is_offline(os.environ):
        unset = "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE, then the same command"
        raise Offline(
            f"{show(name, 200)} is not on this machine, and offline mode forbids downloading it",
            hint="the same command without --offline" if offline else unset,
        )


def _bring(name: str, offer: Offer, licence: str | None, quiet: bool) -> int:
    """Announce the download, then fetch it with a progress line. Returns the bytes that were missing."""
    if not quiet:
        for line in facts(name, offer, licence or offer.licence, disk_free(offer.cache)):
            say(line)
    screen = Download(sys.stderr, quiet=quiet or not offer.missing)
    with _kept_if_interrupted(offer):
        try:
            hub.fetch(hub_connection.connect(os.environ), offer, screen, disk_free)
        finally:
            screen.finish()
    return offer.missing


@contextmanager
def _kept_if_interrupted(offer: Offer) -> Iterator[None]:
    again = "the same command again"
    try:
        yield
    except (KeyboardInterrupt, Stop) as stop:
        ended = stopped_by(stop)
        ended.done, ended.hint = hub.kept_text(offer), again
        raise ended from None


# --- one file


def _pull_file(name: HubName, offline: bool, quiet: bool) -> Pulled:
    cache = hub_cache.folder(os.environ)
    here = hub_cache.file(cache, name) if offline or _is_commit(name.revision) else None
    if here is not None:
        kind, size = kind_of(read_header(here.path)), here.path.stat().st_size
        if not quiet:
            say(f"{show(name, 120)} is already here, {disk_text(size)}")
        return Pulled(
            name=str(name), repository=name.repository, revision=here.revision, kind=kind.kind, family=kind.family,
            licence=None, path=str(here.path), bytes=size, fetched_bytes=0, files=(),
        )  # fmt: skip
    offer, fetched = _bring_file(name, lambda header: None, quiet, offline)
    return Pulled(
        name=str(name), repository=offer.repository, revision=offer.commit, kind=offer.kind, family=offer.family,
        licence=offer.licence, path=str(offer.snapshot / str(offer.file)), bytes=offer.size, fetched_bytes=fetched,
        files=offer.files,
    )  # fmt: skip


def _bring_file(
    name: HubName, check: Callable[[Header], None], quiet: bool, offline: bool = False
) -> tuple[Offer, int]:
    _check_online(str(name), offline)
    offer = hub.offer_file(hub_connection.connect(os.environ), name, hub_cache.folder(os.environ), check)
    return offer, _bring(offer.repository, offer, None, quiet)


def pull_beside(name: HubName, model: Model, what: str, quiet: bool) -> HubName:
    """A LoRA or a ControlNet for `model`, in the cache; refused by its header if it is none, or for another family."""
    check = {"LoRA": lora.check, "ControlNet": controlnet.check}[what]
    try:
        offer, _ = _bring_file(name, lambda header: check(header, model), quiet)
    except Usage as error:
        error.hint = error.hint.replace("sdcli pull ", f"{FLAGS[what]} ") + ("=FILE" if what == "ControlNet" else "")
        raise
    return offer.name


# --- before generate


def plan_with_model(
    typed: dict[str, Any], image: ImageSettings | None = None, command: str = "generate", cluster: Sequence[Seat] = ()
) -> PlannedRun:  # fmt: skip
    """generate's plan, with missing files downloaded: only then are a model's true sizes known. `image`: whose settings
    are taken, read already."""
    quiet = bool(typed.get("quiet"))

    def fetch(name: HubName, model: Model, what: str) -> HubName:
        return pull_beside(name, model, what, quiet)

    asked = _planned(typed, fetch, quiet, image, command, cluster)
    plan = asked.plan
    if plan.model.cached or not plan.fits or typed.get("engine") == "fake":
        return asked
    pull(plan.model.name, plan.model.revision, quiet=quiet)
    return plan_again(asked, typed, image)


def _planned(
    typed: dict[str, Any], fetch: Fetch, quiet: bool, image: ImageSettings | None, command: str,
    cluster: Sequence[Seat],
) -> PlannedRun:  # fmt: skip
    """What no plan can be made without, a model and a refiner, is downloaded one after the other."""
    pulled: set[str] = set()
    while True:
        try:
            return plan_for(typed, command, fetch=fetch, image=image, cluster=cluster)
        except ModelMissing as error:
            repository = error.details.get("repository")
            if not repository or repository in pulled:
                raise
            pulled.add(repository)
            revision = error.details.get("revision")
        pull(repository, revision, quiet=quiet)
