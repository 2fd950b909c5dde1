"""One file per family: what it is called, what it draws best, and which parts it has.

To add a family: a file here with FAMILY, its name in `_FILES`, and its configs in configs/components/<name>/.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from sdcli.models.families.family import Family

_FILES = ("sd15", "sd2", "sdxl", "builtin")


@functools.cache
def families() -> dict[str, Family]:
    loaded = (importlib.import_module(f"sdcli.models.families.{name}").FAMILY for name in _FILES)
    return {family.name: family for family in loaded}


def of_unet(config: Mapping[str, Any]) -> Family | None:
    """The family whose UNet a config describes: by the width of its text as published, else by what it is made of."""
    known = [family for family in families().values() if family.owns is not None]
    by_width = [family for family in known if family.text_width == config.get("cross_attention_dim")]
    return next(iter(by_width or [family for family in known if family.owns and family.owns(config)]), None)


def original_places(part: str) -> tuple[str, ...]:
    """Where single files of any family hold a text encoder's tensors."""
    encoders = [encoder for family in families().values() for encoder in family.encoders if encoder.part == part]
    return tuple(dict.fromkeys(encoder.original for encoder in encoders))


def find(name: str) -> Family:
    return families()[name]
