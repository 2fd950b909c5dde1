"""One file per family: what it is called, what it draws best, and which parts it has.

To add a family: a file here with FAMILY, its name in `_FILES`, its configs in configs/components/<name>/, its kind in
models/kinds.py, and its encode and denoise in draw/ where they differ.
"""

from __future__ import annotations

import functools
import importlib

from sdcli.models.families.family import Family

_FILES = ("sd15", "sdxl", "builtin")


@functools.cache
def families() -> dict[str, Family]:
    loaded = (importlib.import_module(f"sdcli.models.families.{name}").FAMILY for name in _FILES)
    return {family.name: family for family in loaded}


def find(name: str) -> Family:
    return families()[name]
