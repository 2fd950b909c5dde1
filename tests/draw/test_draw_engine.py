"""The whole engine: tiny models from folder to pixels, in every placement, interrupted and out of memory."""

from __future__ import annotations

import gc
import itertools
import shutil
import statistics
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from draw_samples import FAMILIES, all_but, diffusers_pipelines, events_of, plan_for

from sdcli import events
from sdcli.draw import local, place, prompts, run
from sdcli.draw.decode import decode
from sdcli.draw.session import Session
from sdcli.errors import OutOfMemory
from sdcli.events import Decoded, Degraded, Denoised, Done, Encoded, Failed, Loaded, Memory, Preview, Step
from sdcli.plan import batches
from sdcli.plan.legality import legal
from sdcli.plan.plan import Plan
from sdcli.plan.stages import stages
from sdcli.plan.techniques import placement as place_of


def pixels(plan: Plan) -> list[bytes]:
    return [event.pixels for event in events_of(plan, Decoded)]


def with_setup(plan: Plan, **choices: str) -> Plan:
    """The plan under another setup; one that is legal only on a GPU is carried out on the CPU."""
    setup = replace(plan.setup, **choices)  # type: ignore[arg-type]
    if legal(setup, plan.hardware, plan.model) is None:
        return replace(plan, setup=setup)
    return replace(plan, setup=setup, hardware=replace(plan.hardware, device="cuda:0", capability="8.6", dtypes={}))


@pytest.fixture(scope="module")
def as_loaded(tiny_folders: dict[str, Path]) -> dict[str, Any]:
    """diffusers' pipelines with the engine's memory layout: convolutions channels last, every tensor at the start of an
    allocation and not somewhere in a mapped file. Both change the last bits of products."""
    made = diffusers_pipelines(tiny_folders, torch.float32)
    for pipeline in made.values():
        for name, module in pipeline.components.items():
            if isinstance(module, torch.nn.Module):
                module.to(memory_format=torch.channels_last if name in ("unet", "vae") else torch.contiguous_format)
                for weight in module.parameters():
                    weight.data = weight.data.clone()
    return made


