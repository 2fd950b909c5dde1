"""The images that a run starts from or is steered by: what was done to them, and what ControlNets see of them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdcli.files import REAL, cannot_write, replace_whole
from sdcli.images.control import image_of
from sdcli.images.read import InputImage
from sdcli.plan.plan import PlanWarning
from sdcli.request.request import Control, Job
from sdcli.terminal import show

CHANGED = "image-changed"
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
    return tuple(PlanWarning(code=CHANGED, message=line) for line in lines)


def save_controls(jobs: Sequence[Job], folder: Path) -> Iterator[Path]:
    """What ControlNets see in these jobs, as files; each once, whichever nets it is for."""
    seen: dict[tuple[int, int, InputImage, str, str], Control] = {}
    for job in jobs:
        for each in job.controls:
            seen.setdefault((job.width, job.height, each.image, each.made, each.fit), each)
    names: dict[str, int] = {}
    for (width, height, *_), each in seen.items():
        buffer = io.BytesIO()
        image_of(each, width, height).save(buffer, "PNG")
        name = f"control-{Path(each.image.name).stem}-{each.made}-{width}x{height}"
        names[name] = names.get(name, 0) + 1  # images in several folders may have one name
        path = folder / (f"{name}.png" if names[name] == 1 else f"{name}-{names[name]}.png")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_whole(REAL, path, [buffer.getvalue()])
        except OSError as error:
            raise cannot_write(path, error) from None
        yield path
