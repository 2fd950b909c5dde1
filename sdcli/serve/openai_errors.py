"""Every failure in the shape of OpenAI's errors: its client raises by status, and asks again where that may help."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.responses import Response

from sdcli.errors import SdcliError
from sdcli.request.options import OPTIONS, flag_of
from sdcli.serve.bodies import BadBody
from sdcli.serve.line import UNKNOWN_WAIT, Full

# status, type, whether the same request may do better later
_OF_ERRORS: dict[str, tuple[int, str, bool]] = {
    "usage": (400, "invalid_request_error", False),
    "bad_file": (400, "invalid_request_error", False),
    "does_not_fit": (400, "invalid_request_error", False),
    "unsafe": (400, "invalid_request_error", False),
    "model_missing": (404, "invalid_request_error", False),
    "offline": (404, "invalid_request_error", False),
    "gated": (404, "invalid_request_error", False),
    "interrupted": (409, "conflict_error", False),
    "cancelled": (409, "conflict_error", False),
    "terminated": (503, "server_error", True),
    "device": (503, "server_error", False),
}
STATUSES = {kind: status for kind, (status, _, _) in _OF_ERRORS.items()}
_BROKEN = (500, "server_error", False)
_LATE = (504, "server_error", False)
_FIELDS = {flag_of(option.field): option.field for option in OPTIONS if option.flags}
_FLAG = re.compile(r"--[a-z][a-z-]*")


class Conflict(Exception):
    """An Idempotency-Key that was used for another request."""


def refused(error: Exception, given: Mapping[str, str] | None = None) -> Response:
    """`given`: names that a body used, by what they stand for: a setting, or the path of a file that came along."""
    status, again = _status(error)[0], _status(error)[2]
    headers = {"x-should-retry": "true" if again else "false"}
    if again:
        headers["Retry-After"] = str(_seconds(error))
    content = json.dumps({"error": described(error, given)}, ensure_ascii=False).encode()
    return Response(content, status, headers, media_type="application/json")


def described(error: Exception, given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The object that `error` is in a body, and in an event of a stream."""
    message, hint = str(error), ""
    if isinstance(error, SdcliError):
        hint = in_fields(error.hint, given or {})
        message = in_fields(message, given or {})
    param = getattr(error, "field", None) or _param(error, given or {})
    found = {"message": message, "type": _status(error)[1], "param": param, "code": _code(error)}
    return {**found, "hint": hint} if hint else found


def _status(error: Exception) -> tuple[int, str, bool]:
    if isinstance(error, BadBody):
        return getattr(error, "status", 400), "invalid_request_error", False
    if isinstance(error, Full):
        return 429, "rate_limit_error", True
    if isinstance(error, Conflict):
        return 422, "invalid_request_error", False
    if isinstance(error, SdcliError):
        return _LATE if error.details.get("late") else _OF_ERRORS.get(error.type, _BROKEN)
    return _BROKEN


def _code(error: Exception) -> str:
    if isinstance(error, SdcliError):
        return "shutting_down" if error.type == "terminated" else error.type
    if isinstance(error, BadBody):
        return getattr(error, "code", "bad_body")
    return {Full: "queue_full", Conflict: "idempotency_key_reused"}.get(type(error), "bug")


def _seconds(error: Exception) -> int:
    return error.retry_after if isinstance(error, Full) else UNKNOWN_WAIT


def _param(error: Exception, given: Mapping[str, str]) -> str | None:
    """The field that a message is about: it names its flag, or the file that came along."""
    if not isinstance(error, SdcliError):
        return None
    if named := error.details.get("field"):
        return given.get(str(named), str(named))
    for path, name in given.items():
        if is_file(path) and path in error.message:
            return name
    flags = (_FIELDS.get(flag) for text in (error.message, error.hint) for flag in _FLAG.findall(text))
    missing = "model" if error.type in ("model_missing", "offline", "gated") else None
    found = next((setting for setting in flags if setting is not None), missing)
    return None if found is None else given.get(found, found)


def in_fields(text: str, given: Mapping[str, str]) -> str:
    """What is said of the command line, said of a body: fields in place of flags, and no path of the server's."""
    named = _FLAG.sub(lambda flag: _named(flag[0], given), without_paths(text, given))
    return named.replace("the same command", "the same request")


def without_paths(text: str, given: Mapping[str, str]) -> str:
    for path, name in given.items():
        if is_file(path):
            text = text.replace(path, name).replace(Path(path).name, name)
    return text


def is_file(name: str) -> bool:
    """Settings have no slash in their names."""
    return "/" in name or "\\" in name


def _named(flag: str, given: Mapping[str, str]) -> str:
    setting = _FIELDS.get(flag)
    return flag if setting is None else given.get(setting, setting)
