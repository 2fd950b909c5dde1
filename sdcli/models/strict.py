"""JSON that means one thing: UTF-8, no key twice, no NaN, no depth that exhausts the reader."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from sdcli.terminal import show


class StrictError(ValueError):
    """What is wrong, as the end of a sentence: "names "a" twice"."""


def parse(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except StrictError:
        raise
    except (ValueError, RecursionError):
        raise StrictError("is not JSON") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers may believe two different ones of the same key: neither is right."""
    table = dict(pairs)
    if len(table) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise StrictError(f'names "{show(twice, 80)}" twice')
    return table


def _no_constant(name: str) -> None:
    raise ValueError(name)
