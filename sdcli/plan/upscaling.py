"""The plan of `sdcli upscale`, made before anything is loaded: number type and tiles, what they need, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sdcli.errors import DoesNotFit, Usage
from sdcli.machine.hardware import Hardware
from sdcli.models import upscaler, upscaler_walk
from sdcli.models.model import BYTES, Model
from sdcli.models.upscaler_walk import Enlarged
from sdcli.plan import calibration
from sdcli.plan.footprint import upscaling
from sdcli.plan.forecast import budget
from sdcli.plan.plan import Adapter, Budget, Footprint, Phase, Setup
from sdcli.plan.techniques import dtype
from sdcli.plan.techniques.technique import gib
from sdcli.plan.upscaler_tile import TILES, WHOLE, smaller_tiles
from sdcli.request.upscaling import Enlargement

LOAD, UPSCALE, SAVE = "load", "upscale", "save"


@dataclass(frozen=True, kw_only=True)
class UpscalePlan:
    """`fallbacks` are the tiles to go on with when memory runs out."""

    fits: bool = True
    model: Model
    hardware: Hardware
    budget: Budget
    setup: Setup
    jobs: tuple[Enlargement, ...] = ()
    footprint: Footprint
    because: str = ""
    fallbacks: tuple[int, ...] = ()
    falls_back: bool = True  # whether they are wanted
    max_vram: int | None = None

    @property
    def scale(self) -> int:
        """The model's own."""
        return upscaler.scale_of(self.model.components[upscaler.PART])


def make_upscale_plan(
    jobs: Sequence[Enlargement], model: Model, hardware: Hardware, adapter: Adapter, *, pinned: str | None = None,
    tile: int | None = None, max_vram: int | None = None, max_ram: int | None = None, fallback: bool = True,
) -> UpscalePlan:  # fmt: skip
    """The largest tiles that fit, and the fastest number type; `tile` and the `pinned` one are obeyed where given."""
    limits = budget(hardware, max_vram, max_ram)
    start = Setup(
        dtype=pinned or _fastest(hardware, model), threads=hardware.best_threads, device=hardware.device,
        isa=hardware.isa, adapters=(adapter,),
    )  # fmt: skip
    if pinned is not None:
        _check(start, hardware, model)
    tiles = (WHOLE, *TILES) if tile is None else (tile,)
    needs = {one: _footprint(jobs, model, hardware, replace(start, upscaler_tile=one)) for one in tiles}
    chosen = next((one for one in tiles if _over(needs[one], limits, hardware) <= 0), tiles[-1])
    setup = replace(start, upscaler_tile=chosen)
    below = smaller_tiles(chosen, lambda one: _working(jobs, model, hardware, replace(start, upscaler_tile=one)))
    return UpscalePlan(
        fits=_over(needs[chosen], limits, hardware) <= 0, model=model, hardware=hardware, budget=limits, setup=setup,
        jobs=tuple(jobs), footprint=needs[chosen], because=_because(chosen, tile, needs, limits, hardware),
        fallbacks=tuple(below), falls_back=fallback, max_vram=max_vram,
    )  # fmt: skip


def _working(jobs: Sequence[Enlargement], model: Model, hardware: Hardware, setup: Setup) -> int:
    return next(row.work for row in _footprint(jobs, model, hardware, setup).phases if row.name == UPSCALE)


def _fastest(hardware: Hardware, model: Model) -> str:
    technique = dtype.TECHNIQUE
    legal = [one for one in technique.choices if technique.illegal(Setup(dtype=one), hardware, model) is None]
    return min(legal, key=lambda one: dtype.slowdown(one, hardware))


def _check(setup: Setup, hardware: Hardware, model: Model) -> None:
    reason = dtype.TECHNIQUE.illegal(setup, hardware, model)
    if reason is not None:
        raise Usage(f"--dtype {setup.dtype} is not possible here: {reason}", hint="--dtype fp32")


def _because(
    tile: int, asked: int | None, needs: dict[int, Footprint], limits: Budget, hardware: Hardware
) -> str:  # fmt: skip
    if asked is not None:
        return f"tiles of {tile}, as asked"
    if tile == WHOLE:
        return "each image whole"
    over = _over(needs[WHOLE], limits, hardware)
    return f"tiles of {tile}: the whole image needs {gib(over)} more than the budget"


