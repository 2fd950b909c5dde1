"""Several models loaded in the process that draws for others: as many as fit beside the next plan, by what the plans
predict, and equal pixels whatever else is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from draw_samples import HARDWARE, plan_for, request_for

from sdcli.draw import local
from sdcli.errors import OutOfMemory
from sdcli.events import Decoded, Degraded, Event, Loaded
from sdcli.machine import survey
from sdcli.models import resolve
from sdcli.plan import together
from sdcli.plan.calibration import CUDA_CONTEXT, IMPORTS
from sdcli.plan.plan import Budget, Plan
from sdcli.plan.planner import make_plan
from sdcli.plan.together import Held
from sdcli.workers.child import Models
from sdcli.workers.worker import Worker
from tests.pretend_gpu import device, pretend


def drawn(events: Iterator[Event]) -> tuple[int, list[bytes]]:
    """Components that were loaded for it, and its images."""
    happened = list(events)
    assert not any(isinstance(event, Degraded) for event in happened)
    loaded = sum(isinstance(event, Loaded) for event in happened)
    return loaded, [event.pixels for event in happened if isinstance(event, Decoded)]


def with_memory(plan: Plan, size: int) -> Plan:
    """As it is on a machine of that much memory."""
    return replace(plan, budget=Budget(device=size, host=size), hardware=replace(plan.hardware, free=size))


@pytest.fixture(scope="module")
def plans(tiny_folders: dict[str, Path]) -> dict[str, Plan]:
    return {family: plan_for(folder, steps=1) for family, folder in tiny_folders.items()}


def test_a_model_keeps_its_weights_as_its_plan_counted_them(plans: dict[str, Plan]) -> None:
    plan = plans["sd15"]
    weights = sum(part.parameters for part in plan.model.components.values()) * 4  # in fp32
    kept = together.held(plan)
    assert kept.device == kept.host and weights <= kept.host < plan.footprint.host_peak - IMPORTS
    on_a_gpu = replace(plan, hardware=replace(HARDWARE, device="cuda:0", ram_free=0))
    assert weights <= together.held(on_a_gpu).device < weights * 1.1


def test_those_that_were_not_used_for_longest_leave_and_no_more_than_have_to(plans: dict[str, Plan]) -> None:
    plan = plans["sd15"]
    peak = plan.footprint.host_peak
    others = {"first": Held(device=10, host=10), "second": Held(device=30, host=30), "third": Held(device=20, host=20)}
    for room, gone in ((60, 0), (59, 1), (50, 1), (49, 2), (20, 2), (19, 3), (0, 3)):
        assert together.leaving(others, with_memory(plan, peak + room)) == tuple(others)[:gone]
    uneven = replace(plan, budget=Budget(device=peak + 60, host=peak + 40))  # the device has room for all, the host not
    assert together.leaving(others, uneven) == ("first", "second")
    assert together.leaving({}, with_memory(plan, 0)) == ()


def test_models_stay_loaded_while_they_fit_and_draw_alike(plans: dict[str, Plan]) -> None:
    alone = {family: drawn(local.run(plan)) for family, plan in plans.items()}
    kept = {family: together.held(plan).host for family, plan in plans.items()}
    two = max(plan.footprint.host_peak for plan in plans.values()) + max(kept.values())
    tight = {family: with_memory(plan, two) for family, plan in plans.items()}
    with Worker() as worker:
        for family, loaded, held in (
            ("sd15", True, ("sd15",)), ("sd2", True, ("sd15", "sd2")), ("sd15", False, ("sd2", "sd15")),
            ("sdxl", True, ("sd15", "sdxl")), ("sd2", True, ("sdxl", "sd2")), ("sdxl", False, ("sd2", "sdxl")),
        ):  # fmt: skip
            components, images = drawn(worker.run(tight[family]))
            assert (bool(components), worker.held) == (loaded, held)
            assert images == alone[family][1]
        for family in ("sd15", "sd2"):  # more memory: all of them
            drawn(worker.run(plans[family]))
        assert worker.held == ("sdxl", "sd15", "sd2") and worker.starts == 1
        assert worker.beside == Held(device=kept["sdxl"] + kept["sd15"], host=kept["sdxl"] + kept["sd15"])


@pytest.mark.parametrize("fallback", [True, False])
def test_where_memory_runs_out_all_the_same_the_others_leave_and_no_fallback_is_taken(
    plans: dict[str, Plan], fallback: bool
) -> None:
    plan, other = plans["sd15"], plans["sd2"]
    plan = replace(plan, request=replace(plan.request, fallback=fallback))
    expected = drawn(local.run(plan))[1]
    models = Models("local")

    def fail(module: torch.nn.Module, *_: object) -> None:
        if type(module).__name__ == "UNet2DConditionModel" and len(models.held) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    drawn(models.run(other, other.numbered()))
    hook = torch.nn.modules.module.register_module_forward_pre_hook(fail)
    try:
        assert drawn(models.run(plan, plan.numbered()))[1] == expected
    finally:
        hook.remove()
    assert models.held == ["sd15"]
    models.drop(models.held)


def test_a_model_that_fails_by_itself_frees_its_own_memory_alone(plans: dict[str, Plan]) -> None:
    plan, other = plans["sd15"], plans["sd2"]
    plan = replace(plan, request=replace(plan.request, fallback=False))
    models = Models("local")

    def fail(module: torch.nn.Module, *_: object) -> None:
        if type(module).__name__ == "UNet2DConditionModel":
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(fail)
    try:
        with pytest.raises(OutOfMemory):
            drawn(models.run(plan, plan.numbered()))
    finally:
        hook.remove()
    assert models.held == []
    assert drawn(models.run(other, other.numbered()))[0] and models.held == ["sd2"]
    models.drop(models.held)


def on_a_gpu(folder: Path) -> Plan:
    plan = make_plan(request_for(steps=1), resolve.at(folder), survey.choose("cuda", survey.look()), {})
    return replace(plan, setup=replace(plan.setup, threads=1))


def test_on_a_gpu_models_take_what_was_counted(tiny_folders: dict[str, Path]) -> None:
    with pretend(device("8GiB")) as gpu:
        both = [on_a_gpu(tiny_folders[family]) for family in ("sd15", "sd2")]
        models = Models("local")
        for plan in both:
            drawn(models.run(plan, plan.numbered()))
        kept = [together.held(plan).device for plan in both]
        assert gpu.held() == pytest.approx(sum(kept), rel=0.03) and models.held == ["sd15", "sd2"]
        assert models.device >= gpu.held() + CUDA_CONTEXT
        models.drop(["sd15"])
        assert gpu.held() == pytest.approx(kept[1], rel=0.03)
        models.drop(["sd2"])


@pytest.mark.proof
def test_what_another_process_has_taken_of_a_gpu_is_free_for_its_next_plan(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pretend(device("8GiB")):
        plan = on_a_gpu(tiny_folders["sd15"])
    (tmp_path / "sitecustomize.py").write_text(
        "from tests.pretend_gpu import device, pretend\npretending = pretend(device('8GiB'))\npretending.__enter__()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # so that the process has such a GPU too
    busy, taken = replace(plan.hardware, free=1 << 30), together.held(plan).device + CUDA_CONTEXT
    with Worker() as worker:
        assert worker.without_own(busy) == busy
        drawn(worker.run(plan))
        assert taken <= worker.without_own(busy).free - busy.free < taken + (256 << 20)
    assert worker.without_own(busy) == busy
