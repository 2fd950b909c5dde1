"""mflux's settings: one JSON object in the EXIF comment. Its models are others than ours, so theirs is only shown."""

from __future__ import annotations

from typing import Any

from sdcli.record.metadata.foreign import Taken, parse

MARK = '"mflux_version"'


def values(text: str, where: str, hint: str) -> tuple[dict[str, Any], dict[str, str]]:
    raw, taken = parse(text, where, hint), Taken()
    taken.prompts(raw.pop("prompt", None), raw.pop("negative_prompt", None) or "")
    taken.seed(raw.pop("seed", None))
    taken.steps(raw.pop("steps", None))
    taken.guidance(raw.pop("guidance", None))
    taken.size(raw.pop("width", None), raw.pop("height", None))
    taken.leave_all(raw)
    return taken.values, taken.unknown
