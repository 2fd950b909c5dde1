"""stable-diffusion.cpp's text: A1111's, with its own names of samplers and generators, and JSON at its end."""

from __future__ import annotations

import re
from typing import Any

from sdcli.record.metadata import a1111
from sdcli.record.metadata.foreign import LONGEST_SHOWN, pair, plain_name

DIALECT = "stable-diffusion.cpp"
_JSON = re.compile(r", SDCPP: (\{[^\n]*)\Z")
_GENERATORS = {"cuda": "nv", "cpu": "cpu"}


def is_its(text: str) -> bool:
    return f"Version: {DIALECT}" in text.rpartition("\n")[2]


def values(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    appended = _JSON.search(text)
    info = a1111.read(text[: appended.start()] if appended else text)
    fields, rest = a1111.values(info)
    if "sampler" not in fields and (written := rest.get("Sampler")):
        name, _, schedule = written.partition(" ")
        found, left = pair(name, schedule)
        if found is not None:
            fields["sampler"] = found
            del rest["Sampler"]
            rest |= {"Schedule type": left} if left else {}
    if (generator := _GENERATORS.get(rest.get("RNG", ""))) is not None:
        fields["rng"] = generator
        del rest["RNG"]
    if (model := plain_name(rest.get("Model"))) is not None:
        fields["model"] = model
        del rest["Model"]
    return fields, rest | ({"SDCPP": appended[1][:LONGEST_SHOWN]} if appended else {})
