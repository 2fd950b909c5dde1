"""The loop, the encoders and the decoder against diffusers' pipelines, on the same components: no difference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from draw_samples import FAMILIES
from torch import Tensor

from sdcli.draw import decode, denoise, encode, schedulers
from sdcli.draw.denoise import Guidance
from sdcli.draw.encode import Encoder, Text
from sdcli.models.families import of_unet
from sdcli.request import tokenizer
from sdcli.request.samplers import SAMPLERS, find, pairs

PROMPT, NEGATIVE, STEPS = "a cat on a red sofa", "blurry", 4


def theirs(pipeline: Any, sampler: str, **given: Any) -> Any:
    """What diffusers draws: its scheduler from the model's config, one generator per image."""
    import diffusers

    known = find(sampler)
    before = pipeline.scheduler
    prediction = given.pop("prediction", "epsilon")
    images = given.get("num_images_per_prompt", 1)
    try:
        kind = getattr(diffusers, known.scheduler)
        pipeline.scheduler = kind.from_config(before.config, **known.options, prediction_type=prediction)
        return pipeline(
            **({"prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "latent"} | given),
            generator=[torch.Generator("cpu").manual_seed(7 + number) for number in range(images)],
        ).images
    finally:
        pipeline.scheduler = before


def encoded(pipeline: Any, text: str, clip_skip: int = 1, emphasis: str = "a1111") -> Text:
    family, chunks = of_unet(pipeline.unet.config), tokenizer.chunks(text, emphasis)
    assert family is not None
    return encode.joined([
        encode.encode(
            Encoder(
                getattr(pipeline, one.part), torch.device("cpu"), tokenizer.vocabulary(), one.pad, one.penultimate
            ),
            chunks, clip_skip=clip_skip, emphasis=emphasis,
        )
        for one in family.encoders
    ])  # fmt: skip


def ours(
    pipeline: Any, sampler: str, *, guidance: float, images: int = 1, prediction: str = "epsilon",
    size: tuple[int, int] = (64, 64), prompt: Text | None = None, negative: Text | None = None, **grouping: bool,
) -> Tensor:  # fmt: skip
    """The latents of our loop, on the pipeline's components."""
    scheduler = schedulers.make(sampler, pipeline.scheduler.config | {"prediction_type": prediction})
    sides = 2 if guidance > 1 else 1
    conditioning = encode.conditioning(
        [prompt or encoded(pipeline, PROMPT)] * images, [negative or encoded(pipeline, NEGATIVE)] * images,
        guidance=Guidance(scale=guidance, sides=sides), size=size, unet=pipeline.unet.config,
        groups=denoise.groups(images, sides, **grouping),
    )  # fmt: skip
    generators = [torch.Generator("cpu").manual_seed(7 + number) for number in range(images)]
    scheduler.set_timesteps(STEPS)
    shape = (4, size[1] // 8, size[0] // 8)
    at = denoise.begin(scheduler, generators, shape=shape, dtype=pipeline.unet.dtype, device="cpu")
    *_, last = denoise.denoise(pipeline.unet, scheduler, conditioning, at, generators)
    return last.latents


@pytest.fixture(scope="module")
def texts(pipelines: dict[str, Any]) -> dict[str, tuple[Text, Text]]:
    """Prompt and negative prompt of all families, encoded once for the many cases; that diffusers encodes them alike
    is tests/draw/test_draw_encode.py's business."""
    return {family: (encoded(pipeline, PROMPT), encoded(pipeline, NEGATIVE)) for family, pipeline in pipelines.items()}


# Every sampler with every combination of the others. Of those with one sampler each family draws half, chosen so that
# it still has every three choices together.
# Every day each sampler has every two choices together, with one family.
COMBINATIONS = [
    pytest.param(
        ("sd15", "sdxl")[(prediction + guidance + images + number) % 2], sampler.name,
        ("epsilon", "v_prediction")[prediction], (1.0, 7.5)[guidance], (1, 3)[images],
        marks=[pytest.mark.proof] * ((prediction + guidance + images + number // 2) % 2),
    )
    for number, sampler in enumerate(SAMPLERS)
    for prediction, guidance, images in itertools.product((0, 1), repeat=3)
]  # fmt: skip
# A schedule is an option of a scheduler that is compared above, and each one is set here with one of them.
COMBINATIONS += [
    pytest.param(
        ("sd15", "sdxl")[number % 2], sampler.name, ("epsilon", "v_prediction")[number // 2 % 2], 7.5, 1,
        marks=[pytest.mark.proof] * (not sampler.name.startswith(("Euler ", "DPM++ 3M SDE"))),
    )
    for number, sampler in enumerate(pairs())
]  # fmt: skip


@pytest.mark.parametrize(("family", "sampler", "prediction", "guidance", "images"), COMBINATIONS)
def test_latents_equal_those_of_diffusers_bit_for_bit(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]],
    family: str, sampler: str, prediction: str, guidance: float, images: int,
) -> None:  # fmt: skip
    pipeline, (prompt, negative) = pipelines[family], texts[family]
    given = {"prompt": None, "prompt_embeds": prompt.embeds, "negative_prompt_embeds": negative.embeds}
    if family == "sdxl":
        given |= {"pooled_prompt_embeds": prompt.pooled, "negative_pooled_prompt_embeds": negative.pooled}
    expected = theirs(
        pipeline, sampler, prediction=prediction, guidance_scale=guidance, num_images_per_prompt=images, **given
    )
    own = ours(
        pipeline, sampler, guidance=guidance, images=images, prediction=prediction, prompt=prompt, negative=negative
    )
    assert torch.isfinite(expected).all()
    assert (own - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("sampler", [sampler.name for sampler in SAMPLERS])
def test_sd2_predicting_v_equals_diffusers_too(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], sampler: str
) -> None:
    """768-v with its scheduler's settings, prompts encoded by diffusers."""
    pipeline, (prompt, negative) = pipelines["sd2"], texts["sd2"]
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    given = {"guidance_scale": 7.5, "negative_prompt": NEGATIVE, "prediction": "v_prediction"}
    own = ours(pipeline, sampler, guidance=7.5, prediction="v_prediction", prompt=prompt, negative=negative)
    assert torch.equal(own, theirs(pipeline, sampler, **given))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_equals_the_one_diffusers_draws(pipelines: dict[str, Any], family: str) -> None:
    pipeline = pipelines[family]
    given = {"guidance_scale": 5.0, "negative_prompt": NEGATIVE, "output_type": "pil"}
    image = theirs(pipeline, "DPM++ 2M Karras", **given)[0]
    own = decode.decode(pipeline.vae, ours(pipeline, "DPM++ 2M Karras", guidance=5.0))
    assert (own.width, own.height) == image.size
    assert own.pixels == image.tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_decodes_image_by_image_as_diffusers_decodes_each(pipelines: dict[str, Any], family: str) -> None:
    """Several images in one decode differ in the last bits, in diffusers too, so each is compared alone."""
    pipeline = pipelines[family]
    for latents in ours(pipeline, "Euler", guidance=5.0, images=3).split(1):
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0].detach()
        image = pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
        assert decode.decode(pipeline.vae, latents).pixels == image.tobytes()


SIZES = [(64, 64), (96, 64), (96, 72)]


@pytest.mark.parametrize(
    ("family", "sampler", "size"),  # every two of them together
    [
        (family, sampler, SIZES[(row + column) % 3])
        for row, family in enumerate(FAMILIES)
        for column, sampler in enumerate(["Euler a", "DPM++ 2M Karras", "UniPC"])
    ],
)
def test_bf16_latents_and_pixels_are_equal_too(
    bf16_pipelines: dict[str, Any], family: str, sampler: str, size: tuple[int, int]
) -> None:
    """Where the latents' area is a multiple of 4: elsewhere torch's bf16 noise differs from its fp32 noise."""
    pipeline = bf16_pipelines[family]
    given = {"guidance_scale": 5.0, "negative_prompt": NEGATIVE, "width": size[0], "height": size[1]}
    own = ours(pipeline, sampler, guidance=5.0, size=size)
    assert own.dtype == torch.bfloat16
    assert torch.equal(own, theirs(pipeline, sampler, **given))
    image = theirs(pipeline, sampler, output_type="pil", **given)[0]
    assert decode.decode(pipeline.vae, own).pixels == image.tobytes()
