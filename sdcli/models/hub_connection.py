"""HTTP to one hub: which host gets the token, what an answer means, how patiently a broken connection is tried again.

Requests go through huggingface_hub's own session, so that its proxies and certificates hold here too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from sdcli import __version__
from sdcli.errors import Gated, ModelMissing, Offline, SdcliError, Usage
from sdcli.terminal import seconds_text, show

USUAL = "https://huggingface.co"
LARGEST_ANSWER = 16 << 20  # the list of a repository's files, or a JSON file
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 6
_TRY_LATER = (408, 425, 429, 500, 502, 503, 504)
_AGAIN = "the same command again, or HF_ENDPOINT=<your mirror> in front of it\nor a file you have: -m model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to go on. Attempts count from the last time that something new arrived."""

    attempts: int = 6
    first: float = 1.0  # seconds before the second attempt; doubled each time
    longest: float = 30.0
    silence: float = 20.0  # seconds without a byte before a connection counts as dead

    def wait(self, failures: int, asked: float | None = None) -> float:
        """Seconds before the next attempt; what the server asks for goes before."""
        return asked if asked is not None else min(self.longest, self.first * 2.0 ** (failures - 1))


class Broken(Exception):
    """An attempt that failed, and that may succeed when it is repeated. `wait` is what the server asked for;
    `part` says that it would not give the part of the file that was asked for, `nobody` that no answer came at all."""

    def __init__(self, what: str, wait: float | None = None, *, part: bool = False, nobody: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.wait = wait
        self.part = part
        self.nobody = nobody


@dataclass(frozen=True, kw_only=True)
class Connection:
    endpoint: str = USUAL
    token: str | None = field(default=None, repr=False)
    patience: Patience = Patience()

    @property
    def host(self) -> str:
        return show(urlsplit(self.endpoint).netloc or self.endpoint, 80)


def connect(environment: Mapping[str, str] = os.environ, patience: Patience | None = None) -> Connection:
    """The hub that HF_ENDPOINT names and the token that huggingface_hub would use."""
    from huggingface_hub import get_token

    endpoint = (environment.get("HF_ENDPOINT", "").strip() or USUAL).rstrip("/")
    if not _is_address(endpoint):
        raise Usage(
            f'HF_ENDPOINT is not a web address: "{show(endpoint, 60)}"',
            hint=f"unset HF_ENDPOINT   (or HF_ENDPOINT={USUAL})",
        )
    return Connection(
        endpoint=endpoint,
        token=None if _yes(environment.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")) else get_token(),
        patience=patience or Patience(),
    )


def _is_address(text: str) -> bool:
    try:
        return text.startswith(("https://", "http://")) and bool(urlsplit(text).hostname)
    except ValueError:  # half of an IPv6 address
        return False


def is_offline(environment: Mapping[str, str]) -> bool:
    """Whether the environment forbids the network, in huggingface_hub's own words."""
    return _yes(environment.get("HF_HUB_OFFLINE")) or _yes(environment.get("TRANSFORMERS_OFFLINE"))


def _yes(text: str | None) -> bool:
    return (text or "").strip().upper() in ("1", "ON", "YES", "TRUE")


def url_of(connection: Connection, repository: str, commit: str, path: str) -> str:
    return f"{connection.endpoint}/{repository}/resolve/{quote(commit, safe='')}/{quote(path)}"


# --- one attempt


@dataclass(frozen=True)
class Body:
    """An answer whose bytes are still to come. `start` is where in the file they begin."""

    start: int
    chunks: Iterator[bytes]


@contextlib.contextmanager
def attempt(connection: Connection, url: str, repository: str, start: int = 0) -> Iterator[Body]:
    """Ask once, following redirects; the token goes to the hub's own host alone. Broken where it may be repeated."""
    from huggingface_hub import get_session

    session = get_session()
    package = importlib.import_module(type(session).__module__.split(".")[0])
    network = (package.HTTPError, package.InvalidURL, package.StreamError, OSError)
    for _ in range(_MOST_REDIRECTS):
        try:
            answer = session.stream(
                "GET", url, headers=_headers(connection, url, start), follow_redirects=False,
                timeout=connection.patience.silence,
            )  # fmt: skip
            response = answer.__enter__()
        except network as error:
            raise Broken(_unreachable(url, error), nobody=True) from None
        try:
            if response.status_code not in _REDIRECTS:
                _refuse(connection, response, repository, url, network)
                yield Body(_start(response, start), _chunks(response, url, network))
                return
            url = _next(url, response.headers.get("location", ""))
        finally:
            with contextlib.suppress(*network):
                answer.__exit__(None, None, None)
    raise Broken(f"{_host(url)} redirects in a circle")


def _headers(connection: Connection, url: str, start: int) -> dict[str, str]:
    headers = {"User-Agent": f"sdcli/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    if connection.token and _origin(url) == _origin(connection.endpoint):
        headers["Authorization"] = f"Bearer {connection.token}"
    return headers


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").casefold(), port


def _next(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
        _origin(target)
    except ValueError:
        raise Broken(f"{_host(url)} redirects to nowhere") from None
    if not location or scheme not in ("http", "https") or (url.startswith("https:") and scheme == "http"):
        raise Offline(f"{_host(url)} redirects to {show(location, 100)}, which is not followed", hint=_AGAIN)
    return target


def _start(response: Any, asked: int) -> int:
    """Where the answer begins: a server may ignore the range, and then it sends all."""
    if response.status_code != 206:
        return 0
    told = response.headers.get("content-range", "")
    begin = told.removeprefix("bytes ").split("-")[0].strip()
    if "content-encoding" in response.headers or not begin.isdecimal() or int(begin) != asked:
        raise Broken(f"{show(response.url.host, 80)} sent another part of the file than was asked for", part=True)
    return asked


def _chunks(response: Any, url: str, network: tuple[type[Exception], ...]) -> Iterator[bytes]:
    try:
        yield from response.iter_bytes()  # as they arrive: a size given here would hold back what a break then loses
    except network as error:
        raise Broken(_unreachable(url, error, begun=True)) from None


def _unreachable(url: str, error: Exception, begun: bool = False) -> str:
    slow = "Timeout" in type(error).__name__
    if begun:
        return f"{_host(url)} {'fell silent' if slow else 'broke the connection off'}"
    return f"{_host(url)} {'does not answer' if slow else 'cannot be reached'}"


def _host(url: str) -> str:
    return show(urlsplit(url).netloc, 80)


# --- what an answer means


def _refuse(
    connection: Connection, response: Any, repository: str, url: str, network: tuple[type[Exception], ...]
) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in _TRY_LATER:
        wait = _asked_to_wait(response.headers)
        why = "asks to wait" if status == 429 else "has trouble"
        raise Broken(f"{_host(url)} {why} ({status})", wait)
    if status == 416:
        raise Broken(f"{_host(url)} has no such part of the file ({status})", part=True)
    with contextlib.suppress(*network):
        next(response.iter_bytes(2048), b"")  # polite: an answer is read before it is put down
    if _origin(url) != _origin(connection.endpoint):
        raise Broken(f"{_host(url)} refused ({status})")  # its address was good for a while only: ask the hub again
    raise _refusal(connection, status, response.headers, repository)


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    told = headers.get("retry-after", "").strip()
    return float(told) if told.isdecimal() and len(told) < 7 else None


def _refusal(connection: Connection, status: int, headers: Mapping[str, str], repository: str) -> SdcliError:
    code, said = headers.get("x-error-code", ""), headers.get("x-error-message", "")
    page = f"{connection.endpoint}/{repository}"
    name = show(repository, 120)
    if said.startswith("Invalid credentials") or (status == 401 and connection.token and code != "RepoNotFound"):
        return Gated(
            f"{connection.host} did not accept the token: it is mistyped, expired or revoked",
            hint="hf auth login   (or HF_TOKEN=<a valid token> in front of the same command)", page=page,
        )  # fmt: skip
    if code == "GatedRepo" or (status == 403 and "gated" in said.casefold()):
        return _gated(connection, name, said, page)
    if code == "RevisionNotFound":
        return ModelMissing(f"{name} has no such revision on {connection.host}", hint=f"sdcli pull {name}")
    if code == "EntryNotFound":
        return ModelMissing(f"{name} lacks a file that its own list names", hint=f"sdcli pull {name}")
    if "disabled" in said:
        return ModelMissing(f"{name} has been disabled by {connection.host}", hint="-m sd15")
    if status == 403:
        return Gated(
            f"{connection.host} does not let this token read {name}{f': {show(said, 200)}' if said else ''}",
            hint="hf auth login   (with a token that may read it)", page=page,
        )  # fmt: skip
    if status in (401, 404, 410):
        whose = "" if connection.token else ", or it is private and needs a token (hf auth login)"
        return ModelMissing(f"{connection.host} has no model {name}{whose}", hint="-m sd15")
    return Offline(f"{connection.host} answered {status}{f': {show(said, 200)}' if said else ''}", hint=_AGAIN)


def _gated(connection: Connection, name: str, said: str, page: str) -> Gated:
    if not connection.token:
        return Gated(
            f"{name} is given only to people who accepted its terms, and there is no token to tell who you are",
            hint=f"accept the terms at {show(page, 200)}\nthen: hf auth login", page=page,
        )  # fmt: skip
    if "fine-grained" in said:
        return Gated(
            f"{name} is gated, and this fine-grained token may not read gated models",
            hint=f"allow gated repositories at {connection.endpoint}/settings/tokens\nthen the same command again",
            page=page,
        )
    return Gated(
        f"{name} is given only to people who accepted its terms; the owner of this token has not, or not yet",
        hint=f"accept the terms at {show(page, 200)}\nthen the same command again", page=page,
    )  # fmt: skip


def given_up(connection: Connection, last: Broken, done: str = "", wanted: str = "") -> Offline:
    """After every attempt: what happened last, what is kept, what to try."""
    if last.wait and last.wait > connection.patience.longest:
        what = f"{last.what}, for {seconds_text(last.wait)}"
    else:
        what = last.what
    return Offline(f"{what}; {show(wanted, 120)} is not here" if wanted else what, done=done, hint=_AGAIN)


def is_hopeless(connection: Connection, failures: int, last: Broken) -> bool:
    return failures >= connection.patience.attempts or (last.wait or 0.0) > connection.patience.longest


# --- small answers


def read(connection: Connection, url: str, repository: str, most: int = LARGEST_ANSWER) -> bytes:
    """A whole small answer, tried patiently."""
    return _patiently(connection, url, repository, lambda body: _whole(body, most, url))


def read_start(connection: Connection, url: str, repository: str, wanted: Callable[[bytes], int]) -> bytes:
    """The beginning of a large file: `wanted` says from what has come how much it is. The rest is not waited for."""
    return _patiently(connection, url, repository, lambda body: _first(body, wanted))


def _patiently(connection: Connection, url: str, repository: str, take: Callable[[Body], bytes]) -> bytes:
    import time

    failures = 0
    while True:
        try:
            with attempt(connection, url, repository) as body:
                return take(body)
        except Broken as broken:
            failures += 1
            without_a_line = broken.nobody and failures >= 2  # most likely there is none: no reason to wait long
            if without_a_line or is_hopeless(connection, failures, broken):
                raise given_up(connection, broken, wanted=repository) from None
            time.sleep(connection.patience.wait(failures, broken.wait))


def _first(body: Body, wanted: Callable[[bytes], int]) -> bytes:
    held = b""
    for chunk in body.chunks:
        held += chunk
        if len(held) >= wanted(held):
            break
    return held


def _whole(body: Body, most: int, url: str) -> bytes:
    held = bytearray()
    for chunk in body.chunks:
        held += chunk
        if len(held) > most:
            raise Broken(f"{_host(url)} sends more than was asked for")
    return bytes(held)


def read_json(connection: Connection, url: str, repository: str) -> Mapping[str, Any]:
    held = read(connection, url, repository)
    try:
        answer = json.loads(held)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise Offline(
            f"{connection.host} does not answer like a hub: something in between (a log-in page?) answers for it",
            hint=_AGAIN,
        )
    return answer
