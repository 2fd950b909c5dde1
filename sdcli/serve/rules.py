"""Who may ask for what: the names this server answers to, the pages it answers, the keys it knows, and what each path
takes. Facts and decisions; guard.py carries them out."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

TEXT, IMAGES = 64 << 10, 28 << 20  # bytes of a body: of words and numbers, and with images (20 MiB of them as base64)
JSON, FORM = "application/json", "multipart/form-data"
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-f:.]{2,45})\]|(?P<four>[0-9.]{7,15}))(?::(?P<port>\d{1,5}))?", re.ASCII)
UNMATCHED = "-"  # the template of a path that no route has

# Paths whose requests may hold images, and the one that holds them as a form. All others take JSON without any.
WITH_IMAGES = frozenset({
    "/v1/images/generations", "/v1/jobs", "/v1/plan", "/v1/settings", "/sdapi/v1/txt2img", "/sdapi/v1/img2img",
    "/sdapi/v1/png-info", "/sdapi/v1/extra-single-image", "/sdapi/v1/extra-batch-images", "/controlnet/txt2img",
    "/controlnet/img2img", "/controlnet/detect",
})  # fmt: skip
FORMS = frozenset({"/v1/images/edits"})
# Read without a key. The names of results are random, and whoever was given one may read that image.
OPEN = frozenset({"/", "/healthz", "/readyz", "/v1/results/{name}"})
PAGE = re.compile(r"/[a-z]+\.(js|css|svg|png)", re.ASCII)  # the files of the page, which says how to give a key


@dataclass(frozen=True, kw_only=True)
class Body:
    kinds: tuple[str, ...] = (JSON,)
    largest: int = TEXT


def body_of(template: str) -> Body:
    if template in FORMS:
        return Body(kinds=(FORM,), largest=IMAGES)
    return Body(largest=IMAGES if template in WITH_IMAGES else TEXT)


def is_open(template: str, method: str) -> bool:
    return method in ("GET", "HEAD") and (template in OPEN or PAGE.fullmatch(template) is not None)


@dataclass(frozen=True, kw_only=True)
class Rules:
    hosts: frozenset[str]  # as a Host header has them, in lower case: localhost:7860
    any_address: bool = False  # whatever address it was called by: a name can be made to point here, an address cannot
    origins: frozenset[str] = frozenset()  # other pages that may ask: https://app.example
    keys: tuple[bytes, ...] = ()  # their SHA-256
    seconds: float = 10.0  # for a whole body, and one more for each MiB
    most_held: int = 256 << 20  # bytes of all bodies that are being received
    port: int = 80

    def answers_to(self, host: str) -> bool:
        name = host.lower()
        return name in self.hosts or (self.any_address and self._is_address(name))

    def _is_address(self, host: str) -> bool:
        match = _ADDRESS.fullmatch(host)
        if match is None or int(match["port"] or 80) != self.port:
            return False
        try:
            ipaddress.IPv6Address(match["six"]) if match["six"] else ipaddress.IPv4Address(match["four"])
        except ValueError:
            return False
        return True

    def own_page(self, origin: str, host: str) -> bool:
        return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")

    def known(self, key: str) -> str | None:
        """Its SHA-256, by which it is called, if it is one of ours. How long it takes says nothing about it."""
        given = digest(key)
        same = [hmac.compare_digest(given, each) for each in self.keys]
        return given.hex() if any(same) else None


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def hosts_of(host: str, port: int, more: Iterable[str] = ()) -> frozenset[str]:
    """What a Host header may say when the server listens at `host`. A name that was added may also come through a
    proxy, which has a port of its own."""
    own = {"localhost", "127.0.0.1", "[::1]", bracketed(host).lower()}
    with_port = {f"{name}:{port}" for name in own} | (own if port == 80 else set())
    for name in (name.lower() for name in more):
        with_port |= {name} if _has_port(name) else {name, f"{name}:{port}"}
    return frozenset(with_port)


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _has_port(name: str) -> bool:
    return ":" in name.rpartition("]")[2]


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
