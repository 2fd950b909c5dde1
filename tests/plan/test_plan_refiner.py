"""The memory and the time of SDXL with its refiner: both UNets in memory only where both fit."""

from __future__ import annotations

from typing import Any

import pytest
from making import asking, gpu, known_model, processor

from sdcli.asking import refiners
from sdcli.machine.hardware import Hardware
from sdcli.models.families import find
from sdcli.models.model import Model
from sdcli.models.shipped import component_of
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.plan.stages import previewed, stages
from sdcli.request.jobs import make_jobs
from sdcli.request.request import Refiner
from sdcli.sizes import GIB

PUBLISHED = Model(
    name="refiner", kind="refiner", family="refiner", source="hub",
    components={name: component_of("refiner", name, "fp16") for name in find("refiner").components},
)  # fmt: skip
UNETS = 2 * (2_567_463_684 + 2_259_526_660)


def plan_on(hardware: Hardware, share: float | None = 0.8, **asked: Any) -> Plan:
    named = None if share is None else Refiner(model="refiner", share=share)
    request = asking("sdxl", refiner=named, **asked)
    jobs, model, adapters = refiners.gather(
        None if share is None else PUBLISHED, make_jobs(request), known_model("sdxl")
    )
    return make_plan(request, model, hardware, {}, jobs=jobs, adapters=adapters)


@pytest.mark.parametrize("ram", [16, 64])
@pytest.mark.parametrize("size", [6, 8, 10, 12, 16, 24, 40])
def test_what_a_gpu_holds_at_once_is_what_fits(size: float, ram: float) -> None:
    plan = plan_on(gpu(size, ram=ram))
    assert plan.fits and plan.footprint.device_peak <= plan.budget.device
    for phase in plan.footprint.phases:
        both = phase.weights + phase.parked >= UNETS
        assert not both or plan.budget.device > UNETS
        if phase.name in ("denoise", "refine"):
            assert both == (plan.setup.placement in ("resident", "drop-encoders"))


def test_where_both_fit_nothing_moves_and_elsewhere_one_makes_room() -> None:
    assert plan_on(gpu(24)).setup.placement == "resident"
    assert plan_on(gpu(12)).setup.placement == "drop-encoders"
    assert plan_on(gpu(8)).setup.placement in ("model-offload", "group-offload")
    assert plan_on(gpu(8, ram=5)).setup.placement == "disk"
    assert plan_on(gpu(8)).slowdown > plan_on(gpu(8), None).slowdown


def test_it_takes_the_memory_of_its_own_unet_and_text_encoder() -> None:
    plain, refined = plan_on(gpu(40), None), plan_on(gpu(40))
    more = refined.footprint.device_peak - plain.footprint.device_peak
    assert more == pytest.approx(2 * (2_259_526_660 + 694_659_840), rel=0.02)
    by_name = {phase.name: phase for phase in refined.footprint.phases}
    assert by_name["encode-refiner"].weights == pytest.approx(2 * 694_659_840, rel=0.02)
    assert by_name["refine"].weights == pytest.approx(2 * 2_259_526_660, rel=0.02)
    assert 0.2 * GIB < by_name["refine"].work < 1.2 * by_name["denoise"].work
    held = {phase.name: phase.weights for phase in plan_on(gpu(40), pins={"storage": "fp8"}).footprint.phases}
    assert held["refine"] == pytest.approx(2_259_526_660, rel=0.04)


def test_on_a_cpu_too() -> None:
    assert plan_on(processor(64)).setup.placement == "resident"
    assert plan_on(processor(10)).setup.placement == "disk"


@pytest.mark.parametrize(("steps", "share", "taken"), [
    (30, 0.8, (24, 6)), (20, 0.8, (16, 4)), (2, 0.8, (1, 1)), (3, 0.99, (2, 1)), (3, 0.01, (1, 2)), (25, 0.5, (12, 13)),
])  # fmt: skip
def test_steps_are_shared_whole_and_each_takes_one_at_least(steps: int, share: float, taken: tuple[int, int]) -> None:
    (job,) = plan_on(gpu(24), share, steps=steps).jobs
    assert tuple(each.taken for each in job.passes) == taken and sum(taken) == steps
    assert job.all_calls == steps


@pytest.mark.parametrize(("sampler", "calls"), [("Heun", (32, 7)), ("PNDM", (17, 5)), ("UniPC", (16, 4))])
def test_calls_are_those_of_whole_steps(sampler: str, calls: tuple[int, int]) -> None:
    (job,) = plan_on(gpu(24), sampler=sampler, steps=20).jobs
    assert tuple(each.unet_calls for each in job.passes) == calls
    every = stages(plan_on(gpu(24), sampler=sampler, steps=20).model, [job])
    assert [stage.steps for stage in every if stage.work == "unet"] == list(calls)


def test_previews_go_on_where_the_refiner_does() -> None:
    plan = plan_on(gpu(24), steps=20, filmstrip=5)
    first, rest = (stage for stage in stages(plan.model, plan.jobs) if stage.work == "unet")
    assert {step for step in previewed(plan.request, plan.jobs[0], first) if step <= 16} == {4, 8, 12, 16}
    assert {step for step in previewed(plan.request, plan.jobs[0], rest) if step > 0} == {4}
