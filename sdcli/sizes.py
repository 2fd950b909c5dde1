"""A size as people write it, in bytes: 8GiB, 6.5, 6000MiB, 24GB; and memory as a figure in GiB."""

from __future__ import annotations

import re

GIB = 1 << 30
_UNITS = {
    "": GIB,  # memory is spoken of in GiB
    "g": GIB,
    "m": 1 << 20,
    "t": 1 << 40,
    "gib": GIB,
    "mib": 1 << 20,
    "tib": 1 << 40,
    "gb": 10**9,
    "mb": 10**6,
    "tb": 10**12,
}
LARGEST = 1 << 50
_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?|\.\d{1,15})\s*([a-z]{0,3})\s*", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes, at least 1 MiB; anything else is ValueError with the reason."""
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("a size is a number with MiB, GiB, MB, GB, G or nothing (GiB)")
    size = round(float(match[1]) * unit)
    if not 1 << 20 <= size <= LARGEST:
        raise ValueError("a size is between 1 MiB and 1024 TiB")
    return size


def gib(count: int | float, decimals: int = 1) -> str:
    """1.7: the figure alone, where several share one unit; `terminal.size_text` where one stands for itself."""
    return f"{count / GIB:.{decimals}f}"
