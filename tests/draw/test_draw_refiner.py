"""A refiner, for the last steps of SDXL and alone over images: diffusers' latents, in every placement, on a GPU, out of
memory."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from draw_samples import HARDWARE, TheTruth, out_of_memory_at, request_for
from PIL import Image
from torch import Tensor

from scripts.refined import (
    GUIDANCE,
    IN_HALVES,
    NEGATIVE,
    OF_FIRST_ORDER,
    PINS,
    PROMPT,
    STEPS,
    Pair,
    generators,
    latents,
    pair_in,
    plan_for,
    scheduler_of,
    theirs,
)
from sdcli.draw import denoise, local, schedulers
from sdcli.events import Decoded, Degraded, Denoised, Encoded, EncodedImage, Loaded, Preview, Step
from sdcli.images.read import InputImage, look
from sdcli.machine import survey
from sdcli.models import resolve
from sdcli.plan.footprint import Sizes
from sdcli.plan.legality import legal
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.plan.stages import stages
from sdcli.request.samplers import find
from tests.pretend_gpu import device, pretend


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_in(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> InputImage:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    values = numpy.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
    Image.fromarray(values).save(path)
    return look(path)


def alone(pair: Pair, photo: InputImage, **asked: Any) -> Plan:
    request = request_for(
        **{"steps": STEPS, "negative_prompt": NEGATIVE, "pins": PINS, "image": (photo,), "strength": 0.6, **asked}
    )
    return make_plan(request, resolve.at(pair.refiner), HARDWARE, {})


def pixels(plan: Plan) -> list[bytes]:
    return [event.pixels for event in local.run(plan) if isinstance(event, Decoded)]


# --- beside diffusers


@pytest.mark.parametrize("sampler", OF_FIRST_ORDER)
def test_the_latents_are_those_of_diffusers_two_pipelines(pair: Pair, sampler: str) -> None:
    own = latents(plan_for(pair, sampler=sampler))
    assert (own - theirs(pair, sampler, 6)).abs().max().item() == 0.0


@pytest.mark.parametrize("share", [0.1, 0.3, 0.8, 0.9])
def test_so_they_are_wherever_the_refiner_begins(pair: Pair, share: float) -> None:
    own = latents(plan_for(pair, share, sampler="Euler a"))
    assert torch.equal(own, theirs(pair, "Euler a", round(share * STEPS)))


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_a_batch_without_a_negative_prompt_is_theirs_too(pair: Pair, guidance: float) -> None:
    """Which is zeros to the base, and encoded for the refiner."""
    asked = {"seeds": (7, 8), "batch_size": 2, "sampler": "Euler a", "negative_prompt": "", "guidance": guidance}
    own = latents(plan_for(pair, **asked))
    expected = theirs(pair, "Euler a", 6, count=2, negative_prompt=None, guidance_scale=guidance)
    assert len(own) == 2 and torch.equal(own, expected)


@pytest.mark.parametrize("sampler", ["DDIM", "Euler a", "DPM++ 2M Karras", "LCM"])
def test_what_starts_from_an_image_is_refined_as_there(pair: Pair, photo: InputImage, sampler: str) -> None:
    """Of ten steps the last eight, five by the base and three by the refiner."""
    own = latents(plan_for(pair, sampler=sampler, image=(photo,), strength=0.8))
    with Image.open(photo.path) as image:
        assert torch.equal(own, theirs(pair, sampler, 7, image=image.convert("RGB"), strength=0.8))


@pytest.mark.parametrize(
    ("sampler", "negative"),
    [
        *((sampler, NEGATIVE) for sampler in ("DDIM", "Euler a", "DPM++ 2M Karras", "Heun", "LCM")), ("Euler a", ""),
        *(pytest.param(one, "", marks=pytest.mark.proof) for one in ("DDIM", "DPM++ 2M Karras", "Heun", "LCM")),
    ],
)  # fmt: skip
def test_over_an_image_it_draws_alone(pair: Pair, photo: InputImage, sampler: str, negative: str) -> None:
    pipeline = pair.pipelines[1]
    before = pipeline.scheduler
    try:
        pipeline.scheduler = scheduler_of(sampler, before.config)
        with Image.open(photo.path) as image:
            expected = pipeline(
                PROMPT, image=image.convert("RGB"), negative_prompt=negative or None, strength=0.6,
                num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators(1), output_type="latent",
            ).images  # fmt: skip
    finally:
        pipeline.scheduler = before
    assert torch.equal(latents(alone(pair, photo, sampler=sampler, negative_prompt=negative), "denoise"), expected)


# --- whole steps


@torch.no_grad()
def by_hand(pair: Pair, sampler: str, taken: int) -> Tensor:
    """A plain loop over diffusers' modules and schedulers, split after whole steps."""
    config, drawing = pair.pipelines[0].scheduler.config, generators(1)
    drawn = None
    for number, pipeline in enumerate(pair.pipelines):
        scheduler = scheduler_of(sampler, config)
        scheduler.set_timesteps(STEPS)
        if sampler == "PNDM":  # its second timestep is there twice; a single step takes one call
            rest = scheduler.timesteps[taken + 1 :]
            times = torch.cat([rest[:2], rest[1:]]) if number else scheduler.timesteps[: taken + (taken > 1)]
        else:
            scheduler.set_begin_index(2 * taken if number else 0)
            times = scheduler.timesteps[2 * taken :] if number else scheduler.timesteps[: 2 * taken]
        if drawn is None:
            drawn = torch.randn((1, 4, 8, 8), generator=drawing[0]) * scheduler.init_noise_sigma
        embeds, negative, pooled, other = pipeline.encode_prompt(PROMPT, negative_prompt=NEGATIVE)
        told = [[64, 64, 0, 0, 2.5], [64, 64, 0, 0, 6.0]] if number else [[64, 64, 0, 0, 64, 64]] * 2
        added = {"text_embeds": torch.cat([other, pooled]), "time_ids": torch.tensor(told, dtype=torch.float32)}
        for time in times:
            scaled = scheduler.scale_model_input(torch.cat([drawn] * 2), time)
            said = pipeline.unet(
                scaled, time, encoder_hidden_states=torch.cat([negative, embeds]), added_cond_kwargs=added
            ).sample
            without, prompted = said.chunk(2)
            more = {"generator": drawing} if sampler == "DPM2 a" else {}
            drawn = scheduler.step(without + GUIDANCE * (prompted - without), time, drawn, **more).prev_sample
    assert drawn is not None
    return drawn


