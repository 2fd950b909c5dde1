"""Drawing on a GPU, a pretend one: the path, its waits, its memory."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from draw_samples import all_but

from scripts.gpu.inside import ours_and_theirs, pixels, plan_for
from sdcli.draw import local
from sdcli.errors import ImagesFailed
from sdcli.events import Decoded, Degraded, Denoised, Encoded, Memory, Step
from sdcli.plan.plan import Fallback, Plan
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


@pytest.mark.parametrize(
    ("family", "sampler"),
    [
        ("sd15", "Euler a"), ("sd2", "Euler a"), ("sdxl", "DPM++ 2M Karras"),
        pytest.param("sdxl", "Euler a", marks=pytest.mark.proof),
        pytest.param("sd15", "UniPC", marks=pytest.mark.proof),
    ],
)  # fmt: skip
def test_images_are_those_of_diffusers_on_the_same_gpu(
    tiny_folders: dict[str, Path], gpu: Pretended, family: str, sampler: str
) -> None:
    ours, theirs = ours_and_theirs(tiny_folders[family], sampler, "fp32", 64)
    assert ours == theirs


def test_no_step_waits_for_the_gpu(tiny_folders: dict[str, Path], gpu: Pretended, subtests: Any) -> None:
    """But for the clock, which reads the step before."""
    with local.Engine() as engine:
        for sampler, guidance in (*((one.name, "batched") for one in SAMPLERS), ("Euler", "in-turn")):
            plan = plan_for(tiny_folders["sd15"], sampler=sampler, pins={"guidance": guidance})
            waits = []
            for event in engine.run(plan):
                if isinstance(event, (Encoded, Step, Denoised)):
                    waits.append((type(event).__name__, gpu.restart().waits))
            steps = [seen for kind, seen in waits if kind == "Step"]
            with subtests.test(sampler=sampler, guidance=guidance):
                assert len(steps) == plan.jobs[0].unet_calls
                assert all(seen <= Counter(event=1) for seen in steps[1:])


@pytest.mark.parametrize("family", all_but("sd2"))
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


@pytest.mark.parametrize(("family", "first"), [("sd15", 0), ("sdxl", 1)])
def test_memory_may_run_out_at_any_allocation(tiny_folders: dict[str, Path], family: str, first: int) -> None:
    """At eight of them, every second with the other family: an image with the right pixels where the fallback moves
    none."""
    with pretend(device("8GiB")) as gpu:
        plan = plan_for(tiny_folders[family], steps=2, pins={"dtype": "fp32"})
        plain = pixels(plan)
        allocations = gpu.allocator().requests
    for number in [1 + allocations * eighth // 8 for eighth in range(first, 8, 2)]:
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


# --- CUDA graphs

ASKED: dict[str, tuple[dict[str, Any], int]] = {  # with how many replays
    "batched": ({}, 4),
    "in turn": ({"pins": {"guidance": "in-turn"}}, 8),
    # PNDM keeps what the UNet gave it in earlier steps
    "unguided": ({"guidance": 1.0, "sampler": "PNDM", "steps": 4}, 10),
    "sliced": ({"pins": {"attention": "sliced"}}, 4),
    "alone": ({"batch_invariant": True}, 6),
}


def graphed(path: Path, execution: str, **asked: Any) -> Plan:
    """Three images in batches of two, so that the last one is of another shape."""
    pins = {"guidance": "batched"} | asked.pop("pins", {}) | {"execution": execution}
    return plan_for(path, pins=pins, **{"num_images": 3, "seeds": (1, 2, 3), "batch_size": 2} | asked)


@pytest.mark.parametrize(
    ("how", "family"),
    [("batched", "sd15"), ("in turn", "sdxl"), ("unguided", "sd15"), ("sliced", "sdxl"),
     pytest.param("batched", "sdxl", marks=pytest.mark.proof), pytest.param("alone", "sd15", marks=pytest.mark.proof)],
)  # fmt: skip
def test_a_graph_draws_the_same_pixels_and_leaves_nothing(
    tiny_folders: dict[str, Path], gpu: Pretended, family: str, how: str
) -> None:
    """All setups with a graph, for both families, are drawn by scripts/proofs/setups.py."""
    asked, replays = ASKED[how]
    asked = {"steps": 2} | asked
    eager = pixels(graphed(tiny_folders[family], "eager", **asked))
    gpu.restart()
    assert pixels(graphed(tiny_folders[family], "graph", **asked)) == eager and len(eager) == 3
    assert gpu.traffic.launches["replay"] == replays
    gc.collect()
    segments = 2 * (20 << 20)  # of the workspaces, of two streams
    assert gpu.held() == 0 and gpu.allocator().reserved.now == segments


@pytest.mark.parametrize(("guidance", "most"), [("batched", 20), ("in-turn", 37)])
def test_a_step_of_a_graph_launches_little_and_waits_for_nothing(
    tiny_folders: dict[str, Path], gpu: Pretended, guidance: str, most: int
) -> None:
    plan = graphed(tiny_folders["sdxl"], "graph", pins={"guidance": guidance}, num_images=1, seeds=(1,))
    steps = [gpu.restart() for event in local.run(plan) if isinstance(event, (Encoded, Step))]
    for step in steps[2:-1]:  # the first captures, and the last one's launches come before its event
        assert sum(step.launches.values()) <= most and step.waits == Counter(event=1)


def with_a_fallback(path: Path) -> tuple[Plan, list[bytes]]:
    """A plan with a graph that falls back to none, and the pixels without."""
    plan = graphed(path, "eager", num_images=1, seeds=(1,), steps=2)
    fallback = Fallback(setup=plan.setup, device_peak=1, changes_pixels=False)
    return replace(plan, setup=replace(plan.setup, execution="graph"), fallbacks=(fallback,)), pixels(plan)


def degraded_once(plan: Plan, eager: list[bytes]) -> Degraded:
    events = list(local.run(plan))
    (degraded,) = [event for event in events if isinstance(event, Degraded)]
    assert (degraded.before, degraded.after) == ({"execution": "graph"}, {"execution": "eager"})
    assert [event.pixels for event in events if isinstance(event, Decoded)] == eager and not degraded.changes_pixels
    return degraded


def test_what_torch_refuses_to_capture_is_launched_layer_by_layer(
    tiny_folders: dict[str, Path], gpu: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, eager = with_a_fallback(tiny_folders["sd15"])
    forward = UNet2DConditionModel.forward

    def waiting(self: Any, sample: torch.Tensor, *given: Any, **named: Any) -> Any:
        float(sample.sum())
        return forward(self, sample, *given, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", waiting)
    degraded = degraded_once(plan, eager)
    assert degraded.phase == "graph" and "not permitted when stream is capturing" in degraded.because
    with pytest.raises(ImagesFailed, match="could not be captured") as error:
        list(local.run(replace(plan, request=replace(plan.request, fallback=False))))
    assert error.value.hint == "the same command with --pin execution=eager"


def test_memory_may_run_out_while_a_graph_is_captured(
    tiny_folders: dict[str, Path], gpu: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, eager = with_a_fallback(tiny_folders["sd15"])
    begin = torch.cuda.CUDAGraph.capture_begin

    def failing(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        gpu.fail_at(20)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", failing)
    assert "CUDA out of memory" in degraded_once(plan, eager).because
    gc.collect()
    assert gpu.held() == 0


def test_a_gpu_that_computes_faster_than_python_launches_draws_with_a_graph(tiny_folders: dict[str, Path]) -> None:
    with pretend(device("80GiB", capability="9.0")) as gpu:
        plan = plan_for(tiny_folders["sd15"], steps=8, pins={"guidance": "batched"})
        first = replace(plan.fallbacks[0].setup, threads=plan.setup.threads)
        assert plan.setup.execution == "graph" and first == replace(plan.setup, execution="eager")
        assert len(pixels(plan)) == 1 and gpu.traffic.launches["replay"] == 8


# What a guided step of the tiny models launches: every call of an operator that is neither a view nor empty memory.
# More means that something came back which changes no pixel: a division by 1 after each ResNet and attention, the
# activation of the time's vector in each ResNet, the prompt's rows picked again in each step.
MOST_LAUNCHES = {("sd15", "batched"): 461, ("sd15", "in-turn"): 913, ("sdxl", "batched"): 459, ("sdxl", "in-turn"): 895}


@pytest.mark.parametrize(("family", "guidance"), MOST_LAUNCHES)
def test_a_step_launches_no_more_than_it_must(
    tiny_folders: dict[str, Path], gpu: Pretended, family: str, guidance: str
) -> None:
    plan = graphed(tiny_folders[family], "eager", pins={"guidance": guidance}, num_images=1, seeds=(1,))
    steps = [gpu.restart() for event in local.run(plan) if isinstance(event, (Encoded, Step))]
    assert max(sum(step.launches.values()) for step in steps[2:-1]) <= MOST_LAUNCHES[family, guidance]
