"""Jobs that can share UNet calls form a batch, at most batch_size of them, in their order."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from making import asking, gpu, jobs_of, known_model

from sdcli.plan.batches import in_batches
from sdcli.plan.planner import make_plan

JOB = jobs_of(asking("sd15"))[0]


def test_jobs_of_one_size_share_a_batch() -> None:
    jobs = [replace(JOB, index=number, width=width) for number, width in enumerate([512, 512, 768, 512, 768, 512])]
    assert in_batches(jobs, 2) == ((0, 1), (2, 4), (3, 5))
    assert in_batches(jobs, 1) == ((0,), (1,), (2,), (3,), (4,), (5,))


def test_other_steps_samplers_or_guidance_are_another_batch() -> None:
    jobs = [JOB, replace(JOB, steps=9, unet_calls=9), replace(JOB, sampler="DDIM"), replace(JOB, guidance=1.0)]
    assert len(in_batches(jobs, 4)) == 4


@settings(max_examples=100, deadline=None, derandomize=True)
@given(widths=st.lists(st.sampled_from([512, 640, 768]), max_size=30), batch_size=st.integers(1, 5))
def test_every_job_is_in_one_batch_and_in_order(widths: list[int], batch_size: int) -> None:
    jobs = [replace(JOB, index=number, width=width) for number, width in enumerate(widths)]
    batches = in_batches(jobs, batch_size)
    assert sorted(number for batch in batches for number in batch) == list(range(len(jobs)))
    assert all(len(batch) <= batch_size and list(batch) == sorted(batch) for batch in batches)
    assert all(len({jobs[number].width for number in batch}) == 1 for batch in batches)
    assert list(batches) == sorted(batches)


def test_the_heaviest_size_of_many_decides() -> None:
    small = [replace(JOB, index=number, width=256 + 8 * number, height=256) for number in range(40)]
    large = replace(JOB, index=40, width=1536, height=1536)
    request, model, hardware = asking("sd15"), known_model("sd15"), gpu(4)
    alone = make_plan(request, model, hardware, {}, jobs=[large])
    mixed = make_plan(request, model, hardware, {}, jobs=[*small, large])
    assert mixed.footprint.device_peak == alone.footprint.device_peak
    assert len(mixed.batches) == 41


def test_one_job_stands_for_a_stream_of_prompts() -> None:
    request = asking("sd15")
    plan = make_plan(request, known_model("sd15"), gpu(8), {}, jobs=())
    assert plan.batches == () and plan.fits
    assert plan.footprint.device_peak > 2 << 30
