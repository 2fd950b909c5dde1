"""`sdcli diff`: the settings and the pixels in which two images differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sdcli import __version__, schema
from sdcli.cli.answer import Answered, print_json
from sdcli.errors import BadFile, Differs, ErrorObject, Usage
from sdcli.images import difference
from sdcli.images import read as images
from sdcli.record.metadata import read
from sdcli.record.metadata.differing import Differing, differing
from sdcli.record.metadata.read import ImageSettings
from sdcli.request.options import SCREEN
from sdcli.request.options import command as make
from sdcli.terminal import in_columns, plain, show, speaks_unicode, tell, width

WIDEST_NAME = 24
MOST_SHOWN = 300  # of a value
_EXAMPLE = "sdcli diff a.png b.png"


@dataclass(frozen=True, kw_only=True)
class Side:
    """`dialect`: whose settings are in the file, None where there are none to be read: `error` says why."""

    file: str
    width: int
    height: int
    pixel_sha256: str
    dialect: str | None
    error: ErrorObject | None


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Of the values, three for each pixel; `psnr` in dB, None where none differs."""

    identical: bool
    values: int
    different_values: int
    max: int
    psnr: float | None


@dataclass(frozen=True, kw_only=True)
class ImageDiff:
    """`settings` is None where one image has none, `pixels` where the sizes differ."""

    schema: str = "sdcli.diff/1"
    version: str = __version__
    identical: bool
    a: Side
    b: Side
    settings: tuple[Differing, ...] | None
    pixels: Pixels | None


def command() -> Callable[..., None]:
    return make(
        _diff, [option for option in SCREEN if option.field in ("json", "debug")], name="diff", words="IMAGE",
        help="Show the settings and the pixels in which two images differ: sdcli diff a.png b.png. Exit code 0 if "
        "their pixels are identical, 10 if not.",
    )  # fmt: skip


def _diff(typed: dict[str, Any]) -> None:
    words = typed.get("words", ())
    if len(words) != 2:
        raise Usage(f"diff takes two images, not {len(words)}", hint=_EXAMPLE)
    found = compared(*words)
    if typed.get("json"):
        print_json(schema.to_json(found))
    else:
        for line in _lines(found, width(sys.stdout)):
            tell(line if speaks_unicode(sys.stdout) else plain(line))
    raise Answered(0 if found.identical else Differs.code)


# --- what differs


def compared(first: str, second: str) -> ImageDiff:
    ours, theirs = _look(first), _look(second)
    pixels = _pixels(ours, theirs)
    settings = differing(ours.settings, theirs.settings) if ours.settings and theirs.settings else None
    identical = pixels is not None and pixels.identical
    return ImageDiff(identical=identical, a=ours.side, b=theirs.side, settings=settings, pixels=pixels)


@dataclass(frozen=True)
class _Looked:
    side: Side
    settings: ImageSettings | None
    rgb: bytes


def _look(path: str) -> _Looked:
    from hashlib import sha256

    found = images.decoded(path)
    rgb = found.tobytes()
    settings, error = None, None
    try:
        settings = read.read(path)
    except BadFile as bad:  # it was just read: the settings are what is missing or wrong
        error = bad.to_json()
    side = Side(
        file=path, width=found.width, height=found.height, pixel_sha256=sha256(rgb).hexdigest(),
        dialect=settings.dialect if settings else None, error=error,
    )  # fmt: skip
    return _Looked(side, settings, rgb)


def _pixels(a: _Looked, b: _Looked) -> Pixels | None:
    if (a.side.width, a.side.height) != (b.side.width, b.side.height):
        return None
    apart = difference.compare(a.rgb, b.rgb)
    return Pixels(
        identical=apart.identical, values=len(a.rgb), different_values=round(apart.share * len(a.rgb)),
        max=apart.largest, psnr=apart.psnr,
    )  # fmt: skip


# --- for people


def _lines(found: ImageDiff, columns: int) -> Iterator[str]:
    rows = [("image", f"{show(found.a.file, 200)} → {show(found.b.file, 200)}")]
    rows += [(show(row.name, 60), f"{_text(row.a)} → {_text(row.b)}") for row in found.settings or ()]
    if found.settings == ():
        rows.append(("settings", "no difference"))
    rows += [("settings", show(side.error["message"])) for side in (found.a, found.b) if side.error]
    rows.append(("pixels", _of_pixels(found)))
    room = min(WIDEST_NAME, max(len(name) for name, _ in rows)) + 2
    for name, text in rows:
        yield from in_columns(f"{name}  " if len(name) + 2 > room else name, text, max(room, len(name) + 2), columns)


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return show(text, MOST_SHOWN)


def _of_pixels(found: ImageDiff) -> str:
    pixels, a, b = found.pixels, found.a, found.b
    if pixels is None:
        return f"not compared: {a.width}×{a.height} → {b.width}×{b.height}"
    if pixels.identical:
        return "identical"
    share = 100 * pixels.different_values / pixels.values
    percent = f"{share:.2f} %" if share >= 0.01 else "less than 0.01 %"
    return (
        f"{pixels.different_values:,} of {pixels.values:,} values differ ({percent}), by at most {pixels.max} of "
        f"255; PSNR {pixels.psnr:.1f} dB"
    )
