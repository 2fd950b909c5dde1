"""What is refused before any API sees it, said in the words of the API that was called."""

from __future__ import annotations

import json
from typing import Any

Headers = list[tuple[bytes, bytes]]

HEADERS: Headers = [
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
BUG = "a bug in sdcli; the server's own messages say more"
OF_HEADS = {
    400: "this is no HTTP request", 408: "the request did not come in time", 414: "the URL is too long",
    431: "the head of the request is too large", 501: "this transfer encoding is not understood",
}  # fmt: skip
_CODES = {
    400: "bad_request", 401: "invalid_api_key", 403: "cross_site", 404: "not_found", 405: "method_not_allowed",
    408: "timeout", 413: "too_large", 414: "too_large", 415: "unsupported_media_type", 421: "unknown_host",
    431: "too_large", 500: "bug", 501: "bad_request", 503: "unavailable",
}  # fmt: skip
_KINDS = {401: "authentication_error", 403: "permission_error"}


def body(path: str, status: int, message: str, code: str = "") -> bytes:
    """An error as JSON: of A1111's shape where its API was called, of OpenAI's everywhere else."""
    return json.dumps(_shape(path, status, message, code or _CODES[status])).encode()


def _shape(path: str, status: int, message: str, code: str) -> dict[str, Any]:
    if is_a1111(path):
        return {"error": code, "detail": message, "body": "", "errors": message}
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def code_of(status: int) -> str:
    return _CODES[status]


def is_a1111(path: str) -> bool:
    return path.startswith(("/sdapi/", "/controlnet/"))
