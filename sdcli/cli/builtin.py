"""Messages about the built-in model: what it is, and which models draw more."""

from __future__ import annotations

import os

from sdcli.errors import SdcliError
from sdcli.models import hub_cache, resolve
from sdcli.terminal import disk_text

WHAT = "a small emoji model"


def photographs() -> str:
    """How to draw more than emoji, in one line."""
    return "Photographs: " + " or ".join(f"-m {name}{_price(name)}" for name in ("sd15", "sdxl"))


def _price(name: str) -> str:
    try:
        model = resolve.resolve(name, hub=hub_cache.folder(os.environ))
    except (SdcliError, OSError):  # a damaged copy: drawing with it says so
        return ""
    return "" if model.cached else f" ({disk_text(model.download_bytes)} to download)"
