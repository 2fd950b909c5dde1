"""What was done to the images that a run starts from or is steered by, so that it can be told before drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdcli.images.read import InputImage
from sdcli.plan.plan import PlanWarning
from sdcli.request.request import Job
from sdcli.terminal import show

CODE = "image-changed"
MOST_NAMED = 4


def _of(job: Job) -> Iterator[InputImage]:
    if job.start is not None:
        yield job.start.image
    yield from (control.image for control in job.controls)
    yield from (reference.image for reference in job.references)


def told(jobs: Sequence[Job]) -> tuple[PlanWarning, ...]:
    """A warning for each image, the first few of a folder."""
    images = dict.fromkeys(image for job in jobs for image in _of(job))
    lines = [f"{show(image.name, 80)}: {what}" for image in images for what in image.told]
    more = len(lines) - MOST_NAMED
    if more > 0:
        lines = [*lines[:MOST_NAMED], f"{more} more images like these"]
    return tuple(PlanWarning(code=CODE, message=line) for line in lines)
