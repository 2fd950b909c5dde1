"""`sdcli meta`: the settings in images, whichever program wrote them, and copies without any."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcli import schema
from sdcli.cli.answer import Answered, print_json, say_error
from sdcli.errors import ErrorObject, SdcliError, Usage
from sdcli.request.options import OPTIONS, SCREEN, flag_of
from sdcli.request.options import command as make
from sdcli.terminal import in_columns, plain, show, speaks_unicode, tell, width

_EXAMPLE = "sdcli meta show IMAGE"
_NAMES = {"prompts": "prompt", "negative_prompt": "negative", "width": "--size"}
_ROOM = 20
LONGEST = 4000  # of a value on the screen


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """`values` are settings by name; `unknown` is what else the file holds, and what sdcli makes no use of."""

    file: str
    dialect: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)
    error: ErrorObject | None = None


@dataclass(frozen=True, kw_only=True)
class Shown:
    schema: str = "sdcli.meta/1"
    files: tuple[FileSettings, ...]


@dataclass(frozen=True, kw_only=True)
class Copy:
    """`path` is the copy's, None where there is none: `error` says why."""

    file: str
    path: str | None = None
    error: ErrorObject | None = None


@dataclass(frozen=True, kw_only=True)
class Stripped:
    schema: str = "sdcli.meta-strip/1"
    files: tuple[Copy, ...]


def command() -> Callable[..., None]:
    output = next(option for option in OPTIONS if option.field == "output")
    options = [
        output._replace(metavar="FOLDER", help="strip: folder for the copies; beside each image if omitted."),
        *(option for option in SCREEN if option.field in ("json", "debug")),
    ]
    return make(
        _meta, options, name="meta", words="show FILE | strip FILE",
        help="Show the settings in images, those of A1111, ComfyUI, InvokeAI, stable-diffusion.cpp and mflux too; or "
        "save copies without any metadata, the pixels unchanged.",
    )  # fmt: skip


def _meta(typed: dict[str, Any]) -> None:
    verb, *files = [*typed.get("words", ())] or [""]
    if verb not in ("show", "strip"):
        raise Usage(f'meta takes show or strip, not "{show(verb, 40)}"', hint=_EXAMPLE)
    if not files:
        raise Usage(f"meta {verb} takes one image or more", hint=f"sdcli meta {verb} IMAGE")
    if verb == "show" and typed.get("output"):
        raise Usage("meta show saves nothing, so it takes no -o", hint=_EXAMPLE)
    as_json = bool(typed.get("json"))
    raise Answered(_show(files, as_json) if verb == "show" else _strip(files, typed.get("output"), as_json))


# --- show


def _show(files: Sequence[str], as_json: bool) -> int:
    from sdcli.record.metadata import read

    found, code = [], 0
    for number, file in enumerate(files):
        try:
            settings = read.read(file)
        except SdcliError as error:
            code = code or error.code
            found.append(FileSettings(file=file, error=error.to_json()))
            if not as_json:
                say_error(error)
            continue
        unknown = schema.to_json(settings.unknown)
        found.append(FileSettings(file=file, dialect=settings.dialect, values=settings.plain, unknown=unknown))
        if not as_json:
            _tell(file if len(files) > 1 else "", settings.dialect, settings.values, settings.unknown, number > 0)
    if as_json:
        print_json(schema.to_json(Shown(files=tuple(found))))
    return code


def _tell(file: str, dialect: str, values: Mapping[str, Any], unknown: Mapping[str, Any], later: bool) -> None:
    if file:
        tell(("\n" if later else "") + show(file, 200))
    rows = [("dialect", dialect), *_rows(values)]
    rows += [("not used", f"{show(key, 60)}: {_text(value)}") for key, value in unknown.items()]
    for name, text in rows:
        for line in in_columns(name, text, _ROOM, width(sys.stdout)):
            tell(line if speaks_unicode(sys.stdout) else plain(line))


def _rows(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if name in ("prompts", "seeds"):
            value = value[0]
        if name == "height" or (name == "negative_prompt" and not value):
            continue
        text = f"{value}x{values.get('height')}" if name == "width" else _text(value)
        yield _NAMES.get(name) or flag_of(name), text


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    return show(value if isinstance(value, str) else schema.to_json(value), LONGEST)


# --- strip


def _strip(files: Sequence[str], folder: str | None, as_json: bool) -> int:
    from sdcli.record.metadata import strip

    copies, code = [], 0
    for file in files:
        try:
            path = strip.save(file, Path(os.path.expanduser(folder)) if folder else None)
        except SdcliError as error:
            code = code or error.code
            copies.append(Copy(file=file, error=error.to_json()))
            if not as_json:
                say_error(error)
            continue
        copies.append(Copy(file=file, path=str(path)))
        if not as_json:
            tell(str(path))
    if as_json:
        print_json(schema.to_json(Stripped(files=tuple(copies))))
    return code
