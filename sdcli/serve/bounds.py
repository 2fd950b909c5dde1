"""How much one request may ask for. Planning takes milliseconds for what is within, so a refusal is cheap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.errors import Usage
from sdcli.plan.plan import Plan
from sdcli.request import config
from sdcli.request.jobs import SIDES

PROMPT = 8000  # characters


@dataclass(frozen=True, kw_only=True)
class Bounds:
    images: int = 10
    steps: int = 150
    width: int = 2048  # together with the height, the pixels of the largest image
    height: int = 2048

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def work(self) -> int:
        """Pixels drawn in steps, of all images of a request: as many images as may be asked for, of a million pixels
        each, in as many steps."""
        return self.images * self.steps * min(self.pixels, 1 << 20)

    @property
    def highest(self) -> dict[str, int]:
        """Of settings, each by itself."""
        side = self.pixels // SIDES[0]
        return {
            "num_images": self.images, "steps": self.steps, "width": side, "height": side,
        }  # fmt: skip


def check(values: Mapping[str, Any], bounds: Bounds) -> None:
    """What can be said before planning, which takes longer the more images there are."""
    prompts = (*values.get("words", ()), *values.get("prompts", ()))
    for text in (*prompts, values.get("negative_prompt") or ""):
        if len(text) > PROMPT:
            raise _too_much("prompt", f"a prompt of {len(text)} characters; at most {PROMPT} are taken")
    each = max(
        len(config.convert("seeds", values["seeds"])) if values.get("seeds") is not None else 1,
        config.convert("num_images", values["num_images"]) if values.get("num_images") is not None else 1,
    )
    _check_images(each * max(1, len(prompts)), bounds)


def check_plan(plan: Plan, bounds: Bounds) -> None:
    _check_images(len(plan.jobs), bounds)
    passes = [one for job in plan.jobs for one in job.passes]
    steps = max(one.steps for one in passes)
    pixels = max(one.width * one.height for one in passes)
    if steps > bounds.steps:
        raise _too_much("steps", f"{steps} steps; this server takes at most {bounds.steps}")
    if pixels > bounds.pixels:
        largest = f"{bounds.width}x{bounds.height}"
        raise _too_much("size", f"an image of {pixels} pixels; this server draws at most {largest}")
    if sum(one.taken * one.width * one.height for one in passes) > bounds.work:
        raise _too_much("num_images", "all these images of this size in as many steps are too much for one request")


def _check_images(count: int, bounds: Bounds) -> None:
    if count > bounds.images:
        raise _too_much("num_images", f"{count} images in one request; this server draws at most {bounds.images}")


def _too_much(field: str, message: str) -> Usage:
    return Usage(message, hint="ask for less, or in several requests", field=field)
