"""Second passes from an image that a model enlarged: equal to diffusers' pipelines around the net, in every placement,
on a GPU, out of memory."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
from draw_samples import HARDWARE, request_for
from PIL import Image

from scripts import make_checkpoint
from scripts.gpu.inside import pipeline_of
from scripts.proofs import card
from sdcli.asking import upscalers
from sdcli.draw import load, local
from sdcli.draw.place import Components
from sdcli.events import Decoded, Degraded, Denoised, EncodedImage, Loaded, Tile
from sdcli.machine import survey
from sdcli.machine.hardware import Hardware
from sdcli.models import resolve, upscaler
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.request.jobs import make_jobs
from sdcli.request.samplers import find
from sdcli.sizes import GIB
from tests.pretend_gpu import device, pretend

TWICE: dict[str, Any] = {"hires": 2.0, "hires_steps": 3, "hires_strength": 0.5}


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A net of each kind, the first as wide as real ones."""
    root = tmp_path_factory.mktemp("nets")
    make_checkpoint.write_upscaler(root / "wide.safetensors", blocks=1)
    make_checkpoint.write_upscaler(root / "tiny.safetensors", tiny=True, layout="numbered")
    make_checkpoint.write_upscaler(root / "compact.safetensors", tiny=True, compact=True, scale=2)
    return {name: str(root / f"{name}.safetensors") for name in ("wide", "tiny", "compact")}


def plan_for(path: Path, net: str, hardware: Hardware = HARDWARE, **asked: Any) -> Plan:
    """As the command line makes it."""
    pins = {"dtype": "fp32"} | asked.pop("pins", {})
    request = request_for(**{**TWICE, "upscaler": net, "pins": pins, **asked})
    jobs, model, adapters = upscalers.gather(make_jobs(request), resolve.at(path), ())
    return make_plan(request, model, hardware, {}, jobs=jobs, adapters=adapters)


def on_a_gpu(path: Path, net: str, **asked: Any) -> Plan:
    plan = plan_for(path, net, survey.choose("cuda", survey.look()), **asked)
    return replace(plan, setup=replace(plan.setup, threads=1))


def pixels(plan: Plan) -> list[bytes]:
    return [event.pixels for event in local.run(plan) if isinstance(event, Decoded)]


def test_a_model_is_a_component_and_part_of_the_setup(tiny_folders: dict[str, Path], nets: dict[str, str]) -> None:
    plan = plan_for(tiny_folders["sd15"], nets["tiny"])
    (adapter,) = plan.setup.adapters
    assert (adapter.kind, adapter.name, adapter.scale, len(adapter.sha256)) == ("upscaler", "tiny", 4.0, 64)
    (job,) = plan.jobs
    assert job.second is not None
    assert (job.second.upscaler, job.second.part) == ("tiny", "upscaler")
    events = list(local.run(plan))
    assert "upscaler" in [event.component for event in events if isinstance(event, Loaded)]
    assert [(event.tile, event.of) for event in events if isinstance(event, Tile)] == [(1, 1)]
    assert [event.stage for event in events if isinstance(event, EncodedImage)] == ["upscale"]
    named = {decision.slot: decision.choice for decision in plan.decisions}
    assert named["upscaler_tile"] == "whole"
    plain = plan_for(tiny_folders["sd15"], "lanczos")
    assert "upscaler_tile" not in {decision.slot for decision in plain.decisions} and plain.setup.adapters == ()


