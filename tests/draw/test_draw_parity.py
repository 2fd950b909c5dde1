"""The loop, the encoders and the decoder against diffusers' own pipelines, on the same components: no difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdcli.draw import denoise, encode
from sdcli.draw.encode import Encoder

SAMPLERS = {
    "DDIM": ("DDIMScheduler", {}),
    "DDPM": ("DDPMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2M SDE Karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "DPM++ singlestep": ("DPMSolverSinglestepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
    "PNDM": ("PNDMScheduler", {}),
    "SA-Solver": ("SASolverScheduler", {}),
}
PROMPT, NEGATIVE, STEPS = "a cat on a red sofa", "blurry", 4


def scheduler_of(pipeline: Any, sampler: str, prediction: str) -> Any:
    import diffusers

    name, options = SAMPLERS[sampler]
    return getattr(diffusers, name).from_config(pipeline.scheduler.config, **options, prediction_type=prediction)


def encoders_of(pipeline: Any) -> list[Encoder]:
    if not hasattr(pipeline, "text_encoder_2"):
        return [Encoder(pipeline.text_encoder)]
    return [Encoder(pipeline.text_encoder, penultimate=True), Encoder(pipeline.text_encoder_2, pad=0, penultimate=True)]


def encoded(pipeline: Any, prompt: str) -> encode.Text:
    ids = pipeline.tokenizer(prompt, add_special_tokens=False).input_ids
    encoders = encoders_of(pipeline)
    chunk = [(token, 1.0) for token in ids]
    return encode.encode(encoders, [[chunk]] * len(encoders), clip_skip=1, emphasis="a1111")


def drawn(pipeline: Any, scheduler: Any, guidance: float, images: int, seed: int = 7) -> torch.Tensor:
    prompt, negative = encoded(pipeline, PROMPT), encoded(pipeline, NEGATIVE)
    conditioning = encode.conditioning(
        [prompt] * images,
        [negative] * images,
        guidance=guidance,
        size=(64, 64),
        sized=hasattr(pipeline, "text_encoder_2"),
    )
    generators = [torch.Generator("cpu").manual_seed(seed + n) for n in range(images)]
    start = denoise.begin(scheduler, generators, steps=STEPS, shape=(4, 8, 8), dtype=pipeline.unet.dtype, device="cpu")
    for halfway in denoise.denoise(pipeline.unet, scheduler, conditioning, start, generators):
        pass
    return halfway.latents


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_latents_equal_those_of_diffusers_bit_for_bit(
    pipelines: dict[str, Any], family: str, sampler: str, prediction: str, guidance: float, images: int
) -> None:
    pipeline = pipelines[family]
    own = drawn(pipeline, scheduler_of(pipeline, sampler, prediction), guidance, images)
    before = pipeline.scheduler
    try:
        pipeline.scheduler = scheduler_of(pipeline, sampler, prediction)
        theirs = pipeline(
            PROMPT, negative_prompt=NEGATIVE, guidance_scale=guidance, num_inference_steps=STEPS, num_images_per_prompt=images,
            generator=[torch.Generator("cpu").manual_seed(7 + n) for n in range(images)], output_type="latent",
        ).images  # fmt: skip
    finally:
        pipeline.scheduler = before
    assert torch.isfinite(theirs).all()
    assert (own - theirs).abs().max().item() == 0.0
