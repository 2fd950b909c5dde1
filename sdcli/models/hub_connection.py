"""Which hub is asked, how huggingface_hub asks it, and what its errors mean here."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sdcli import __version__
from sdcli.errors import Gated, ModelMissing, Offline, SdcliError, Usage
from sdcli.terminal import seconds_text, show

USUAL = "https://huggingface.co"
SILENCE = 10.0  # seconds without a byte before a connection counts as dead
LONGEST_WAIT = 30.0  # seconds; a hub that asks for more is not waited for
PIECE = 1 << 18  # bytes written and told at once: what a broken connection loses; huggingface_hub's own is 10 MiB
_PAUSES = (1.0, 4.0, 10.0)  # seconds before each repetition
_TRY_LATER = (408, 425, 429, 500, 502, 503, 504)
_AGAIN = "the same command again, or HF_ENDPOINT=<your mirror> in front of it\nor a file you have: -m model.safetensors"
_Found = TypeVar("_Found")


@dataclass(frozen=True, kw_only=True)
class Connection:
    endpoint: str = USUAL
    token: str | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        return _host(self.endpoint)


class Passing(Offline):
    """What may be over at the next attempt."""

    repeats = len(_PAUSES)


class Nobody(Passing):
    """No answer at all: most likely there is no line, and no reason to wait long."""

    repeats = 1


def connect(environment: Mapping[str, str]) -> Connection:
    """The hub that HF_ENDPOINT names and the token that huggingface_hub would use."""
    from huggingface_hub import get_token

    endpoint = (environment.get("HF_ENDPOINT", "").strip() or USUAL).rstrip("/")
    if not re.fullmatch(r"https?://(\[[0-9a-fA-F:.]+\]|[\w.\-]+)(:\d{1,5})?(/.*)?", endpoint):
        raise Usage(
            f'HF_ENDPOINT is not a web address: "{show(endpoint, 60)}"',
            hint=f"unset HF_ENDPOINT   (or HF_ENDPOINT={USUAL})",
        )
    token = None if _yes(environment.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")) else get_token()
    return Connection(endpoint=endpoint, token=token)


def is_offline(environment: Mapping[str, str]) -> bool:
    """Whether the environment forbids the network, in huggingface_hub's own words."""
    return _yes(environment.get("HF_HUB_OFFLINE")) or _yes(environment.get("TRANSFORMERS_OFFLINE"))


def _yes(text: str | None) -> bool:
    return (text or "").strip().upper() in ("1", "ON", "YES", "TRUE")


@contextlib.contextmanager
def in_use(connection: Connection) -> Iterator[None]:
    """Inside, huggingface_hub prints nothing, and its requests keep the rules of `_before` and `_after`."""
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import logging
    from huggingface_hub.utils._http import default_client_factory

    def client() -> Any:
        made = default_client_factory()
        before = [*made.event_hooks["request"], lambda request: _before(connection, request)]
        made.event_hooks = {"request": before, "response": [_after]}
        return made

    mine = {"DOWNLOAD_CHUNK_SIZE": PIECE, "HF_HUB_DISABLE_TELEMETRY": True}
    level, before = logging.get_verbosity(), {name: getattr(constants, name) for name in mine}
    set_client_factory(client)
    logging.set_verbosity(50)  # CRITICAL: errors arrive as exceptions
    vars(constants).update(mine)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        vars(constants).update(before)
        logging.set_verbosity(level)
        set_client_factory(default_client_factory)


def _before(connection: Connection, request: Any) -> None:
    """The hub itself gets the token, and nobody else; nothing is told of this machine; silence is not waited for."""
    request.headers.pop("Authorization", None)
    if connection.token and _origin(str(request.url)) == _origin(connection.endpoint):
        request.headers["Authorization"] = f"Bearer {connection.token}"
    request.headers["User-Agent"] = f"sdcli/{__version__}"
    request.headers["Accept-Encoding"] = "identity"  # what is compressed cannot be continued
    request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), SILENCE)


def _after(response: Any) -> None:
    """Before huggingface_hub follows a redirect, or waits for as long as it is asked to."""
    url, location, wait = str(response.url), response.headers.get("location", ""), _asked_to_wait(response)
    if response.has_redirect_location:
        scheme = response.url.join(location).scheme
        if scheme not in ("http", "https") or (url.startswith("https:") and scheme == "http"):
            raise Offline(f"{_host(url)} redirects to {show(location, 100)}, which is not followed", hint=_AGAIN)
    if wait > LONGEST_WAIT:
        raise Offline(f"{_host(url)} asks to wait {seconds_text(wait)} (error {response.status_code})", hint=_AGAIN)


def _asked_to_wait(response: Any) -> float:
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    if response.status_code not in _TRY_LATER:
        return 0.0
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    seconds = response.headers.get("retry-after", "").strip()
    return float(seconds) if seconds.isdecimal() else 0.0


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").casefold(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _host(url: str) -> str:
    return show(urlsplit(url).netloc or url, 80)


# --- what its errors mean


