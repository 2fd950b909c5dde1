"""Drawing on a GPU, a pretend one: the path, its waits, its memory."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from draw_samples import FAMILIES

from scripts.gpu.inside import ours_and_theirs, pixels, plan_for
from sdcli.draw import local
from sdcli.events import Decoded, Degraded, Denoised, Encoded, Memory, Step
from sdcli.request.samplers import SAMPLERS
from tests.pretend_gpu import Pretended, device, pretend


@pytest.fixture
def gpu() -> Iterator[Pretended]:
    with pretend(device("8GiB", capability="8.6")) as made:
        yield made


def test_the_gpu_is_found_and_planned_for(tiny_folders: dict[str, Path], gpu: Pretended) -> None:
    plan = plan_for(tiny_folders["sd15"])
    assert (plan.setup.device, plan.setup.dtype) == ("cuda:0", "fp16")
    assert plan.hardware.name == "RTX 3060" and plan.hardware.total == 8 << 30


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler", ["Euler a", "UniPC", "DPM++ 2M Karras"])
def test_images_are_those_of_diffusers_on_the_same_gpu(
    tiny_folders: dict[str, Path], gpu: Pretended, family: str, sampler: str
) -> None:
    ours, theirs = ours_and_theirs(tiny_folders[family], sampler, "fp32", 64)
    assert ours == theirs


@pytest.mark.parametrize(
    ("sampler", "guidance"), [*((one.name, "batched") for one in SAMPLERS), ("Euler", "in-turn")]
)  # fmt: skip
def test_no_step_waits_for_the_gpu(tiny_folders: dict[str, Path], gpu: Pretended, sampler: str, guidance: str) -> None:
    """But for the clock, which reads the step before."""
    plan = plan_for(tiny_folders["sd15"], sampler=sampler, pins={"guidance": guidance})
    waits = []
    for event in local.run(plan):
        if isinstance(event, (Encoded, Step, Denoised)):
            waits.append((type(event).__name__, gpu.restart().waits))
    steps = [seen for kind, seen in waits if kind == "Step"]
    assert len(steps) == plan.jobs[0].unet_calls
    assert all(seen <= Counter(event=1) for seen in steps[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_on_the_gpu(tiny_folders: dict[str, Path], gpu: Pretended, family: str) -> None:
    pixels(plan_for(tiny_folders[family], num_images=2, seeds=(1, 2)))
    gc.collect()
    assert gpu.held() == 0 and gpu.allocator().allocated.peak > 0


def test_the_second_gpu_is_drawn_on_where_it_is_named(tiny_folders: dict[str, Path]) -> None:
    with pretend(device("8GiB"), device("8GiB")) as gpus:
        plan = plan_for(tiny_folders["sd15"], device="cuda:1")
        assert plan.setup.device == "cuda:1" and len(pixels(plan)) == 1
        assert gpus.allocator(0).requests == 0 and gpus.allocator(1).requests > 0


def test_peaks_are_those_the_allocator_counted(tiny_folders: dict[str, Path], gpu: Pretended) -> None:
    events = list(local.run(plan_for(tiny_folders["sdxl"])))
    peaks = {event.phase: event for event in events if isinstance(event, Memory)}
    assert max(peak.allocated_peak or 0 for peak in peaks.values()) == gpu.allocator().most_allocated
    assert all((peak.reserved_peak or 0) >= (peak.allocated_peak or 0) for peak in peaks.values())


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_memory_may_run_out_at_any_allocation(tiny_folders: dict[str, Path], family: str) -> None:
    """At eight of them: an image with the right pixels where the fallback moves none."""
    with pretend(device("8GiB")) as gpu:
        plan = plan_for(tiny_folders[family], pins={"dtype": "fp32"})
        plain = pixels(plan)
        allocations = gpu.allocator().requests
    for number in range(1, allocations, allocations // 8):
        with pretend(device("8GiB")) as gpu:
            gpu.fail_at(number)
            events = [event for event in local.run(plan) if isinstance(event, (Decoded, Degraded))]
            gc.collect()
            assert gpu.held() == 0
            drops = [event for event in events if isinstance(event, Degraded)]
            drawn = [event.pixels for event in events if isinstance(event, Decoded)]
            assert len(drops) == 1 and len(drawn) == 1, number
            if not drops[0].changes_pixels:
                assert drawn == plain, number