def _over(footprint: Footprint, limits: Budget, hardware: Hardware) -> int:
    """Bytes above the budget."""
    host = footprint.host_peak - limits.host
    return host if hardware.kind == "cpu" else max(footprint.device_peak - limits.device, host)


# --- what it needs


def _footprint(jobs: Sequence[Enlargement], model: Model, hardware: Hardware, setup: Setup) -> Footprint:
    component = model.components[upscaler.PART]
    size, backend = BYTES[setup.dtype], hardware.backend
    weights = int(component.parameters * size * calibration.blocks(backend, setup.dtype))
    works = [(job, of_job(model, job, setup.upscaler_tile)) for job in jobs]
    imports = calibration.TORCH + calibration.libraries(backend)
    live = max(upscaling(work, size, hardware.kind) for _, work in works)
    workspace = calibration.TORCH_WORKSPACE if hardware.kind == "cpu" else calibration.workspace(backend)
    computing = int(live * calibration.rounding(backend)) + workspace
    largest = max(leaf.parameters for leaf in works[0][1].largest.leaves)

    def row(name: str, aside: int, work: int = 0) -> Phase:
        host = imports + aside + (weights + work if hardware.shares_memory else 0)
        device = host if hardware.kind == "cpu" else weights + work
        return Phase(name=name, device=device, host=host, weights=weights, work=work)

    computed = row(UPSCALE, max(_beside(job, work) for job, work in works), computing)
    copied = row(UPSCALE, max(_whole(job, work) for job, work in works))
    phases = (
        row(LOAD, largest * BYTES.get(component.stored_dtype, 4)),
        replace(computed, host=max(computed.host, copied.host), device=max(computed.device, copied.device)),
        row(SAVE, max(_saving(job, work) for job, work in works)),
    )
    return Footprint(
        device_peak=max(phase.device for phase in phases), host_peak=max(phase.host for phase in phases), phases=phases
    )


def of_job(model: Model, job: Enlargement, tile: int) -> Enlarged:
    config, image = model.components[upscaler.PART].config, job.image
    times = upscaler_walk.times(config, image.width, image.height, (job.width, job.height))
    return upscaler_walk.enlarged(config, image.width, image.height, times=times, tile=tile)


def _beside(job: Enlargement, work: Enlarged) -> int:
    """Host bytes of an image while it is enlarged: as it was read, and the large one."""
    return job.image.width * job.image.height * calibration.FILE_BYTES_PER_PIXEL + 3 * work.width * work.height


def _whole(job: Enlargement, work: Enlarged) -> int:
    """When that is whole, it is copied."""
    return _beside(job, work) + 3 * work.width * work.height


def _saving(job: Enlargement, work: Enlarged) -> int:
    """Host bytes where it is made the right size and saved."""
    large, final = work.width * work.height, job.width * job.height
    return large * calibration.UPSCALED_BYTES_PER_PIXEL + final * calibration.FINAL_BYTES_PER_PIXEL


def refused(plan: UpscalePlan) -> DoesNotFit:
    peak, limits, hardware = plan.footprint, plan.budget, plan.hardware
    on_device = hardware.kind != "cpu" and peak.device_peak > limits.device
    need, have = (peak.device_peak, limits.device) if on_device else (peak.host_peak, limits.host)
    free, kind = (hardware.free, "GPU memory") if on_device else (hardware.ram_free, "memory")
    largest = max(plan.jobs, key=lambda job: job.width * job.height)
    tiles = f" in tiles of {plan.setup.upscaler_tile}" if plan.setup.upscaler_tile else ""
    hint = "the same command with --device cpu" if on_device else "sdcli doctor"
    if plan.setup.upscaler_tile > TILES[-1]:  # smaller ones were not tried
        hint = "the same command without --tile"
    return DoesNotFit(
        f"{plan.model.name} on an image of {largest.image.width}×{largest.image.height}{tiles} does not fit: it needs "
        f"{gib(need)} of {kind}; {gib(have)} available ({gib(free)} free, less a safety margin)",
        hint=hint, need=need, free=free, budget=have,
    )  # fmt: skip
