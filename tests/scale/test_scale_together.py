"""Plans of several devices: the same pixels from all of them, as far as they compute alike, and each its own memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sdcli.machine.hardware import Hardware
from sdcli.plan.fallbacks import changes_pixels
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan, plan_alike
from sdcli.plan.several import together

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plan"))
from making import asking, gpu, jobs_of, known_model, processor


def several(hardware: Sequence[Hardware], family: str = "sdxl", **asked: object) -> Plan:
    """As generate plans: first for the device with the least memory."""
    model = known_model(family)
    request = asking(family, **asked)
    jobs = jobs_of(request)

    def anew(one: Hardware) -> Plan:
        return make_plan(request, model, one, {}, jobs=jobs)

    seats = [(one.device, one) for one in hardware]
    return together(anew(min(hardware, key=lambda one: one.free)), seats, anew, lambda one: {})


def cards(*sizes: float, name: str = "RTX 4060") -> list[Hardware]:
    return [replace(gpu(size, name=name), device=f"cuda:{number}") for number, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(24, 8), (6, 12, 24), (4, 80), (8, 8)])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_cards_of_unlike_size_draw_the_same_pixels_each_in_its_own_way(sizes: tuple[float, ...], family: str) -> None:
    hardware = cards(*sizes)
    plan = several(hardware, family)
    assert [worker.name for worker in plan.workers] == [one.device for one in hardware]
    smallest = min(hardware, key=lambda one: one.free)
    for worker, own in zip(plan.workers, hardware, strict=True):
        assert not changes_pixels(plan.setup, worker.setup) and worker.setup.device == own.device
        assert worker.footprint.device_peak <= worker.budget.device
        assert worker.hardware.free == own.free
        if own.free == smallest.free:
            assert worker.setup.placement == plan.setup.placement
    largest = max(plan.workers, key=lambda worker: worker.hardware.free)
    least = min(plan.workers, key=lambda worker: worker.hardware.free)
    assert largest.slowdown <= least.slowdown
    assert not plan.warnings or "unlike-devices" not in [warning.code for warning in plan.warnings]


@pytest.mark.parametrize(("sizes", "family"), [((24, 24), "sdxl"), ((8, 24, 24), "sdxl"), ((6, 6), "sdxl")])
def test_a_card_like_the_first_has_the_plan_that_it_would_be_given(sizes: tuple[float, ...], family: str) -> None:
    plan = several(cards(*sizes), family)
    first, *others = plan.workers
    alone = plan.of(first)
    for worker in others:
        given = plan_alike(alone, worker.hardware, {})
        assert given is not None and given.worker(worker.name) == worker


def test_a_larger_card_beside_a_small_one_need_not_move_weights() -> None:
    small, large = several(cards(6, 24)).workers
    assert small.setup.placement != "resident" and large.setup.placement == "resident"


def test_a_card_on_which_nothing_fits_is_left_out_with_the_reason() -> None:
    plan = several(cards(0.55, 24))
    assert [worker.name for worker in plan.workers] == ["cuda:1"] and plan.fits
    (warning,) = [one for one in plan.warnings if one.code == "left-out"]
    assert warning.message.startswith("cuda:0 is left out: sdxl at 1024×1024 does not fit")
    assert not several(cards(0.55, 0.55)).fits


def test_devices_that_do_not_compute_alike_are_named() -> None:
    unlike = [*cards(8), replace(gpu(12, name="RTX 3060", capability="8.6"), device="cuda:1"), processor(64)]
    plan = several(unlike)
    assert [worker.name for worker in plan.workers] == ["cuda:0", "cuda:1", "cpu"]
    (warning,) = [one for one in plan.warnings if one.code == "unlike-devices"]
    assert "RTX 4060 and RTX 3060 and CPU do not compute alike" in warning.message


def test_a_card_that_cannot_compute_as_the_others_do_has_a_plan_of_its_own() -> None:
    without = dict.fromkeys(("bf16", "fp16"), "unavailable")
    old = replace(gpu(24, name="GTX 1060", capability="6.1"), device="cuda:1", dtypes=without)
    new = replace(gpu(8), dtypes={"bf16": "probed", "fp16": "probed"})
    plan = several([new, old])
    assert [worker.setup.dtype for worker in plan.workers] == ["fp16", "fp32"]


def test_cards_that_cannot_compute_as_the_others_do_compute_as_each_other() -> None:
    """The smaller of them needs tiles, so the larger takes them too."""
    without = dict.fromkeys(("bf16", "fp16"), "unavailable")
    new = replace(gpu(1.5), dtypes={"bf16": "probed", "fp16": "probed"})
    old = [
        replace(gpu(size, name="GTX 1060", capability="6.1"), device=f"cuda:{number}", dtypes=without)
        for number, size in ((1, 2), (2, 12))
    ]
    small, large = several([new, *old], "sd15", size=768).workers[1:]
    assert not changes_pixels(small.setup, large.setup) and small.setup.dtype == "fp32"
    alone = make_plan(asking("sd15", size=768), known_model("sd15"), old[1], {})
    assert changes_pixels(alone.setup, large.setup)


def test_a_workers_part_of_a_plan_is_the_plan_of_its_device_alone() -> None:
    plan = several(cards(8, 24))
    own = plan.of(plan.workers[1])
    assert own.hardware.device == "cuda:1" and own.jobs == plan.jobs and own.workers == ()
    assert own.worker("cuda:1") == plan.workers[1]
