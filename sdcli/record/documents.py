"""JSON as sdcli writes it: strict, one schema name and number per document."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from sdcli.errors import BadFile
from sdcli.terminal import show


def dump(value: Any, *, ascii_only: bool = False) -> bytes:
    """UTF-8 JSON. A lone surrogate is written as its \\u escape, so that even a hostile prompt reads back unchanged."""
    return _encoder(ascii_only).encode(value).encode("utf-8", "backslashreplace")


@functools.cache
def _encoder(ascii_only: bool) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":"))


def pieces(value: Any, *, end: bytes = b"", levels: int = 3) -> Iterator[bytes]:
    """The same JSON in pieces; a long list as one text costs ten times their own size. `end` follows each comma."""
    if levels > 0 and isinstance(value, Mapping) and value:
        for number, (key, item) in enumerate(value.items()):
            yield (b"," + end if number else b"{") + dump(str(key)) + b":"
            yield from pieces(item, end=end, levels=levels - 1)
        yield b"}"
    elif levels > 0 and isinstance(value, (list, tuple)) and value:
        for number, item in enumerate(value):
            yield (b"," + end if number else b"[") + dump(item)
        yield b"]"
    else:
        yield dump(value)


def check_schema(data: Mapping[str, Any], name: str, newest: int, where: str, hint: str = "") -> None:
    """`data` says `name/1` … `name/newest`; a higher number was written by a newer sdcli and is refused."""
    declared = data.get("schema")
    kind, _, number = str(declared).rpartition("/")
    if kind != name or not number.isascii() or not number.isdigit() or len(number) > 6 or int(number) < 1:
        instead = "names no schema" if declared is None else f"is {show(declared, 60)}"
        raise BadFile(f"{show(where)} is not an {name} document: it {instead}", hint=hint)
    if int(number) > newest:
        raise BadFile(
            f"{show(where)} was written by a newer sdcli: it is {show(declared, 60)}, this one reads {name}/{newest}",
            hint="sdcli --version",
        )
