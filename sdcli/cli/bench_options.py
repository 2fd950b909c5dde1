"""The options of `sdcli bench`: those of drawing that apply, its own, and what a `--sweep NAME=A,B` names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from sdcli.errors import Usage
from sdcli.plan.techniques import TECHNIQUES
from sdcli.request import config
from sdcli.request.options import MODEL, OPTIONS, OUTPUT, SCREEN, Option, flag_of
from sdcli.terminal import show

MEASURE = "Measure"
_NOT_HERE = {
    "num_images", "output", "prompts_file", "format", "quality", "metadata", "overwrite", "filmstrip", "preview_every",
    "fallback",
}  # fmt: skip
DRAWING = tuple(option for option in OPTIONS if option.field not in _NOT_HERE)
RANDOM = Option(field="random_weights", flags=("--random-weights",), switch=True, panel=MODEL,
                help="The model's full structure with random weights: no files, same speed.")  # fmt: skip
MEASURING: tuple[Option, ...] = (
    RANDOM,
    Option(field="quick", flags=("--quick",), switch=True, panel=MEASURE,
           help="One process, under a minute; its interval holds for that process only."),
    Option(field="sweep", flags=("--sweep",), metavar="NAME=A,B", repeatable=True, panel=MEASURE,
           help="Measure each value of a slot or option in turn: dtype=fp32,bf16."),
    Option(field="processes", flags=("--processes",), metavar="N", panel=MEASURE,
           help="Minimum processes per configuration; default 5."),
    Option(field="max_time", flags=("--max-time",), metavar="SECONDS", panel=MEASURE,
           help="Start nothing new after this long, once each is measured; default 900, with --quick 50."),
    Option(field="save", flags=("--save",), metavar="FILE", panel=OUTPUT,
           help="Save the result here, with every step."),
    Option(field="html", flags=("--html",), metavar="FILE", panel=OUTPUT, help="Write a page that plots every step."),
    Option(field="markdown", flags=("--markdown",), switch=True, panel=OUTPUT,
           help="Print a table and a sentence on the method, to paste."),
    Option(field="save_preset", flags=("--save-preset",), metavar="NAME", panel=OUTPUT,
           help="Save the fastest row's settings as a preset."),
)  # fmt: skip
COMPARING: tuple[Option, ...] = (
    Option(field="run", flags=("--run",), metavar="SDCLI", repeatable=True, panel=MEASURE,
           help="An sdcli to measure here; give two, the baseline first."),
    Option(field="fail_if_slower", flags=("--fail-if-slower",), metavar="3%", panel=MEASURE,
           help="Exit with code 10 if it is slower by more than this; default 3%."),
    Option(field="processes", flags=("--processes",), metavar="N", panel=MEASURE,
           help="Runs of each sdcli; default 5."),
    Option(field="max_time", flags=("--max-time",), metavar="SECONDS", panel=MEASURE,
           help="Start nothing new in a run after this long; default 50."),
)  # fmt: skip
TALK = tuple(option for option in SCREEN if option.field in ("json", "quiet", "debug", "engine"))
BENCH = (*DRAWING, *MEASURING, *TALK)
COMPARE = (*COMPARING, *DRAWING, RANDOM, *TALK)


def whole_number(typed: Mapping[str, Any], field: str, flag: str, usual: int) -> int:
    text = str(typed.get(field, usual)).strip().removesuffix("s")
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or int(text) < 1:
        raise Usage(f'{flag}: "{show(typed[field], 40)}" is not a whole number above 0', hint=f"{flag} {usual}")
    return int(text)


# --- sweeps

SLOTS = {technique.slot.replace("_", "-"): technique for technique in TECHNIQUES}
FLAGS = {
    flag.removeprefix("--"): option
    for option in DRAWING
    for flag in option.flags
    if flag.startswith("--") and option.field != "pins"  # slots are swept by their own names
}


def sweep(text: str) -> tuple[str, list[str]]:
    """`dtype=fp32,bf16`: a slot, or an option by its long flag."""
    name, equals, listed = text.partition("=")
    name = name.strip().lstrip("-").replace("_", "-")
    values = [value.strip() for value in listed.split(",") if value.strip()]
    if not equals or not values:
        raise Usage(f'--sweep: "{show(text, 60)}" is not NAME=VALUE,VALUE', hint="--sweep dtype=fp32,bf16")
    if name not in SLOTS and name not in FLAGS:
        raise Usage(
            f'--sweep: "{show(name, 40)}" is neither a slot ({", ".join(SLOTS)}) nor an option',
            hint="--sweep attention=fused,blocked",
        )
    return name, values


def choose(typed: dict[str, Any], key: str, value: str) -> None:
    if key in SLOTS:
        typed["pins"] = [*typed.get("pins", []), f"{key}={value}"]
        if key == "dtype":
            typed.pop("dtype", None)
        return
    option = FLAGS[key]
    if option.switch:
        typed[option.field] = value
    else:
        typed[option.field] = [value] if option.repeatable else value


def flags_for(key: str, value: str) -> str:
    """As a shell takes it."""
    if key in SLOTS and key != "dtype":
        return f"--pin {key}={value}"
    option = FLAGS[key]
    if option.switch:
        return flag_of(option.field) if config.convert(option.field, value) else ""
    return f"{flag_of(option.field)} {shlex.quote(value)}"


def hint_of(hint: str, chosen: Mapping[str, str]) -> str:
    """Where the value of a sweep is wrong, that sweep with a value that would do: the flag beside it would not help."""
    word, _, value = hint.partition(" ")
    key = next((key for key in chosen if key in FLAGS and word in FLAGS[key].flags), "")
    if word == "--pin":
        key, _, value = value.partition("=")
    return f"--sweep {key}={value}" if key in chosen else hint