@pytest.mark.parametrize(
    ("sampler", "taken"),
    [
        pytest.param(sampler, taken, marks=[pytest.mark.proof] * (taken != (1, 6, 9)[number % 3]))
        for number, sampler in enumerate([*IN_HALVES, "PNDM"])
        for taken in (1, 6, 9)
    ],
)
def test_samplers_with_two_calls_a_step_hand_over_between_steps(pair: Pair, sampler: str, taken: int) -> None:
    assert torch.equal(latents(plan_for(pair, taken / STEPS, sampler=sampler)), by_hand(pair, sampler, taken))


@pytest.mark.parametrize("taken", [1, 2, 5, 9])
@pytest.mark.parametrize("sampler", ["PNDM", "DDIM"])
def test_no_noise_is_left_wherever_the_refiner_begins(pair: Pair, sampler: str, taken: int) -> None:
    """Both UNets know the image."""
    config = pair.pipelines[0].scheduler.config
    image = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    plain = denoise.Conditioning(guidance=denoise.Guidance(scale=1.0, sides=1), rows={})
    drawing, loop = generators(1), None
    for left, count in ((STEPS - taken, taken), (0, STEPS - taken)):
        scheduler = schedulers.make(sampler, config)
        schedulers.set_steps(scheduler, STEPS)
        timesteps = schedulers.last_timesteps(scheduler, STEPS, count, left)
        assert len(timesteps) == find(sampler).unet_calls(count, followed=left > 0)
        if loop is None:
            loop = denoise.begin(scheduler, drawing, shape=(4, 8, 8), dtype=torch.float32, device="cpu")
        else:
            loop = denoise.begin_after(loop, scheduler, drawing, device="cpu")
        *_, loop = denoise.denoise(TheTruth(scheduler, image), scheduler, plain, loop, drawing, timesteps)
    assert (loop.latents - image).abs().max() < 0.2


