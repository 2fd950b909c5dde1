"""What the shell offers for an option's value."""

from __future__ import annotations

import os
from collections.abc import Callable

BY_SHELL = "_SDCLI_COMPLETE"  # the variable that a shell sets when it asks


def asked() -> Callable[[str, str], list[str]] | None:
    """What completes values, where a shell asks: Typer would look at its signature for each option of any command."""
    return values if BY_SHELL in os.environ else None


def values(field: str, incomplete: str) -> list[str]:
    matches = [value for value in _all(field) if value.casefold().startswith(incomplete.casefold())]
    return [value.replace(" ", "\\ ") for value in matches] if _bash_splits() else matches


def _bash_splits() -> bool:
    """bash inserts completions verbatim: a space ends the word, unless a quote is open."""
    typed = os.environ.get("COMP_WORDS", "")
    quoted = typed.count('"') % 2 or typed.count("'") % 2
    return os.environ.get(BY_SHELL, "") == "complete_bash" and not quoted


def _all(field: str) -> list[str]:
    from sdcli.request.options import OPTIONS

    if field == "sampler":
        from sdcli.request.samplers import EVERY

        return [sampler.name for sampler in EVERY]
    if field == "scheduler":
        from sdcli.request.samplers import AUTOMATIC, SCHEDULES

        return [name.casefold().replace(" ", "-") for name in (*SCHEDULES, AUTOMATIC)]
    if field == "sweep":
        from sdcli.request.sweeps import names

        return [f"{name}=" for name in names()]
    if field == "preset":
        from sdcli.machine.folders import config_folder
        from sdcli.request.config import presets

        return [preset.name for preset in presets(config_folder() / "presets")]
    if field == "model":
        from sdcli.models.families import families

        return [family.known.alias for family in families().values() if family.known]
    if field == "pins":
        from sdcli.plan.techniques import TECHNIQUES

        return [f"{technique.flag}={choice}" for technique in TECHNIQUES for choice in technique.choices]
    if field == "upscaler":
        from sdcli.request.request import UPSCALERS

        return list(UPSCALERS)
    if field == "device":
        return ["auto", "cpu", "cuda", "mps", "xpu"]
    return [choice for option in OPTIONS if option.field == field for choice in option.choices]