def patiently(
    connection: Connection, repository: str, do: Callable[[], _Found], note: Callable[[str], None] = lambda text: None
) -> _Found:
    """What `do` gives; once more where that may help and huggingface_hub has given up; else a typed error."""
    failures = 0
    while True:
        try:
            return do()
        except Exception as error:
            refused = understood(connection, error, repository)
        failures += 1
        asked = refused.details.pop("wait", 0.0)
        if failures > getattr(refused, "repeats", 0):
            raise refused
        pause = asked or _PAUSES[failures - 1]
        note(f"{refused.message}; trying again in {seconds_text(pause)}")
        time.sleep(pause)


def understood(connection: Connection, error: Exception, repository: str) -> SdcliError:
    """An error of huggingface_hub, or of the network below it, as one of ours; any other (a full disk) is raised."""
    from huggingface_hub.errors import FileMetadataError, HFValidationError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # neither here nor at the hub: the reason is the hub's
    name, response = type(error).__name__, getattr(error, "response", None)
    if isinstance(error, SdcliError):
        return error
    if response is not None:
        return _refusal(connection, error, response, repository)
    if isinstance(error, HFValidationError):
        return ModelMissing(f"{show(repository, 120)} is not a valid model name", hint="-m sd15")
    if isinstance(error, FileMetadataError):
        return no_hub(connection)
    if name == "TooManyRedirects":
        return Offline(f"{connection.host} redirects in a circle", hint=_AGAIN)
    if any(kind.__module__.startswith("httpx") for kind in type(error).__mro__):  # httpx, or httpx2
        request = getattr(error, "_request", None)
        host = _host(str(request.url)) if request is not None else connection.host
        if name == "ConnectError":
            return Nobody(f"{host} cannot be reached; {show(repository, 120)} is not complete here", hint=_AGAIN)
        if "Timeout" in name:
            return Nobody(f"{host} does not answer; {show(repository, 120)} is not complete here", hint=_AGAIN)
        return Passing(f"{host} broke off the connection", hint=_AGAIN)
    if isinstance(error, OSError) and error.errno is None:  # not the system's: huggingface_hub has counted the bytes
        return Passing(f"{connection.host} sent more or fewer bytes than the file has", hint=_AGAIN)
    raise error


def no_hub(connection: Connection) -> Offline:
    what = "something in between (a log-in page?) answers for it"
    return Offline(f"{connection.host} does not answer like a hub: {what}", hint=_AGAIN)


def _refusal(connection: Connection, error: Exception, response: Any, repository: str) -> SdcliError:
    from huggingface_hub.errors import DisabledRepoError, EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    status, said = response.status_code, response.headers.get("x-error-message", "")
    unknown, because = response.headers.get("x-error-code") == "RepoNotFound", f": {show(said, 200)}" if said else ""
    host, name, page = _host(str(response.url)), show(repository, 120), f"{connection.endpoint}/{repository}"
    elsewhere = _origin(str(response.url)) != _origin(connection.endpoint)  # such an address is good for a while only
    if status in _TRY_LATER or elsewhere:
        return Passing(f"{host} answered {status}{because}", hint=_AGAIN, wait=_asked_to_wait(response))
    if said.startswith("Invalid credentials") or (status == 401 and connection.token and not unknown):
        hint = "hf auth login   (or HF_TOKEN=<a valid token> in front of the same command)"
        return Gated(f"{host} did not accept the token: it is mistyped, expired or revoked", hint=hint, page=page)
    if isinstance(error, GatedRepoError) or (status == 403 and "gated" in said.casefold()):
        return _gated(connection, name, said, page)
    if isinstance(error, RevisionNotFoundError):
        return ModelMissing(f"{name} has no such revision on {host}", hint=f"sdcli pull {name}")
    if isinstance(error, EntryNotFoundError):
        return ModelMissing(f"{name} lists a file that it does not have", hint=f"sdcli pull {name}")
    if isinstance(error, DisabledRepoError):
        return ModelMissing(f"{name} has been disabled by {host}", hint="-m sd15")
    if status == 403:
        hint = "hf auth login   (with a token that may read it)"
        return Gated(f"{host} does not let this token read {name}{because}", hint=hint, page=page)
    if status in (401, 404, 410):
        whose = "" if connection.token else ", or it is private and needs a token (hf auth login)"
        return ModelMissing(f"{host} has no model {name}{whose}", hint="-m sd15")
    return Offline(f"{host} answered {status}{because}", hint=_AGAIN)


def _gated(connection: Connection, name: str, said: str, page: str) -> Gated:
    accept, again = f"accept the terms at {show(page, 200)}\n", "then the same command again"
    if not connection.token:
        why, hint = "no token says who you are", f"{accept}then: hf auth login"
    elif "fine-grained" in said:
        why = "this fine-grained token may not read such models"
        hint = f"allow gated repositories at {connection.endpoint}/settings/tokens\n{again}"
    else:
        why, hint = "the owner of this token has not done so yet", accept + again
    return Gated(f"{name} is given only to people who accepted its terms; {why}", hint=hint, page=page)
