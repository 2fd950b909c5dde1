"""From images and an upscaler to a plan that makes them larger, and where they go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdcli.asking import probing, upscalers
from sdcli.asking.planning import added_folders
from sdcli.images.read import InputImage
from sdcli.machine import survey
from sdcli.models import upscaler
from sdcli.models.adapter_files import SearchFolder
from sdcli.models.model import Model
from sdcli.plan.upscaling import UpscalePlan, make_upscale_plan
from sdcli.record import enlarged, names
from sdcli.record.names import Destination
from sdcli.request.request import Request
from sdcli.request.upscaling import Target, make_enlargements


def plan_for(
    images: Sequence[InputImage], values: Mapping[str, Any], target: Target, tile: int | None = None, *,
    tried: bool = True,
) -> UpscalePlan:  # fmt: skip
    """`values` are settings by name. `tried`: number types that were never tried here are, which needs torch."""
    found = upscaler.read(upscalers.located(values["upscaler"], tuple(map(SearchFolder, added_folders()))))
    model = Model(
        name=found.name, kind="upscaler", family="", source="file", components={upscaler.PART: found.component},
        path=found.path,
    )  # fmt: skip
    jobs = make_enlargements(images, target, found.scale, values.get("fit", "crop"))
    hardware = survey.choose(values.get("device", "auto"), survey.look())
    pinned = values.get("pins", {}).get("dtype")
    if tried:
        hardware, _ = probing.sized(hardware)
    if tried and pinned is None:
        hardware, _ = probing.probed(hardware)
    return make_upscale_plan(
        jobs, model, hardware, upscalers.adapter(found), pinned=pinned, tile=tile, max_vram=values.get("max_vram"),
        max_ram=values.get("max_ram"), fallback=values.get("fallback", True),
    )  # fmt: skip


def destination(plan: UpscalePlan, values: Mapping[str, Any], origins: Mapping[str, str]) -> Destination:
    """Tried out before anything is loaded."""
    own = {name: values[name] for name in ("output", "format", "overwrite") if name in values}
    sides = (max(job.width for job in plan.jobs), max(job.height for job in plan.jobs))
    request = Request(prompts=("",), model=plan.model.name, width=sides[0], height=sides[1], **own)
    found = names.prepare(request, count=len(plan.jobs), model=plan.model.name, origins=origins)
    enlarged.check_fields(found)
    return found
