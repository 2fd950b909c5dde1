"""When nothing fits: the numbers, and the mildest change that would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from sdcli.errors import DoesNotFit, SdcliError
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.plan.techniques.technique import gib
from sdcli.request.request import Request

SMALLER = (0.75, 0.5, 0.375, 0.25, 0.125)  # of each side
CLEARLY_LESS = 0.95


def refused(plan: Plan) -> DoesNotFit:
    """The error of a plan that does not fit: what the smallest setup needs, what is available, what would fit."""
    peak, limits = plan.footprint, plan.budget
    on_device = peak.device_peak > limits.device and plan.hardware.kind != "cpu"
    need, have = (peak.device_peak, limits.device) if on_device else (peak.host_peak, limits.host)
    free = plan.hardware.free if on_device else plan.hardware.ram_free
    kind = "GPU memory" if on_device else "memory"
    width, height = _size(plan)
    lossless = any(row.fits and row.setup.storage == "fp8" and plan.setup.storage != "fp8" for row in plan.alternatives)
    message = (
        f"{plan.model.name} at {width}×{height} does not fit{_pinned(plan.request)}: it needs at least {gib(need)} of "
        f"{kind}{' without loss' if lossless else ''}; {gib(have)} available ({gib(free)} free, less a safety margin)"
    )
    return DoesNotFit(message, hint=remedy(plan), need=need, free=free, budget=have)


def _pinned(request: Request) -> str:
    """` in fp32 with placement=resident`: the choices the user made."""
    pins = {slot: choice for slot, choice in request.pins.items() if slot != "dtype"}
    named = ", ".join(f"{slot}={choice}" for slot, choice in pins.items())
    return (f" in {request.pins['dtype']}" if "dtype" in request.pins else "") + (f" with {named}" if named else "")


def remedy(plan: Plan, below: int | None = None) -> str:
    """What to change in the same command so that it fits; the mildest change that does.

    `below`: bytes on the device that turned out to be too much, whatever was predicted.
    """
    for changed, flags in _milder(plan.request):
        jobs = [replace(job, width=changed.width, height=changed.height) for job in plan.jobs]
        try:
            smaller = make_plan(changed, plan.model, plan.hardware, {}, jobs=jobs)
        except SdcliError:
            continue
        if smaller.fits and (below is None or smaller.footprint.device_peak <= below * CLEARLY_LESS):
            return f"the same command {flags}"
    if any(row.setup.device == "cpu" and row.fits for row in plan.alternatives) and plan.hardware.kind != "cpu":
        return "the same command with --device cpu"
    return "the same command with -m builtin --size 256x256" if plan.model.kind != "builtin" else "sdcli doctor"


def _milder(request: Request) -> Iterator[tuple[Request, str]]:
    if request.batch_size > 1:
        request = replace(request, batch_size=1)
        yield request, "with --batch-size 1"
    if request.compile == "on":
        request = replace(request, compile="off")
        yield request, "with --compile off"
    lossy = replace(request, pins={**request.pins, "storage": "fp8"}), "with --pin storage=fp8"
    if request.pins:
        if "storage" not in request.pins:
            yield lossy
        yield replace(request, pins={}), f"without {_flags_of(request.pins)}"
    for share in SMALLER:
        width, height = (max(64, int(side * share) // 64 * 64) for side in (request.width, request.height))
        yield replace(request, width=width, height=height), f"with --size {width}x{height}"
    if "storage" not in request.pins:
        yield lossy
    if request.max_vram is not None:
        yield replace(request, max_vram=None), "without --max-vram"
    if request.max_ram is not None:
        yield replace(request, max_ram=None), "without --max-ram"


def _flags_of(pins: Mapping[str, str]) -> str:
    """The flags these pins come from: usually --dtype for a dtype."""
    return " ".join((["--pin"] if set(pins) - {"dtype"} else []) + (["--dtype"] if "dtype" in pins else []))


def _size(plan: Plan) -> tuple[int, int]:
    """The size of the run's largest image."""
    sizes = [job.size for job in plan.jobs] or [(plan.request.width, plan.request.height)]
    return max(sizes, key=lambda size: size[0] * size[1])
