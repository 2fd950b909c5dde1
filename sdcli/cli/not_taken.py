"""What was meant but is not taken, told, since another picture is drawn: settings of a picture, syntax of a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sdcli.plan.plan import Adapter, Warning
from sdcli.request.prompt import of_other_programs
from sdcli.request.request import Request
from sdcli.terminal import show

CODES = SETTINGS, SYNTAX = "settings-not-taken", "syntax-not-known"  # told before drawing
MOST_NAMED = 12
MOST_SYNTAX = 4
# Of the web UI's pairs, those that say where a picture comes from, not how it was drawn.
_NO_SETTINGS = frozenset({"Version", "Model hash", "VAE hash", "Hashes", "User", "Created Date", "Time taken"})
_FIELDS = {
    "Model": "model", "Sampler": "sampler", "Schedule type": "sampler", "Steps": "steps", "CFG scale": "guidance",
    "Size": "width", "Seed": "seeds", "Clip skip": "clip_skip", "Emphasis": "emphasis", "VAE": "vae_file",
}  # fmt: skip
_NETWORKS = {"Lora hashes": "LoRA", "TI hashes": "embedding"}


def not_taken(
    left: Mapping[str, Any], request: Request, origins: Mapping[str, str], adapters: Iterable[Adapter]
) -> tuple[Warning, ...]:
    """Of the pairs left over those that a flag does not set anyway, each with what is used in its place."""
    told = list(_told(left, request, origins, tuple(adapters)))
    if not told:
        return ()
    more = len(told) - MOST_NAMED
    listed = ", ".join(told[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return (Warning(code=SETTINGS, message=f"not taken from the picture's settings: {listed}"),)


def plain_words(texts: Iterable[str]) -> tuple[Warning, ...]:
    """What these prompts hold that is syntax elsewhere."""
    found = list(dict.fromkeys(one for text in dict.fromkeys(texts) for one in of_other_programs(text)))
    if not found:
        return ()
    more = len(found) - MOST_SYNTAX
    listed = ", ".join(show(one, 40) for one in found[:MOST_SYNTAX]) + (f" and {more} more" if more > 0 else "")
    return (Warning(code=SYNTAX, message=f"drawn as plain words, for sdcli has no such syntax: {listed}"),)


def _told(
    left: Mapping[str, Any], request: Request, origins: Mapping[str, str], adapters: tuple[Adapter, ...]
) -> Iterator[str]:
    for key, value in left.items():
        if key in _NETWORKS:
            yield from (f"the {_NETWORKS[key]} {show(name, 40)}" for name in _absent(str(value), adapters))
        elif key not in _NO_SETTINGS and origins.get(_FIELDS.get(key, "")) != "flag" and (key, value) != ("RNG", "CPU"):
            said = show(key, 40) if key == value else f"{show(key, 40)} {show(value, 40)}"
            instead = "" if key == "Schedule type" and "Sampler" in left else _instead(key, request)
            yield f"{said} ({instead})" if instead else said


def _absent(hashes: str, adapters: tuple[Adapter, ...]) -> Iterator[str]:
    """Of `name: hash, name: hash` the names that nothing beside the model has."""
    here = {name.casefold() for adapter in adapters for name in (adapter.name, adapter.word)}
    names = (found[1].strip() for found in re.finditer(r"([^:,]{1,200}):[^,]*", hashes))
    return (name for name in names if name.casefold() not in here)


def _instead(key: str, request: Request) -> str:
    if key == "VAE":
        return "the model's own is used"
    if key == "RNG":
        return "noise is drawn on the CPU"
    if key == "Seed":
        return "a random one is used"
    if key == "Size":
        return f"{request.width}x{request.height} is used"
    if key == "Schedule type":
        return f"{request.sampler} is used without it"
    return f"{getattr(request, _FIELDS[key])} is used" if key in _FIELDS else ""