@pytest.mark.parametrize(("sampler", "calls"), [("Euler", (6, 4)), ("Heun", (12, 7)), ("PNDM", (7, 5))])
def test_steps_and_stages_are_those_planned(pair: Pair, sampler: str, calls: tuple[int, int]) -> None:
    plan = plan_for(pair, sampler=sampler, filmstrip=5)
    events = list(local.run(plan))
    steps = [(event.stage, event.step, event.of) for event in events if isinstance(event, Step)]
    first, rest = calls
    assert steps == [
        *(("denoise", number, first) for number in range(1, first + 1)),
        *(("refine", number, rest) for number in range(1, rest + 1)),
    ]
    assert plan.jobs[0].all_calls == first + rest
    names = ["encode", "encode-refiner", "denoise", "refine", "decode"]
    assert [phase.name for phase in plan.footprint.phases] == ["load", *names]
    assert [event.stage for event in events if isinstance(event, (Encoded, Denoised, Decoded))] == names
    frames = [(event.stage, event.step) for event in events if isinstance(event, Preview)]
    assert len(frames) == 5 and frames[-1] == ("refine", rest)


# --- as part of a setup, and in memory


def test_it_is_part_of_the_model_and_of_the_setup(pair: Pair) -> None:
    plan = plan_for(pair)
    (adapter,) = plan.setup.adapters
    assert (adapter.kind, adapter.name, adapter.scale) == ("refiner", "refiner", 0.6) and len(adapter.sha256) == 64
    assert {"refiner_unet", "refiner_text_encoder_2"} <= plan.model.components.keys()
    assert plan.jobs[0].refined is not None and plan.jobs[0].refined.model == "refiner"
    for execution in ("graph", "openvino", "compile"):
        reason = legal(replace(plan.setup, execution=execution), plan.hardware, plan.model)
        assert reason == f"execution={execution} prepares one UNet, and a refiner has another"


def test_an_image_of_a_batch_is_the_one_drawn_alone(pair: Pair) -> None:
    asked: dict[str, Any] = {"sampler": "Euler a", "batch_invariant": True}
    together = pixels(plan_for(pair, seeds=(7, 8), batch_size=2, **asked))
    assert together == [pixels(plan_for(pair, seeds=(seed,), **asked))[0] for seed in (7, 8)]
    without = pixels(plan_for(pair, 0.9, seeds=(7,), **asked))
    assert together[0] != without[0]


@pytest.mark.parametrize("choices", [
    {"placement": "disk"}, {"placement": "drop-encoders"}, {"guidance": "in-turn"}, {"execution": "packed"},
    {"attention": "sliced"},
])  # fmt: skip
def test_every_way_of_drawing_refines(pair: Pair, choices: dict[str, str]) -> None:
    plan = plan_for(pair)
    plain = pixels(plan)[0]
    other = pixels(replace(plan, setup=replace(plan.setup, **choices)))[0]  # type: ignore[arg-type]
    if "placement" in choices:
        assert other == plain
    difference = numpy.frombuffer(other, numpy.uint8).astype(int) - numpy.frombuffer(plain, numpy.uint8)
    assert numpy.abs(difference).max() <= 2


