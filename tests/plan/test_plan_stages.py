"""The stages an image goes through, and what is in memory during each."""

from __future__ import annotations

import pytest
from making import asking, jobs_of, known_model

from sdcli.plan.footprint import Sizes
from sdcli.plan.plan import Setup
from sdcli.plan.stages import parts_of, previews_after, stages, walk
from sdcli.plan.techniques import placement
from sdcli.request.request import Request
from sdcli.sizes import GIB


def test_a_batch_is_encoded_denoised_and_decoded_and_all_prompts_first() -> None:
    request = asking("sdxl", count=2)
    model, jobs = known_model("sdxl"), jobs_of(request)
    names = [(number, stage.name) for number, _, stage in walk(model, [(0, jobs[:1]), (1, jobs[1:])])]
    assert names == [(0, "encode"), (1, "encode"), (0, "denoise"), (0, "decode"), (1, "denoise"), (1, "decode")]
    assert parts_of(stages(model, jobs)) == ("text_encoder", "text_encoder_2", "unet", "vae")


@pytest.mark.parametrize("choice", placement.TECHNIQUE.choices)
def test_a_placement_always_holds_what_works_and_never_too_much(choice: str) -> None:
    model = known_model("sdxl")
    every = stages(model, jobs_of(asking("sdxl")))
    for stage in every:
        for part in stage.parts:
            there = placement.loaded(choice, every, stage, part)
            assert part in there and set(there) <= set(parts_of(every))
            if choice == "drop-encoders":
                assert ("unet" in there) != ("text_encoder" in there)
            if choice == "disk":
                assert there == (part,)


def test_a_batch_drawn_one_by_one_calls_the_unet_for_each_image() -> None:
    model, jobs = known_model("sd15"), jobs_of(asking("sd15", count=3))
    together, alone = (stages(model, jobs, alone=alone)[1] for alone in (False, True))
    assert (together.shape.batch, together.steps) == (3, 25)
    assert (alone.shape.batch, alone.steps) == (1, 75)


def test_frames_of_a_strip_are_even_and_end_with_the_last_step() -> None:
    def after(steps: int, **asked: int) -> frozenset[int]:
        return previews_after(Request(prompts=("a",), **asked), steps)  # type: ignore[arg-type]

    assert after(20, filmstrip=4) == {5, 10, 15, 20}
    assert after(3, filmstrip=10) == {1, 2, 3}
    assert after(20) == frozenset()
    assert after(10, filmstrip=1, preview_every=4) == {4, 8, 10}
    for steps in range(1, 30):
        for count in range(1, steps + 1):
            frames = after(steps, filmstrip=count)
            assert len(frames) == count and max(frames) == steps


def test_attention_in_blocks_counts_the_block_that_is_drawn() -> None:
    """Two thirds of a gibibyte less than the whole matrix at 1024², and more with more threads."""
    from making import processor

    request = asking("sd15", size=1024)
    sizes = Sizes(known_model("sd15"), stages(known_model("sd15"), jobs_of(request)), processor(64))
    work = {
        threads: sizes.work(sizes.stages[1], Setup(dtype="bf16", attention="blocked", threads=threads))
        for threads in (2, 64, 512)
    }
    fused = sizes.work(sizes.stages[1], Setup(dtype="bf16", threads=2))
    assert fused == work[2] <= work[64] < work[512] < fused + 8 * GIB