@pytest.mark.parametrize("negative", ["", "blurry, dark"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_draws_the_images_diffusers_draws(
    tiny_folders: dict[str, Path], as_loaded: dict[str, Any], family: str, negative: str
) -> None:
    """Without a negative prompt SDXL's pipeline uses zeros; each image has a seed."""
    import diffusers

    plan = plan_for(
        tiny_folders[family], prompts=("a cat", "a dog on the moon"), seeds=(3, 4), negative_prompt=negative,
        sampler="DPM++ 2M Karras", width=96,
    )  # fmt: skip
    pipeline = as_loaded[family]
    before = pipeline.scheduler
    expected = []
    try:
        for job in plan.jobs:
            pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
                before.config, use_karras_sigmas=True
            )
            expected += pipeline(
                job.prompt, negative_prompt=negative or None, guidance_scale=5.0, num_inference_steps=4, width=96,
                height=64, generator=torch.Generator("cpu").manual_seed(job.seed),
            ).images  # fmt: skip
    finally:
        pipeline.scheduler = before
    drawn = events_of(plan, Decoded)
    assert [(event.width, event.height, event.job.seed) for event in drawn] == [(96, 64, s) for s in (3, 4, 3, 4)]
    assert [event.pixels for event in drawn] == [image.tobytes() for image in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_events_come_in_order_and_all_of_them_cross_a_process(tiny_folders: dict[str, Path], family: str) -> None:
    plan = plan_for(tiny_folders[family], num_images=2, seeds=(1, 2), filmstrip=2, sampler="Heun")
    seen = events_of(plan)
    for event in seen:
        data = events.to_json(event)
        assert events.to_json(events.from_json(data)) == data
    first = [type(event) for event in seen if getattr(event, "batch", 0) == 0]
    order = [Loaded, Encoded, Step, Denoised, Decoded, Done]
    assert [kind for kind in dict.fromkeys(first) if kind in order] == order
    assert {event.component for event in seen if isinstance(event, Loaded)} == set(plan.model.components)
    steps = [event for event in seen if isinstance(event, Step) and event.batch == 1]
    assert [step.step for step in steps] == [*range(1, 8)] and {step.of for step in steps} == {7}  # Heun: 2n-1
    frames = [(event.index, event.step) for event in seen if isinstance(event, Preview)]
    assert frames == [(0, 4), (0, 7), (1, 4), (1, 7)]
    assert all(len(event.pixels) == event.width * event.height * 3 for event in seen if isinstance(event, Preview))
    phases = [event.phase for event in seen if isinstance(event, Memory)]
    assert phases == ["import", "load", "encode", "encode", "denoise", "decode", "denoise", "decode"]
    done = seen[-1].environment
    assert done["threads"] == 1 and done["torch"] == torch.__version__ and done["device"] == "a CPU"


def test_decoded_says_what_scheduler_it_was_drawn_with(tiny_folders: dict[str, Path]) -> None:
    (drawn,) = events_of(plan_for(tiny_folders["sd15"], sampler="DPM++ 2M Karras"), Decoded)
    assert drawn.scheduler["_class_name"] == "DPMSolverMultistepScheduler"
    assert drawn.scheduler["use_karras_sigmas"] is True and drawn.scheduler["beta_schedule"] == "scaled_linear"


@pytest.mark.parametrize("family", all_but("sd2"))
def test_an_image_does_not_depend_on_others_in_the_run(tiny_folders: dict[str, Path], family: str) -> None:
    folder = tiny_folders[family]
    prompts = ("a cat", "a dog")
    alone = [pixels(plan_for(folder, prompts=(p,), seeds=(s,), steps=2))[0] for p in prompts for s in (1, 2)]
    plan = plan_for(folder, prompts=prompts, seeds=(1, 2), steps=2)
    assert pixels(plan) == alone
    backwards = [(number, plan.batch(number)) for number in reversed(range(4))]
    drawn = {event.index: event.pixels for event in local.run(plan, backwards) if isinstance(event, Decoded)}
    assert [drawn[index] for index in range(4)] == alone
    lazily = {event.index: event.pixels for event in local.run(plan, iter(backwards)) if isinstance(event, Decoded)}
    assert lazily == drawn


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guidance", ["batched", "in-turn"])
def test_batch_invariant_draws_a_batch_as_if_one_by_one(
    tiny_folders: dict[str, Path], family: str, guidance: str
) -> None:
    given: dict[str, Any] = {"prompts": ("a cat", "a dog " * 90), "seeds": (1, 2), "sampler": "Euler a"}
    alone = plan_for(tiny_folders[family], **given, pins={"guidance": guidance})
    together = plan_for(
        tiny_folders[family], **given, pins={"guidance": guidance}, batch_size=4, batch_invariant=True
    )  # fmt: skip
    assert [len(batch) for batch in together.batches] == [4]
    assert pixels(together) == pixels(alone)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_prompts_of_different_lengths_share_a_batch_and_are_not_filled_up(
    tiny_folders: dict[str, Path], guidance: float
) -> None:
    given: dict[str, Any] = {"prompts": ("a cat", "tree " * 160), "seeds": (1, 2), "guidance": guidance}
    plan = plan_for(tiny_folders["sdxl"], **given, batch_size=4)
    encoded = events_of(plan, Encoded)
    assert [event.tokens for event in encoded] == [(2, 2, 160, 160)]
    for drawn, alone in zip(pixels(plan), pixels(plan_for(tiny_folders["sdxl"], **given)), strict=True):
        assert max(abs(a - b) for a, b in zip(drawn, alone, strict=True)) <= 2


def test_guidance_in_turn_and_blocked_and_sliced_attention_stay_within_rounding(tiny_folders: dict[str, Path]) -> None:
    asked: dict[str, Any] = {"width": 128, "height": 128, "prompts": ("a cat",)}
    exact = plan_for(tiny_folders["sd15"], **asked)
    (expected,) = pixels(exact)

    def differences(plan: Plan) -> list[int]:
        (drawn,) = pixels(plan)
        return [abs(a - b) for a, b in zip(drawn, expected, strict=True)]

    for choice in ({"guidance": "in-turn"}, {"attention": "sliced"}):
        assert max(differences(with_setup(exact, **choice))) <= 1, choice
    half = plan_for(tiny_folders["sd15"], **asked, pins={"dtype": "bf16"})
    blocked, fused = (sum(differences(with_setup(half, attention=choice))) for choice in ("blocked", "fused"))
    assert 0 < blocked <= 1.2 * fused


@pytest.fixture(scope="module", params=all_but("sd2"))
def resident(request: pytest.FixtureRequest, tiny_folders: dict[str, Path]) -> tuple[Plan, list[bytes]]:
    """A plan of each family, and its pixels."""
    asked: dict[str, Any] = {"prompts": ("a cat", "a (dog:1.2)"), "seeds": (1, 2), "steps": 2, "clip_skip": 2}
    plan = plan_for(tiny_folders[request.param], **asked)
    assert plan.setup.placement == "resident"
    return plan, pixels(plan)


@pytest.mark.parametrize("placement", ["drop-encoders", "model-offload", "group-offload", "disk"])
def test_every_placement_draws_the_same_pixels(resident: tuple[Plan, list[bytes]], placement: str) -> None:
    plan, plain = resident
    assert pixels(with_setup(plan, placement=placement)) == plain


def held_while(plan: Plan) -> list[tuple[str, tuple[str, ...]]]:
    """Stage and components in memory at every event of a run."""
    session = Session(plan.model, plan.setup)
    drawing = run.Run(session, plan, {})
    batches = [(number, plan.batch(number)) for number in range(len(plan.batches))]
    rows = [(getattr(event, "stage", ""), session.components.loaded) for event in drawing.draw(batches)]
    session.close()
    return [row for row in dict.fromkeys(rows) if row[0]]


@pytest.mark.parametrize("placement", ["resident", "drop-encoders", "model-offload", "group-offload", "disk"])
@pytest.mark.parametrize("family", all_but("sd2"))
def test_a_stage_never_holds_what_the_plan_did_not_count(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: str, placement: str
) -> None:
    """In the second window too, whose prompts are encoded when the first one's images have been drawn."""
    monkeypatch.setattr(batches, "WINDOW", 2)
    asked = plan_for(tiny_folders[family], prompts=("a", "b", "c"), seeds=(1,), steps=1)
    plan = with_setup(asked, placement=placement)
    every = stages(plan.model, plan.jobs[:1])
    seen = held_while(plan)
    assert {name for name, _ in seen} == {stage.name for stage in every}
    for name, there in seen:
        stage = next(stage for stage in every if stage.name == name)
        counted = {place_of.loaded(placement, every, stage, part) for part in stage.parts}
        assert there in {tuple(sorted(each, key=there.index)) for each in counted if set(each) == set(there)}, name


def test_encoders_leave_before_the_unet_is_read_and_the_unet_before_they_come_back(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW", 2)
    plan = with_setup(plan_for(tiny_folders["sdxl"], prompts=("a", "b", "c"), seeds=(1,)), placement="drop-encoders")
    loaded = [event.component for event in events_of(plan, Loaded)]
    encoders = ["text_encoder", "text_encoder_2"]
    assert loaded == [*encoders, "unet", "vae", *encoders, "unet", "vae"]
    lazily = local.run(plan, iter([(number, plan.batch(number)) for number in (0, 1)]))
    assert [event.component for event in lazily if isinstance(event, Loaded)] == loaded


@pytest.mark.parametrize("tile", ["tile-512", "tile-256"])
def test_tiles_are_of_a_useful_size(tiny_folders: dict[str, Path], pipelines: dict[str, Any], tile: str) -> None:
    plan = plan_for(tiny_folders["sd15"], steps=1, width=640, height=320)
    components = place.Components(plan.model, replace(plan.setup, vae=tile))
    list(components.ready(["vae"]))
    latents = torch.randn(1, 4, 40, 80, generator=torch.Generator("cpu").manual_seed(0))
    sizes: list[tuple[int, int]] = []
    with components.use("vae") as vae:
        vae.decoder.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[-2:])))
        tiled = decode(vae, latents)
        vae.use_tiling = False
        whole = decode(vae, latents)
    edge = int(tile.removeprefix("tile-")) // 8
    assert max(max(size) for size in sizes[:-1]) == min(edge, 80) and sizes[-1] == (40, 80) and len(sizes) > 2
    assert (tiled.width, tiled.height) == (whole.width, whole.height) == (640, 320)
    assert tiled.pixels != whole.pixels


