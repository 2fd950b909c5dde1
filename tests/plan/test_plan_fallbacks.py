"""What a run falls back to when memory runs out: which setup, in which phase, and whether it changes pixels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from making import asking, gpu, jobs_of, known_model, processor

from sdcli.machine.hardware import Hardware
from sdcli.plan.fallbacks import after_out_of_memory, changes_pixels
from sdcli.plan.footprint import footprint
from sdcli.plan.plan import Plan, Setup
from sdcli.plan.planner import make_plan
from sdcli.plan.stages import Shape


def named(hardware: Hardware) -> str:
    return f"{hardware.device} {hardware.free >> 30} GiB"


def planned(family: str, hardware: Hardware, **asked: Any) -> Plan:
    request = asking(family, **asked)
    return make_plan(request, known_model(family), hardware, {}, jobs=jobs_of(request))


def needs(plan: Plan, setup: Setup, phase: str) -> int:
    job = plan.jobs[0]
    shape = Shape(width=job.width, height=job.height, batch=len(plan.batches[0]), sides=2 if job.guided else 1)
    phases = footprint(plan.model, shape, setup, plan.hardware).phases
    return next(row.device for row in phases if row.name == phase)


@pytest.mark.parametrize("hardware", [gpu(24), gpu(8, free=7.1), gpu(6), gpu(3), processor(16)], ids=named)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("phase", ["encode", "denoise", "decode"])
def test_every_fallback_needs_less_in_the_phase_that_failed(family: str, hardware: Hardware, phase: str) -> None:
    plan = planned(family, hardware)
    fallbacks = after_out_of_memory(plan, 0, plan.setup, phase)
    chain = [needs(plan, setup, phase) for setup in (plan.setup, *(fallback.setup for fallback in fallbacks))]
    assert all(below < above for above, below in itertools.pairwise(chain))


def test_a_failed_decode_is_tiled_first_and_at_last_done_on_the_cpu() -> None:
    plan = planned("sdxl", gpu(24))
    fallbacks = after_out_of_memory(plan, 0, plan.setup, "decode")
    assert [fallback.setup.vae for fallback in fallbacks[:3]] == ["tile-512", "tile-256", "cpu"]
    assert all(fallback.setup.placement == plan.setup.placement for fallback in fallbacks[:3])
    assert all(fallback.changes_pixels for fallback in fallbacks[:3])
    assert fallbacks[2].setup.vae_dtype == "fp32"


def test_a_decode_that_was_tiled_already_continues_with_smaller_tiles() -> None:
    plan = planned("sdxl", gpu(8, free=7.1))
    assert plan.setup.vae == "tile-512"
    fallbacks = after_out_of_memory(plan, 0, plan.setup, "decode")
    assert [fallback.setup.vae for fallback in fallbacks[:2]] == ["tile-256", "cpu"]


def test_a_cpu_tiles_a_failed_decode_too() -> None:
    plan = planned("sd15", processor(16))
    fallbacks = after_out_of_memory(plan, 0, plan.setup, "decode")
    assert fallbacks[0].setup.vae == "tile-256"  # a tile of 512 is the whole image here


def test_the_unet_is_moved_before_pixels_are() -> None:
    plan = planned("sdxl", gpu(24))
    first, *rest = after_out_of_memory(plan, 0, plan.setup, "denoise")
    assert not first.changes_pixels
    assert first.setup.placement != "resident"
    assert any(fallback.setup.placement == "group-offload" and not fallback.changes_pixels for fallback in rest)


def test_the_next_fallback_starts_from_the_one_before() -> None:
    plan = planned("sdxl", gpu(24))
    first = after_out_of_memory(plan, 0, plan.setup, "denoise")[0]
    later = after_out_of_memory(plan, 0, first.setup, "denoise")
    assert first.setup not in [fallback.setup for fallback in later]
    assert needs(plan, later[0].setup, "denoise") < needs(plan, first.setup, "denoise")


def test_nothing_follows_the_last_fallback() -> None:
    plan = planned("sdxl", gpu(24))
    assert after_out_of_memory(plan, 0, plan.fallbacks[-1].setup, "denoise") == ()


def test_a_pinned_decode_stays_as_pinned() -> None:
    plan = planned("sdxl", gpu(24), pins={"vae": "whole", "placement": "resident"})
    assert plan.fallbacks == () or all(fallback.setup.vae == "whole" for fallback in plan.fallbacks)
    assert all(fallback.setup.vae == "whole" for fallback in after_out_of_memory(plan, 0, plan.setup, "decode"))


def test_moving_weights_keeps_pixels_and_tiling_does_not() -> None:
    base = Setup(dtype="fp16")
    for placement in ("drop-encoders", "model-offload", "group-offload", "disk"):
        assert not changes_pixels(base, replace(base, placement=placement))
    for slot, choice in {"vae": "tile-512", "guidance": "in-turn", "dtype": "bf16", "storage": "fp8"}.items():
        assert changes_pixels(base, replace(base, **{slot: choice}))  # type: ignore[arg-type]


def test_what_was_given_up_is_not_taken_back() -> None:
    plan = planned("sdxl", gpu(8, free=7.1))
    assert plan.setup.vae == "tile-512" and plan.fallbacks
    assert all(fallback.setup.vae != "whole" for fallback in plan.fallbacks)
    plan = planned("sdxl", gpu(6))
    assert plan.setup.guidance == "in-turn" and plan.fallbacks
    assert all(fallback.setup.guidance == "in-turn" for fallback in plan.fallbacks)


def test_no_fallback_needs_more_host_memory_than_there_is() -> None:
    plan = planned("sdxl", gpu(12, ram=6))
    for fallback in plan.fallbacks:
        assert fallback.setup.placement not in ("model-offload", "group-offload")