def expected(path: Path, net: str, plan: Plan) -> bytes:
    """txt2img, decoded; the net in one piece; LANCZOS; image-to-image: diffusers' own but for the net, with components
    laid out in memory as ours."""
    (job,) = plan.jobs
    second, known = job.second, find(job.sampler)
    assert second is not None
    pipeline = pipeline_of(path, torch.float32)
    components = Components(plan.model, plan.setup)
    for name in [name for name in plan.model.components if name != "upscaler"]:
        list(components.ready((*components.loaded, name)))
        with components.use(name) as module:
            setattr(pipeline, name, module)
    scheduler = getattr(diffusers, known.scheduler).from_config(pipeline.scheduler.config, **known.options)
    pipeline.scheduler = scheduler
    given: dict[str, Any] = {
        "prompt": job.prompt, "negative_prompt": job.negative_prompt or None, "guidance_scale": job.guidance,
    }  # fmt: skip
    small = pipeline(
        **given, num_inference_steps=job.steps, width=job.width, height=job.height,
        generator=torch.Generator().manual_seed(job.seed),
    ).images[0]  # fmt: skip
    module = load.load(
        "upscaler", upscaler.read(Path(net)).component, dtype=torch.float32, device="cpu", channels_last=True
    ).module
    shares = torch.from_numpy(numpy.array(small, dtype=numpy.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        large = module(shares)[0].clamp(0, 1).permute(1, 2, 0)
    enlarged = Image.fromarray((large * 255).round().to(torch.uint8).numpy())
    enlarged = enlarged.resize((second.width, second.height), Image.Resampling.LANCZOS)
    xl = plan.model.family == "sdxl"
    kind = diffusers.StableDiffusionXLImg2ImgPipeline if xl else diffusers.StableDiffusionImg2ImgPipeline
    again = kind.from_pipe(pipeline)
    again.scheduler = getattr(diffusers, known.scheduler).from_config(pipeline.scheduler.config, **known.options)
    again.set_progress_bar_config(disable=True)
    drawn = again(
        **given, image=enlarged, strength=second.strength, num_inference_steps=second.steps_in_all,
        generator=torch.Generator().manual_seed(job.seed),
    ).images[0]  # fmt: skip
    result: bytes = drawn.tobytes()
    return result


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ 2M Karras", "Heun"])
@pytest.mark.parametrize(("family", "net"), [("sd15", "tiny"), ("sd15", "compact"), ("sdxl", "tiny")])
def test_it_draws_what_diffusers_draws_around_the_net(
    tiny_folders: dict[str, Path], nets: dict[str, str], family: str, net: str, sampler: str
) -> None:
    """To the bit."""
    pins = {"execution": "eager", "attention": "fused"}
    plan = plan_for(tiny_folders[family], nets[net], sampler=sampler, pins=pins)
    assert plan.setup.upscaler_tile == 0
    assert pixels(plan)[0] == expected(tiny_folders[family], nets[net], plan)


def test_an_image_of_a_batch_is_the_one_drawn_alone(tiny_folders: dict[str, Path], nets: dict[str, str]) -> None:
    given = {"sampler": "Euler a"}
    together = plan_for(tiny_folders["sd15"], nets["tiny"], seeds=(7, 8), batch_size=2, batch_invariant=True, **given)
    alone = [pixels(plan_for(tiny_folders["sd15"], nets["tiny"], seeds=(seed,), **given))[0] for seed in (7, 8)]
    events = list(local.run(together))
    assert [event.pixels for event in events if isinstance(event, Decoded)] == alone
    assert [(event.tile, event.of) for event in events if isinstance(event, Tile)] == [(1, 2), (2, 2)]
    assert alone[0] != pixels(plan_for(tiny_folders["sd15"], "lanczos", seeds=(7,), **given))[0]


@pytest.mark.parametrize(
    "choices",
    [{"placement": "disk"}, {"placement": "drop-encoders"}, {"execution": "packed"}, {"vae": "tile-256"},
     {"upscaler_tile": 512}],
)  # fmt: skip
def test_every_way_of_drawing_goes_through_it(
    tiny_folders: dict[str, Path], nets: dict[str, str], choices: dict[str, Any]
) -> None:
    plan = plan_for(tiny_folders["sdxl"], nets["tiny"])
    plain, other = pixels(plan)[0], pixels(replace(plan, setup=replace(plan.setup, **choices)))[0]
    if "execution" not in choices:  # neither places nor tiles move a pixel at this size
        assert other == plain
    difference = numpy.frombuffer(other, numpy.uint8).astype(int) - numpy.frombuffer(plain, numpy.uint8)
    assert numpy.abs(difference).max() <= 3


# --- what fits


def test_the_tile_is_the_largest_that_fits(tiny_folders: dict[str, Path], nets: dict[str, str]) -> None:
    """Beside tiny models the net decides the peak."""
    tiles = {}
    for gib in (64, 4, 1.6, 1.1, 0.9, 0.7):
        hardware = replace(HARDWARE, ram_free=int(gib * GIB), free=int(gib * GIB))
        plan = plan_for(tiny_folders["sd15"], nets["wide"], hardware, width=512, height=512, pins={"vae": "tile-256"})
        tiles[gib] = plan.setup.upscaler_tile
        assert plan.footprint.host_peak <= plan.budget.host or not plan.fits
    chosen = list(tiles.values())
    assert chosen[0] == 0 and len(set(chosen)) >= 3
    assert chosen == sorted(chosen, key=lambda tile: -(tile or 4096))
    row = next(decision for decision in plan.decisions if decision.slot == "upscaler_tile")
    assert row.choice == str(tiles[0.7]) and "more than the budget" in row.because


@pytest.mark.parametrize("placement", ["resident", "drop-encoders", "model-offload", "group-offload", "disk"])
def test_a_gpu_gives_the_pixels_of_the_cpu_and_keeps_nothing(
    tiny_folders: dict[str, Path], nets: dict[str, str], placement: str
) -> None:
    with pretend(device("8GiB", capability="8.6")) as gpu:
        pins = {"placement": placement, "attention": "fused", "execution": "eager"}
        drawn = pixels(on_a_gpu(tiny_folders["sd15"], nets["tiny"], pins=pins))
        gc.collect()
        assert gpu.held() == 0
    pins = {"execution": "eager", "attention": "fused"}
    assert drawn == pixels(plan_for(tiny_folders["sd15"], nets["tiny"], pins=pins))


def test_memory_that_runs_out_while_enlarging_halves_the_tile(
    tiny_folders: dict[str, Path], nets: dict[str, str]
) -> None:
    given: dict[str, Any] = {"width": 320, "height": 64, "pins": {"vae": "tile-256"}}
    with pretend(device("8GiB")) as gpu:
        plan = on_a_gpu(tiny_folders["sd15"], nets["wide"], **given)
        at = 0
        for event in local.run(plan):
            if isinstance(event, Denoised) and event.stage == "denoise":
                before = gpu.allocator().requests
            if isinstance(event, Tile):
                at = (before + 3 * gpu.allocator().requests) // 4  # within the net's work
    assert plan.setup.upscaler_tile == 0
    with pretend(device("8GiB")) as gpu:
        gpu.fail_at(at)
        events = [event for event in local.run(plan) if isinstance(event, (Decoded, Degraded, Tile))]
        gc.collect()
        assert gpu.held() == 0
    (drop,) = [event for event in events if isinstance(event, Degraded)]
    assert (drop.phase, drop.before, drop.after) == ("upscale", {"upscaler_tile": "whole"}, {"upscaler_tile": "256"})
    assert drop.changes_pixels
    (drawn,) = [event for event in events if isinstance(event, Decoded)]
    assert drawn.setup is not None and drawn.setup.upscaler_tile == 256
    assert [event.of for event in events if isinstance(event, Tile)] == [2, 2]


# --- full size, counted


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with card.folder_for_models() as folder:
        card.write_models(Path(folder))
        yield Path(folder)


@pytest.mark.parametrize(
    ("family", "side", "placement", "vae"),
    [
        ("sd15", 512, "resident", "whole"),
        pytest.param("sd15", 512, "model-offload", "tile-512", marks=pytest.mark.proof),
        pytest.param("sd15", 768, "disk", "tile-512", marks=pytest.mark.proof),
    ],
)
def test_the_stage_takes_what_the_plan_says(full_size: Path, family: str, side: int, placement: str, vae: str) -> None:
    counted = card.count(full_size, card.Case(family, side, placement, "same", vae, 1, "twice by a model"))
    assert "upscale" in {stage.name for stage in counted.stages}
    assert [stage for stage in counted.stages if abs(stage.error) > card.GOAL] == []
    assert counted.least <= counted.asked and counted.left == 0