def test_pixels_that_are_not_finite_are_decoded_again_in_fp32_or_not_at_all(
    tiny_folders: dict[str, Path], pipelines: dict[str, Any]
) -> None:
    import copy

    vae = copy.deepcopy(pipelines["sd15"].vae)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(0))
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(3e4)  # out of fp16's range, but not of fp32's
    expected = decode(vae, latents)
    vae.half()
    drawn = decode(vae, latents)
    assert drawn.retried == "not finite in float16" and expected.retried is None
    assert vae.dtype == torch.float16
    assert max(abs(a - b) for a, b in zip(drawn.pixels, expected.pixels, strict=True)) <= 2


@pytest.mark.parametrize(
    ("dtype", "hint"), [("bf16", "the same command with --dtype fp32"), ("fp32", "sdcli models check broken")]
)
def test_an_image_that_stays_broken_has_failed_and_the_others_are_drawn(
    tmp_path: Path, tiny_folders: dict[str, Path], dtype: str, hint: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_folders["sd15"], tmp_path / "broken"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_out.bias"][0] = float("nan")
    save_file(weights, file)
    seen = events_of(plan_for(folder, seeds=(1, 2), model="broken", pins={"dtype": dtype}))
    failed = [event for event in seen if isinstance(event, Failed)]
    assert [(event.index, event.error["type"]) for event in failed] == [(0, "images_failed"), (1, "images_failed")]
    assert failed[0].error["hint"] == hint and isinstance(seen[-1], Done)


# Interrupted


def living() -> int:
    gc.collect()
    return sum(isinstance(thing, UNet2DConditionModel) for thing in gc.get_objects())


@pytest.mark.parametrize("kind", [Loaded, Encoded, Step, Decoded])
def test_an_interrupt_gives_the_memory_back_and_keeps_what_was_drawn(tiny_folders: dict[str, Path], kind: type) -> None:
    before = living()
    run = local.run(plan_for(tiny_folders["sd15"], seeds=(1, 2)))
    kept = []
    for event in run:
        kept.append(event)
        if isinstance(event, kind):
            break
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    assert living() == before
    assert kind is not Decoded or len(kept[-1].pixels) == 64 * 64 * 3


def test_closing_the_run_gives_the_memory_back(tiny_folders: dict[str, Path]) -> None:
    before = living()
    run = local.run(plan_for(tiny_folders["sd15"]))
    while not isinstance(next(run), Step):
        pass
    assert living() == before + 1
    run.close()  # type: ignore[attr-defined]
    assert living() == before


# Out of memory


def exhausted_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """The real function, but its Nth call runs out of memory."""
    real, calls = getattr(owner, name), [0]

    def failing(*args: Any, **given: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*args, **given)

    monkeypatch.setattr(owner, name, failing)


def with_fallbacks(folder: Path, **asked: Any) -> Plan:
    """Resident, with fallbacks as on a GPU."""
    from sdcli.plan.plan import Fallback

    plan = plan_for(folder, **asked)
    setups = [replace(plan.setup, placement=name) for name in ("model-offload", "group-offload")]
    fallbacks = [Fallback(setup=setup, device_peak=1, changes_pixels=False) for setup in setups]
    return replace(plan, fallbacks=tuple(fallbacks), hardware=replace(plan.hardware, device="cuda:0", capability="8.6"))


@pytest.mark.parametrize(
    ("owner", "name", "call", "phase", "step"),
    [
        (place.load, "load", 3, "load", None),
        (prompts.Prompts, "encode", 1, "encode", None),
        (UNet2DConditionModel, "forward", 1, "denoise", 0),
        (UNet2DConditionModel, "forward", 3, "denoise", 2),
        (run.decode, "decode", 1, "decode", None),
    ],
)
def test_the_image_continues_where_memory_ran_out_with_the_same_pixels(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    owner: Any, name: str, call: int, phase: str, step: int | None,
) -> None:  # fmt: skip
    plan = with_fallbacks(tiny_folders["sd15"], sampler="DPM++ 2M SDE")
    (expected,) = pixels(plan)
    exhausted_at(monkeypatch, owner, name, call)
    seen = events_of(plan)
    (lower,) = [event for event in seen if isinstance(event, Degraded)]
    assert (lower.phase, lower.step) == (phase, step)
    assert "Tried to allocate" in lower.because
    if phase != "decode":
        assert (lower.before, lower.after) == ({"placement": "resident"}, {"placement": "model-offload"})
        assert [event.pixels for event in seen if isinstance(event, Decoded)] == [expected]
    else:
        assert (lower.before, lower.after, lower.changes_pixels) == ({"vae": "whole"}, {"vae": "cpu"}, True)
        assert len([event for event in seen if isinstance(event, Decoded)]) == 1
    assert [event.step for event in seen if isinstance(event, Step)] == [1, 2, 3, 4]


def test_without_fallbacks_the_run_ends_with_numbers(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = with_fallbacks(tiny_folders["sd15"])
    exhausted_at(monkeypatch, UNet2DConditionModel, "forward", 2)
    with pytest.raises(OutOfMemory, match="in step 2") as caught:
        events_of(replace(plan, request=replace(plan.request, fallback=False)))
    assert caught.value.details["step"] == 1 and caught.value.hint


def test_no_memory_of_the_failed_call_is_held_when_the_retry_begins(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = with_fallbacks(tiny_folders["sd15"])
    seen: list[Any] = []
    real = UNet2DConditionModel.forward

    def failing(unet: Any, *rest: Any, **named: Any) -> Any:
        if not seen:
            big = torch.empty(1000)
            seen.extend([weakref.ref(big), weakref.ref(unet)])
            raise torch.OutOfMemoryError("out of memory")
        assert seen[0]() is None and seen[1]() is None
        return real(unet, *rest, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", failing)
    assert len(pixels(plan)) == 1


# Long runs


def test_150_images_leave_no_more_behind_than_30(tiny_folders: dict[str, Path]) -> None:
    from sdcli.machine import memory

    if memory.resident() is None:
        pytest.skip("this system does not say what a process holds")
    plan = plan_for(tiny_folders["sd15"], steps=1, seeds=tuple(range(150)), guidance=1.0)
    held: list[int] = []
    for event in local.run(plan):
        if isinstance(event, Decoded):
            held.append(memory.resident() or 0)
    assert len(held) == 150
    # What every image leaves is in every twenty of them. Once in a while the allocator takes megabytes from the system
    # in one step; when depends on the tests before.
    lowest = [min(held[first : first + 20]) for first in range(30, 150, 20)]
    steps = [after - before for before, after in itertools.pairwise(lowest)]
    assert statistics.median(steps) / 20 <= 4096, steps


def test_a_run_writes_nothing_to_stderr_or_stdout(tiny_folders: dict[str, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[3:]\n"
        "from draw_samples import plan_for; from sdcli.draw import local\n"
        "for folder in sys.argv[1:3]:\n"
        "    plan = plan_for(Path(folder), prompts=('long ' * 200,), pins={'dtype': 'bf16'})\n"
        "    assert any(type(event).__name__ == 'Decoded' for event in local.run(plan))\n"
    )
    here = Path(__file__).resolve()
    given = [*map(str, tiny_folders.values()), str(here.parent), str(here.parents[2])]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
