"""`sdcli again`: draws an image again from the settings stored in it, with whatever a flag changes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdcli.asking import not_needed
from sdcli.asking.planning import PlannedRun
from sdcli.cli import complete, generate
from sdcli.cli.answer import Answered, say_note
from sdcli.cli.pull import plan_with_model
from sdcli.errors import ImagesFailed, Usage
from sdcli.images.read import files_of
from sdcli.plan.refusal import refused
from sdcli.record import names
from sdcli.record.metadata import read
from sdcli.record.metadata.read import ImageSettings
from sdcli.request.options import OPTIONS, SAVE_CONTROL, SCREEN, flag_of
from sdcli.request.options import command as make
from sdcli.request.request import LARGEST_SEED
from sdcli.terminal import quoted, show

EXAMPLE = "sdcli again IMAGE --seed +1"
_RELATIVE = re.compile(r"\s*([+-]\d{1,12})\s*", re.ASCII)
# What an image was drawn from is in it by name alone.
_INPUTS = {"Image": "image", "Mask": "mask", "Control": "control", "Reference": "reference"}


def command() -> Callable[..., None]:
    options = [option for option in OPTIONS if option.field not in ("settings_from", "prompts_file")]
    return make(
        _again, [*options, *not_needed.FLAGS, *SCREEN, SAVE_CONTROL], name="again", words="IMAGE",
        complete=complete.asked(),
        help="Draw images again from their own settings; any flag changes one, and --seed +1 counts from the image's "
        "own seed: sdcli again cat.png --seed +1 -n 4",
    )  # fmt: skip


def _again(typed: dict[str, Any]) -> None:
    words = typed.pop("words", ())
    if not words:
        raise Usage("no image", hint=EXAMPLE)
    images = [str(file) for word in words for file in files_of(word)]
    if len(images) > 1 and typed.get("json"):
        raise Usage(
            f"--json prints one object, of one run; these are {len(images)}", hint="the same command without --json"
        )
    stored = [read.read(image) for image in images]
    asked = [_asked_of(image, settings, typed) for image, settings in zip(images, stored, strict=True)]
    planned = [plan_with_model(one, settings) for one, settings in zip(asked, stored, strict=True)]
    _check(planned)
    raise Answered(_drawn(planned, asked))


def _check(planned: list[PlannedRun]) -> None:
    """All of them, before the first is drawn."""
    for one in planned:
        if not one.plan.fits:
            raise refused(one.plan)
    first = planned[0].plan
    names.prepare(
        first.request, count=sum(len(one.plan.jobs) for one in planned), model=first.model.name, origins=first.origins
    )


def _drawn(planned: list[PlannedRun], asked: list[dict[str, Any]]) -> int:
    """A run for each image. A failed image does not keep the next run from being drawn; anything else does."""
    worst = 0
    for run, typed in zip(planned, asked, strict=True):
        worst = generate.draw(run, typed) or worst
        if worst not in (0, ImagesFailed.code):
            break
    return worst


# --- what is asked of one image


def _asked_of(image: str, stored: ImageSettings, typed: Mapping[str, Any]) -> dict[str, Any]:
    """What would be typed to draw it again with generate."""
    _check_prompt(image, stored, typed)
    check_inputs(image, stored, typed)
    if stored.record is not None and stored.record.enlarged and not typed.get("quiet"):
        say_note(f"{show(image, 200)} was enlarged since; it is drawn in its first size")
    asked = dict(typed)
    relative = _RELATIVE.fullmatch(typed.get("seeds", ""))
    if relative is not None:
        asked["seeds"] = str(_counted_from(image, stored, int(relative[1]), typed.get("num_images")))
    if relative is not None or "seeds" not in typed:
        asked.setdefault("num_images", "1")  # whatever the user's own default is: the image is one
    return asked


def _check_prompt(image: str, stored: ImageSettings, typed: Mapping[str, Any]) -> None:
    if "prompts" not in typed and not any(text.strip() for text in stored.values.get("prompts", ())):
        raise Usage(f"{show(image, 200)} stores no prompt", hint='--prompt "a cat"')


def check_inputs(image: str, stored: ImageSettings, typed: Mapping[str, Any]) -> None:
    """Without the image that it was drawn over, another would be drawn."""
    for key, field in _INPUTS.items():
        if key in stored.unknown and field not in typed:
            name = str(stored.unknown[key])
            raise Usage(
                f"{show(image, 200)} was drawn from {show(name, 200)}, which is not in it",
                hint=f"the same command with {flag_of(field)} {_here(image, name) or 'FILE'}",
            )


def _here(image: str, name: str) -> str:
    """Where a file of that name is: here, or beside the image."""
    if Path(name).name != name:
        return ""
    found = next((path for path in (Path(name), Path(image).with_name(name)) if os.path.isfile(path)), None)
    return quoted(str(found)) if found is not None else ""


def _counted_from(image: str, stored: ImageSettings, by: int, count: str | None) -> int:
    seeds = stored.values.get("seeds")
    if not seeds:
        raise Usage(f"{show(image, 200)} stores no seed to count from", hint="--seed 1")
    seed = int(seeds[0]) + by
    if 0 <= seed <= LARGEST_SEED:
        return seed
    raise Usage(
        f"--seed {by:+d}: {show(image, 200)} has seed {seeds[0]}, and seeds are from 0 to {LARGEST_SEED}",
        hint="--seed 1",
    )
