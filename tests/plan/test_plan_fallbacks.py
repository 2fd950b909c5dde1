"""Where a run goes when memory runs out after all: which rung, in which phase, and whether it moves pixels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from making import asking, card, jobs_of, known_model, processor

from sdcli.machine.hardware import Hardware
from sdcli.plan.footprint import footprint
from sdcli.plan.ladder import after_out_of_memory, changes_pixels
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
    shape = Shape(width=job.width, height=job.height, batch=len(plan.batches[0]), guided=job.guided)
    found = footprint(plan.model, shape, setup, plan.hardware)
    return next(row.device for row in found.phases if row.name == phase)


@pytest.mark.parametrize("hardware", [card(24), card(8, free=7.1), card(6), card(3), processor(16)], ids=named)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("phase", ["encode", "denoise", "decode"])
def test_every_rung_needs_less_in_the_phase_that_failed(family: str, hardware: Hardware, phase: str) -> None:
    plan = planned(family, hardware)
    rungs = after_out_of_memory(plan, 0, plan.setup, phase)
    chain = [needs(plan, setup, phase) for setup in (plan.setup, *(rung.setup for rung in rungs))]
    assert all(below < above for above, below in itertools.pairwise(chain))


def test_a_failed_decode_is_tiled_first_and_at_last_done_on_the_cpu() -> None:
    plan = planned("sdxl", card(24))
    ways = [rung.setup.vae for rung in after_out_of_memory(plan, 0, plan.setup, "decode")]
    assert ways[:3] == ["tile-512", "tile-256", "cpu"]
    rungs = after_out_of_memory(plan, 0, plan.setup, "decode")
    assert all(rung.setup.placement == plan.setup.placement for rung in rungs[:3])
    assert all(rung.changes_pixels for rung in rungs[:3])
    assert rungs[2].setup.vae_dtype == "fp32"


def test_a_decode_that_was_tiled_already_goes_on_from_there() -> None:
    plan = planned("sdxl", card(8, free=7.1))
    assert plan.setup.vae == "tile-512"
    rungs = after_out_of_memory(plan, 0, plan.setup, "decode")
    assert [rung.setup.vae for rung in rungs[:2]] == ["tile-256", "cpu"]


def test_a_cpu_tiles_a_failed_decode_too() -> None:
    plan = planned("sd15", processor(16))
    rungs = after_out_of_memory(plan, 0, plan.setup, "decode")
    assert rungs[0].setup.vae == "tile-256"  # tiles of 512 are the whole picture here


def test_the_unet_is_moved_before_pixels_are() -> None:
    plan = planned("sdxl", card(24))
    first, *rest = after_out_of_memory(plan, 0, plan.setup, "denoise")
    assert not first.changes_pixels
    assert first.setup.placement != "resident"
    assert any(rung.setup.placement == "group-offload" and not rung.changes_pixels for rung in rest)


def test_after_a_rung_the_next_one_starts_from_it() -> None:
    plan = planned("sdxl", card(24))
    first = after_out_of_memory(plan, 0, plan.setup, "denoise")[0]
    later = after_out_of_memory(plan, 0, first.setup, "denoise")
    assert first.setup not in [rung.setup for rung in later]
    assert needs(plan, later[0].setup, "denoise") < needs(plan, first.setup, "denoise")


def test_the_last_rung_has_nothing_below_it() -> None:
    plan = planned("sdxl", card(24))
    assert after_out_of_memory(plan, 0, plan.ladder[-1].setup, "denoise") == ()


def test_a_pinned_decode_stays_as_pinned() -> None:
    plan = planned("sdxl", card(24), pins={"vae": "whole", "placement": "resident"})
    assert plan.ladder == () or all(rung.setup.vae == "whole" for rung in plan.ladder)
    assert all(rung.setup.vae == "whole" for rung in after_out_of_memory(plan, 0, plan.setup, "decode"))


def test_moving_weights_keeps_pixels_and_tiling_does_not() -> None:
    base = Setup(dtype="fp16")
    for placement in ("drop-encoders", "model-offload", "group-offload", "disk"):
        assert not changes_pixels(base, replace(base, placement=placement))
    for slot, choice in {"vae": "tile-512", "guidance": "in-turn", "dtype": "bf16", "storage": "fp8"}.items():
        assert changes_pixels(base, replace(base, **{slot: choice}))  # type: ignore[arg-type]


def test_what_was_given_up_is_not_taken_back() -> None:
    plan = planned("sdxl", card(8, free=7.1))
    assert plan.setup.vae == "tile-512" and plan.ladder
    assert all(rung.setup.vae != "whole" for rung in plan.ladder)
    plan = planned("sdxl", card(6))
    assert plan.setup.guidance == "in-turn" and plan.ladder
    assert all(rung.setup.guidance == "in-turn" for rung in plan.ladder)


def test_no_rung_needs_more_host_memory_than_there_is() -> None:
    plan = planned("sdxl", card(12, ram=6))
    for rung in plan.ladder:
        assert rung.setup.placement not in ("model-offload", "group-offload")
