"""Warns of what is ignored, since the image differs: stored settings of an image, other programs' prompt syntax."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sdcli.plan.plan import Adapter, PlanWarning
from sdcli.request.options import flag_of
from sdcli.request.request import Request
from sdcli.request.tags import of_other_programs
from sdcli.terminal import show

SETTINGS, SYNTAX = "settings-not-taken", "syntax-not-known"  # shown before drawing
MOST_NAMED = 12
MOST_SYNTAX = 4
# The web UI's pairs that say where an image comes from, not how it was drawn.
NO_SETTINGS = frozenset({
    "Version", "Model hash", "VAE hash", "Hashes", "User", "Created Date", "Time taken", "Postprocess upscaler",
    "Postprocess upscale by", "Postprocess upscale to", "Template", "Negative Template",
})  # fmt: skip
_FIELDS = {
    "Model": "model", "Sampler": "sampler", "Schedule type": "sampler", "Steps": "steps", "CFG scale": "guidance",
    "Size": "width", "Seed": "seeds", "Clip skip": "clip_skip", "Emphasis": "emphasis", "RNG": "rng", "VAE": "vae_file",
    "Image": "image", "Mask": "mask", "Control": "control", "Reference": "reference", "Refiner": "refiner",
    "Refiner switch at": "refiner",
}  # fmt: skip
_NETWORKS = {"Lora hashes": "LoRA", "TI hashes": "embedding"}


def not_taken(
    left: Mapping[str, Any], request: Request, origins: Mapping[str, str], adapters: Iterable[Adapter]
) -> tuple[PlanWarning, ...]:
    """A warning of the leftover pairs that no flag sets anyway, each with what is used instead."""
    ignored = list(_ignored(left, request, origins, tuple(adapters)))
    if not ignored:
        return ()
    more = len(ignored) - MOST_NAMED
    listed = ", ".join(ignored[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return (PlanWarning(code=SETTINGS, message=f"ignored in the image's settings: {listed}"),)


def plain_words(texts: Iterable[str], *, no_files: bool) -> tuple[PlanWarning, ...]:
    """A warning of what these prompts hold that is syntax in other programs, or that names a wildcard where there is
    no folder of them."""
    different = tuple(dict.fromkeys(texts))
    named = [name for text in different if "__" in text for name in _wildcards(text)] if no_files else []
    message = f"there is no folder of wildcards, and these are plain words: {', '.join(dict.fromkeys(named))}"
    return (*_syntax(different), *([PlanWarning(code=SYNTAX, message=message)] if named else []))


def _wildcards(text: str) -> Iterator[str]:
    from sdcli.request import wildcards

    return (show(name, 40) for name in wildcards.unknown(text)[:MOST_SYNTAX])


def _syntax(texts: Iterable[str]) -> tuple[PlanWarning, ...]:
    snippets = list(dict.fromkeys(snippet for text in texts for snippet in of_other_programs(text)))
    if not snippets:
        return ()
    more = len(snippets) - MOST_SYNTAX
    listed = ", ".join(show(text, 40) for text in snippets[:MOST_SYNTAX]) + (f" and {more} more" if more > 0 else "")
    return (PlanWarning(code=SYNTAX, message=f"not sdcli's syntax, taken as plain words: {listed}"),)


def _ignored(
    left: Mapping[str, Any], request: Request, origins: Mapping[str, str], adapters: tuple[Adapter, ...]
) -> Iterator[str]:
    for key, value in left.items():
        if key in _NETWORKS:
            yield from (f"the {_NETWORKS[key]} {show(name, 40)}" for name in _absent(str(value), adapters))
        elif key not in NO_SETTINGS and origins.get(_FIELDS.get(key, "")) != "flag":
            setting = show(key, 40) if key == value else f"{show(key, 40)} {show(value, 40)}"
            instead = "" if key == "Schedule type" and "Sampler" in left else _instead(key, request)
            yield f"{setting} ({instead})" if instead else setting


def _absent(hashes: str, adapters: tuple[Adapter, ...]) -> Iterator[str]:
    """The names in `name: hash, name: hash` that no adapter has."""
    present = {name.casefold() for adapter in adapters for name in (adapter.name, adapter.word)}
    names = (match[1].strip() for match in re.finditer(r"([^:,]{1,200}):[^,]*", hashes))
    return (name for name in names if name.casefold() not in present)


def _instead(key: str, request: Request) -> str:
    if key == "VAE":
        return "the model's own is used"
    if key in ("Image", "Mask", "Control", "Reference"):
        return f"{flag_of(_FIELDS[key])} names one"
    if key.startswith("Refiner"):
        return "none is used"
    if key == "Seed":
        return "a random one is used"
    if key == "Size":
        return f"{request.width}x{request.height} is used"
    if key == "Schedule type":
        return f"{request.sampler} is used without it"
    return f"{getattr(request, _FIELDS[key])} is used" if key in _FIELDS else ""
