"""What ControlNets see of the images that steer a run, as files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdcli.files import REAL, cannot_write, replace_whole
from sdcli.images.control import image_of
from sdcli.images.read import InputImage
from sdcli.request.request import Control, Job


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
