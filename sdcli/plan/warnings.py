"""A plan's warnings: it will run, but perhaps not as expected."""

from __future__ import annotations

from collections.abc import Sequence

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.models.vae import scale
from sdcli.plan.plan import PlanWarning, Setup
from sdcli.plan.techniques import dtype
from sdcli.request import samplers
from sdcli.request.request import Job

FEW_STEP_SAMPLERS = ("LCM", "TCD")
FEW_STEPS = 10
FAR_FROM_NATIVE = 1.7  # ratio of areas, larger or smaller


def warnings_of(model: Model, hardware: Hardware, setup: Setup, jobs: Sequence[Job]) -> tuple[PlanWarning, ...]:
    warnings = [*_sizes(model, jobs), *_steps(jobs), *_noise(jobs)]
    warnings += [PlanWarning(code="device", message=note) for note in hardware.notes]
    if setup.storage == "fp8":
        warnings.append(PlanWarning(code="lossy", message="fp8 weights (pinned) change the image"))
    if hardware.kind == "cpu" and setup.dtype == "bf16" and not dtype.native_bf16(hardware):
        slower = dtype.slowdown("bf16", hardware)
        message = f"bf16 is emulated on this CPU, about {slower:g} times slower than fp32"
        warnings.append(PlanWarning(code="slow-dtype", message=message))
    return tuple(warnings)


def native_side(model: Model) -> int | None:
    """The side of the square images a model was trained on, from its configs."""
    unet, vae = model.components.get("unet"), model.components.get("vae")
    side = unet.config.get("sample_size") if unet else None
    if not isinstance(side, int) or isinstance(side, bool) or vae is None:
        return None
    return side * scale(vae.config)


def _sizes(model: Model, jobs: Sequence[Job]) -> list[PlanWarning]:
    side = native_side(model)
    if side is None:
        return []
    for job in jobs:
        share = job.width * job.height / side**2
        if share > FAR_FROM_NATIVE or share < 1 / FAR_FROM_NATIVE:
            effect = "bodies and horizons may repeat" if share > 1 else "images may look cropped or blurred"
            message = f"{model.name} was trained at {side}×{side}; at {job.width}×{job.height} {effect}"
            return [PlanWarning(code="size-not-native", message=message)]
    return []


def _steps(jobs: Sequence[Job]) -> list[PlanWarning]:
    for job in jobs:
        if job.steps < FEW_STEPS and job.sampler not in FEW_STEP_SAMPLERS and job.guided:
            few = "1 step is" if job.steps == 1 else f"{job.steps} steps are"
            message = f"{few} few for {job.sampler}; 20 to 30 is usual"
            return [PlanWarning(code="few-steps", message=message)]
    return []


def _noise(jobs: Sequence[Job]) -> list[PlanWarning]:
    """What a seed gives in A1111 comes from one sequence, but for samplers whose steps draw from a Brownian tree."""
    for job in jobs:
        if job.rng == "nv" and samplers.find(job.sampler).options.get("algorithm_type") == "sde-dpmsolver++":
            message = (
                f"--rng nv does not give A1111's images with {job.sampler}: there its steps draw from a Brownian tree"
            )
            return [PlanWarning(code="noise-differs", message=message)]
    return []
