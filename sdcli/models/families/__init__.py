"""One file per family: its name, defaults and components.

To add a family: a file here with FAMILY, its name in `_FILES`, and its configs in configs/components/<name>/.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from sdcli.models.families.family import Family

_FILES = ("sd15", "sd2", "sdxl", "refiner", "builtin")


@functools.cache
def families() -> dict[str, Family]:
    loaded = (importlib.import_module(f"sdcli.models.families.{name}").FAMILY for name in _FILES)
    return {family.name: family for family in loaded}


def of_unet(config: Mapping[str, Any]) -> Family | None:
    """The family whose UNet a config describes: by the published width of its text, else by its structure."""
    with_unet = [family for family in families().values() if family.matches is not None]
    by_width = [family for family in with_unet if family.text_width == config.get("cross_attention_dim")]
    return next(iter(by_width or [family for family in with_unet if family.matches and family.matches(config)]), None)


def original_prefixes(part: str) -> tuple[str, ...]:
    """The prefixes of a text encoder's tensors in single files of any family."""
    encoders = [encoder for family in families().values() for encoder in family.encoders if encoder.part == part]
    return tuple(dict.fromkeys(encoder.original for encoder in encoders))


def find(name: str) -> Family:
    return families()[name]
