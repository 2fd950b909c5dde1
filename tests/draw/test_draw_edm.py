"""Models trained with EDM's noise, as Playground v2.5: diffusers' latents and pixels, on the same tiny components."""

from __future__ import annotations

import gc
import json
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from draw_samples import plan_for

from scripts import make_checkpoint
from scripts.gpu import inside
from scripts.proofs import modes
from scripts.proofs.modes import Compared
from scripts.refined import as_loaded
from sdcli.draw import local
from sdcli.events import Decoded, Denoised, Step
from sdcli.models import edm
from sdcli.request.samplers import EDM, find
from tests.pretend_gpu import device, pretend

NAMES = [sampler.name for sampler in EDM]
LATENTS = {
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155], "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
    "scaling_factor": 0.5,
}  # fmt: skip
PINS = {"dtype": "fp32", "attention": "fused", "execution": "eager"}


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL with the scheduler and the latents of Playground v2.5."""
    path = make_checkpoint.write_folder(tmp_path_factory.mktemp("edm") / "playground", "sdxl", tiny=True, seed=5)
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(edm.SCHEDULER)))
    changed(path / "model_index.json", scheduler=["diffusers", edm.SCHEDULER["_class_name"]])
    changed(path / "vae" / "config.json", **LATENTS)
    return path


@pytest.fixture(scope="module")
def pipeline(playground: Path) -> Any:
    return as_loaded(inside.pipeline_of(playground, torch.float32))


def drawn(playground: Path, **asked: Any) -> tuple[torch.Tensor, list[bytes]]:
    """Latents and pixels."""
    events = list(local.run(plan_for(playground, pins=PINS, steps=6, guidance=3.0, **asked)))
    (latents,) = (event.latents for event in events if isinstance(event, Denoised))
    return latents, [event.pixels for event in events if isinstance(event, Decoded)]


@pytest.mark.parametrize("sampler", NAMES)
@pytest.mark.parametrize("negative", ["", "blurry"])
def test_latents_and_pixels_equal_those_of_diffusers_bit_for_bit(
    playground: Path, pipeline: Any, sampler: str, negative: str
) -> None:
    known, before = find(sampler), pipeline.scheduler
    given = {
        "prompt": "a cat", "negative_prompt": negative or None, "num_inference_steps": 6, "guidance_scale": 3.0,
        "width": 64, "height": 64,
    }  # fmt: skip
    try:
        kind = getattr(diffusers, known.scheduler)
        pipeline.scheduler = kind.from_config(before.config, **known.options)
        both = [torch.Generator("cpu").manual_seed(seed) for seed in (7, 8)]
        expected = pipeline(**given, generator=both, num_images_per_prompt=2, output_type="latent").images
        (image,) = pipeline(**given, generator=torch.Generator("cpu").manual_seed(7)).images
    finally:
        pipeline.scheduler = before
    own, _ = drawn(playground, sampler=sampler, negative_prompt=negative, seeds=(7, 8), batch_size=2)
    assert torch.isfinite(expected).all() and (own - expected).abs().max().item() == 0.0
    _, (pixels,) = drawn(playground, sampler=sampler, negative_prompt=negative)
    assert pixels == image.tobytes()


@pytest.mark.parametrize("sampler", NAMES)
@pytest.mark.parametrize("strength", [0.35, 0.6, 1.0])
@pytest.mark.parametrize("mode", ["image-to-image", "second pass"])
def test_images_are_started_from_as_diffusers_does(pipeline: Any, mode: str, sampler: str, strength: float) -> None:
    assert modes.MODES[mode](Compared("sdxl", pipeline), sampler, strength)


@pytest.mark.parametrize("sampler", NAMES)
def test_a_gpu_gives_the_pixels_of_the_cpu_and_no_step_waits(playground: Path, sampler: str) -> None:
    waits, pixels = [], []
    with pretend(device("8GiB", capability="8.6")) as gpu:
        plan = inside.plan_for(playground, sampler=sampler, steps=6, guidance=3.0, pins=PINS)
        for event in local.run(plan):
            if isinstance(event, Step):
                waits.append(gpu.restart().waits)
            pixels += [event.pixels] if isinstance(event, Decoded) else []
        gc.collect()
        assert gpu.held() == 0
    assert len(waits) == 6 and all(seen <= Counter(event=1) for seen in waits[1:])
    assert pixels == drawn(playground, sampler=sampler)[1]
