"""What was done to the images that a run starts from, where it loses something."""

from __future__ import annotations

from collections.abc import Sequence

from sdcli.plan.plan import PlanWarning
from sdcli.request.request import Job
from sdcli.terminal import show

CHANGED = "image-changed"
MOST_NAMED = 4


def told(jobs: Sequence[Job]) -> tuple[PlanWarning, ...]:
    """A warning for each image, the first few of a folder."""
    images = dict.fromkeys(job.start.image for job in jobs if job.start is not None)
    lines = [f"{show(image.name, 80)}: {what}" for image in images for what in image.told]
    more = len(lines) - MOST_NAMED
    if more > 0:
        lines = [*lines[:MOST_NAMED], f"{more} more images like these"]
    return tuple(PlanWarning(code=CHANGED, message=line) for line in lines)