def test_where_both_do_not_fit_one_unet_makes_room_for_the_other(pair: Pair) -> None:
    plan = plan_for(pair, pins={"placement": "disk"})
    loaded = [event.component for event in local.run(plan) if isinstance(event, Loaded)]
    assert loaded == ["text_encoder", "text_encoder_2", "refiner_text_encoder_2", "unet", "refiner_unet", "vae"]
    sizes = Sizes(plan.model, stages(plan.model, plan.jobs), plan.hardware)
    unets = sum(sizes.weights(part, plan.setup) for part in ("unet", "refiner_unet"))
    by_name = {phase.name: phase for phase in plan.footprint.phases}
    for placement, together in (("disk", False), ("resident", True), ("drop-encoders", True)):
        by_name = {phase.name: phase for phase in sizes.phases(replace(plan.setup, placement=placement))}
        for name in ("denoise", "refine"):
            there = by_name[name].weights + by_name[name].parked
            assert (there >= unets) == together, (placement, name)


def on_a_gpu(pair: Pair, **asked: Any) -> Plan:
    plan = plan_for(pair, hardware=survey.choose("cuda", survey.look()), **asked)
    return replace(plan, setup=replace(plan.setup, threads=1))


@pytest.mark.parametrize(
    "placement",
    [
        "resident", "drop-encoders", "group-offload",
        pytest.param("model-offload", marks=pytest.mark.proof), pytest.param("disk", marks=pytest.mark.proof),
    ],
)  # fmt: skip
def test_a_gpu_gives_the_pixels_of_the_cpu_waits_for_nothing_and_keeps_nothing(pair: Pair, placement: str) -> None:
    waits, drawn = [], []
    with pretend(device("8GiB", capability="8.6")) as gpu:
        for event in local.run(on_a_gpu(pair, sampler="Euler a", pins={"placement": placement})):
            if isinstance(event, (Encoded, Step, Denoised)):
                waits.append((type(event).__name__, gpu.restart().waits))
            drawn += [event.pixels] if isinstance(event, Decoded) else []
        gc.collect()
        assert gpu.held() == 0
    steps = [seen for kind, seen in waits if kind == "Step"]
    if placement in ("resident", "drop-encoders"):
        assert all(seen <= Counter(event=1) for number, seen in enumerate(steps) if number not in (0, 6))
    assert drawn == pixels(plan_for(pair, sampler="Euler a"))


def test_memory_may_run_out_in_every_stage(pair: Pair) -> None:
    """The right pixels where the fallback moves none; a refiner that ran out goes on with the same noise."""
    reached = {"load": 1}
    with pretend(device("8GiB")) as gpu:
        plan, plain = on_a_gpu(pair, sampler="Euler a", pins={"execution": "eager"}), []
        names = [phase.name for phase in plan.footprint.phases]
        for event in local.run(plan):
            if isinstance(event, (Encoded, EncodedImage, Denoised)):
                reached[names[names.index(event.stage) + 1]] = gpu.allocator().requests + 5
            plain += [event.pixels] if isinstance(event, Decoded) else []
    assert {"encode-refiner", "denoise", "refine", "decode"} <= reached.keys()
    for phase, number in reached.items():
        assert out_of_memory_at(plan, number, *plain) == phase


def test_an_image_is_not_needed_again_where_memory_ran_out_before_the_refiner(pair: Pair, photo: InputImage) -> None:
    """What was encoded under the setup before is dropped."""
    asked: dict[str, Any] = {"sampler": "Euler a", "image": (photo,), "strength": 0.8, "pins": {"execution": "eager"}}
    reached, plain = 0, []
    with pretend(device("8GiB")) as gpu:
        plan = on_a_gpu(pair, **asked)
        for event in local.run(plan):
            if isinstance(event, Step) and (event.stage, event.step) == ("denoise", 2):
                reached = gpu.allocator().requests + 5
            plain += [event.pixels] if isinstance(event, Decoded) else []
    with pretend(device("8GiB")) as gpu:
        gpu.fail_at(reached)
        events = [event for event in local.run(plan) if isinstance(event, (Decoded, Degraded))]
    (drop,) = [event for event in events if isinstance(event, Degraded)]
    assert drop.phase == "denoise"
    drawn = [event.pixels for event in events if isinstance(event, Decoded)]
    assert len(drawn) == 1 and (drop.changes_pixels or drawn == plain)
