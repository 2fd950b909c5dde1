"""Image-to-image against diffusers' pipelines, on the same components: no difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
from draw_samples import FAMILIES, diffusers_pipelines
from PIL import Image
from test_draw_parity import NEGATIVE, PROMPT, encoded
from torch import Tensor

from scripts import make_checkpoint
from sdcli.draw import decode, denoise, encode, schedulers
from sdcli.draw.encode import Text
from sdcli.draw.images import encoded as encoded_of
from sdcli.draw.images import put_back
from sdcli.draw.start import Begun, begun, enlarged
from sdcli.images import canvas
from sdcli.images.canvas import Canvas
from sdcli.images.fit import fitted
from sdcli.images.read import InputImage, look
from sdcli.request.request import Repaint, SecondPass, Start, steps_taken
from sdcli.request.samplers import SAMPLERS, find

STEPS, GUIDANCE = 10, 5.0
PIPELINES = {
    "sd15": diffusers.StableDiffusionImg2ImgPipeline,
    "sd2": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
}
# diffusers starts PNDM in the middle of its doubled step: see test_pndm_…
EXACT = [sampler.name for sampler in SAMPLERS if sampler.name != "PNDM"]


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """Smooth and noisy parts."""
    rows = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    rows[: height // 2] = numpy.linspace(0, 255, width, dtype=numpy.uint8)[None, :, None]
    return Image.fromarray(rows)


def given_texts(texts: dict[str, tuple[Text, Text]], family: str) -> dict[str, Any]:
    prompt, negative = texts[family]
    given: dict[str, Any] = {"prompt_embeds": prompt.embeds, "negative_prompt_embeds": negative.embeds}
    if family == "sdxl":
        given |= {"pooled_prompt_embeds": prompt.pooled, "negative_pooled_prompt_embeds": negative.pooled}
    return given


@pytest.fixture(scope="module")
def texts(pipelines: dict[str, Any]) -> dict[str, tuple[Text, Text]]:
    return {family: (encoded(pipeline, PROMPT), encoded(pipeline, NEGATIVE)) for family, pipeline in pipelines.items()}


def theirs(pipeline: Any, kind: Any, sampler: str, images: int = 1, **given: Any) -> Tensor:
    known = find(sampler)
    other = kind.from_pipe(pipeline)
    other.scheduler = getattr(diffusers, known.scheduler).from_config(pipeline.scheduler.config, **known.options)
    other.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(7 + number) for number in range(images)]
    latents: Tensor = other(
        num_inference_steps=STEPS, guidance_scale=GUIDANCE, num_images_per_prompt=images,
        generator=generators, **{"output_type": "latent", **given},
    ).images  # fmt: skip
    return latents


def ours(
    pipeline: Any,
    text: tuple[Text, Text],
    sampler: str,
    start: Start | None,
    images: int = 1,
    made: Canvas | None = None,
) -> Tensor:
    """What a run does between encoding texts and decoding, on the pipeline's components."""
    made = made or Canvas(picture())
    scheduler = schedulers.make(sampler, pipeline.scheduler.config)
    sees_mask = pipeline.unet.config.in_channels == 9
    generators = [torch.Generator("cpu").manual_seed(7 + number) for number in range(images)]
    encoded_start = encoded_of(pipeline.vae, start, made, 8, sees_mask, decode.in_fp32)
    schedulers.set_steps(scheduler, STEPS)
    taken = STEPS if start is None else steps_taken(STEPS, start.strength)
    timesteps = schedulers.last_timesteps(scheduler, STEPS, taken)
    shape = (4, made.image.height // 8, made.image.width // 8)
    all_begun = begun(
        [start] * images, [encoded_start] * images, generators, pipeline.vae.config, shape=shape,
        dtype=pipeline.unet.dtype, sees_mask=sees_mask,
    )  # fmt: skip
    conditioning = encode.conditioning(
        [text[0]] * images, [text[1]] * images, guidance=GUIDANCE, guided=True, size=made.image.size,
        unet=pipeline.unet.config, groups=denoise.groups(images, True),
    ).starting(all_begun, torch.device("cpu"))  # fmt: skip
    pure = start is not None and start.repaint is not None and start.strength == 1.0
    at = denoise.begin_from(scheduler, timesteps, generators, all_begun, pure=pure, device="cpu")
    *_, last = denoise.denoise(pipeline.unet, scheduler, conditioning, at, generators, timesteps)
    assert len(timesteps) == find(sampler).unet_calls(taken)
    return last.latents


def start_of(strength: float, repaint: Repaint | None = None) -> Start:
    """The image itself comes with the canvas."""
    return Start(image=InputImage(name="", width=64, height=64, sha256=""), strength=strength, repaint=repaint)


@pytest.mark.parametrize("strength", [0.35, 0.6, 1.0])
@pytest.mark.parametrize("sampler", EXACT)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_latents_equal_those_of_diffusers_bit_for_bit(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], family: str, sampler: str, strength: float
) -> None:
    image = picture()
    given = {"image": image, "strength": strength, **given_texts(texts, family)}
    expected = theirs(pipelines[family], PIPELINES[family], sampler, **given)
    assert torch.isfinite(expected).all()
    assert torch.equal(ours(pipelines[family], texts[family], sampler, start_of(strength)), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_from_one_image_equals_diffusers_too(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], family: str
) -> None:
    """Encoded once here, once for each seed there."""
    image = picture()
    given = {"image": image, "strength": 0.6, **given_texts(texts, family)}
    expected = theirs(pipelines[family], PIPELINES[family], "Euler a", images=2, **given)
    assert torch.equal(ours(pipelines[family], texts[family], "Euler a", start_of(0.6), images=2), expected)


def test_latents_with_a_mean_of_their_own_are_scaled_as_decoding_expects(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]]
) -> None:
    pipeline, image = pipelines["sdxl"], picture()
    own = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 1.2, 0.8]}
    before = dict(pipeline.vae.config)
    pipeline.vae.register_to_config(**own)
    try:
        given = {"image": image, "strength": 0.6, **given_texts(texts, "sdxl")}
        expected = theirs(pipeline, PIPELINES["sdxl"], "Euler", **given)
        assert torch.equal(ours(pipeline, texts["sdxl"], "Euler", start_of(0.6)), expected)
    finally:
        pipeline.vae.register_to_config(**{name: before.get(name) for name in own})


class TheTruth:
    """A UNet that knows the noise: from any step a right sampler leads back to the image."""

    def __init__(self, scheduler: Any, image: Tensor) -> None:
        self.alphas, self.image = scheduler.alphas_cumprod, image

    def __call__(self, sample: Tensor, timestep: Tensor, **unused: Any) -> tuple[Tensor]:
        share = self.alphas[int(timestep)]
        return ((sample - share.sqrt() * self.image) / (1 - share).sqrt(),)


@pytest.mark.parametrize("taken", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("sampler", ["PNDM", "DDIM"])
def test_pndm_leads_back_to_the_image_from_any_step(pipelines: dict[str, Any], sampler: str, taken: int) -> None:
    """diffusers' own way of starting it leaves most of the noise."""
    scheduler = schedulers.make(sampler, pipelines["sd15"].scheduler.config)
    schedulers.set_steps(scheduler, STEPS)
    timesteps = schedulers.last_timesteps(scheduler, STEPS, taken)
    assert len(timesteps) == find(sampler).unet_calls(taken)
    image = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    generators = [torch.Generator().manual_seed(2)]
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(2))
    start = denoise.begin_from(
        scheduler, timesteps, generators, Begun(latents=image, noise=noise), pure=False, device="cpu"
    )
    plain = encode.Conditioning(guidance=1.0, guided=False, rows={})
    *_, last = denoise.denoise(TheTruth(scheduler, image), scheduler, plain, start, generators, timesteps)
    left = ((last.latents - image) * noise).sum() / noise.square().sum()  # the share of it that is still there
    assert abs(float(left)) < 0.04
    assert (last.latents - image).abs().max() < 0.2


@pytest.mark.parametrize("way", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 104), (40, 200)])
def test_an_image_is_fitted_as_diffusers_does(way: str, size: tuple[int, int]) -> None:
    from diffusers.image_processor import VaeImageProcessor

    mode = {"crop": "crop", "pad": "fill", "stretch": "default"}[way]
    image = picture(150, 90)
    expected = VaeImageProcessor().resize(image, size[1], size[0], resize_mode=mode)
    assert fitted(image, *size, way).tobytes() == expected.tobytes()


# --- repainting

INPAINTING = {
    "sd15": diffusers.StableDiffusionInpaintPipeline,
    "sdxl": diffusers.StableDiffusionXLInpaintPipeline,
}


def mask_picture(width: int = 64, height: int = 64) -> Image.Image:
    mask = numpy.zeros((height, width), dtype=numpy.uint8)
    mask[height // 4 : height // 2, width // 3 : width - 5] = 255
    return Image.fromarray(mask)


@pytest.fixture(scope="module")
def looking(pipelines: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Models of the same shape that were trained to repaint: nine channels go into their UNets."""
    root = tmp_path_factory.mktemp("repainting")
    folders = {
        family: make_checkpoint.write_folder(root / family, family, tiny=True, channels=9) for family in INPAINTING
    }
    return diffusers_pipelines(folders, torch.float32)


@pytest.mark.parametrize("strength", [0.35, 0.6, 1.0])
@pytest.mark.parametrize("sampler", EXACT)
@pytest.mark.parametrize("family", INPAINTING)
@pytest.mark.parametrize("channels", [4, 9])
def test_repainted_latents_equal_those_of_diffusers(
    pipelines: dict[str, Any], looking: dict[str, Any], texts: dict[str, tuple[Text, Text]],
    channels: int, family: str, sampler: str, strength: float,
) -> None:  # fmt: skip
    pipeline = (pipelines if channels == 4 else looking)[family]
    made = Canvas(picture(), mask_picture())
    given = {"image": made.image, "mask_image": made.mask, "width": 64, "height": 64, **given_texts(texts, family)}
    expected = theirs(pipeline, INPAINTING[family], sampler, strength=strength, **given)
    assert torch.isfinite(expected).all()
    own = ours(pipeline, texts[family], sampler, start_of(strength, Repaint()), made=made)
    assert torch.equal(own, expected)


@pytest.mark.parametrize("padding", [0, 8, 32])
def test_the_masked_part_alone_gives_the_pixels_that_diffusers_gives(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], tmp_path: Path, padding: int
) -> None:
    """A 200×136 image; only its masked part is drawn, at 64×64, and put back."""
    pipeline, image, mask = pipelines["sd15"], picture(200, 136), mask_picture(200, 136)
    image.save(tmp_path / "image.png")
    mask.save(tmp_path / "mask.png")
    given = {"mask_image": mask, "width": 64, "height": 64, "padding_mask_crop": padding, "output_type": "pil"}
    expected = theirs(
        pipeline, INPAINTING["sd15"], "Euler", image=image, strength=0.6, **given, **given_texts(texts, "sd15")
    )[0]
    made = canvas.only_masked(look(tmp_path / "image.png"), look(tmp_path / "mask.png"), 64, 64, padding)
    start = start_of(0.6, Repaint(padding=padding, blur=0))
    own = put_back(decode.decode(pipeline.vae, ours(pipeline, texts["sd15"], "Euler", start, made=made)), start, made)
    assert (own.width, own.height) == expected.size == (200, 136)
    assert own.pixels == expected.tobytes()


@pytest.mark.parametrize("family", INPAINTING)
def test_a_model_for_repainting_draws_without_an_image_too(
    looking: dict[str, Any], texts: dict[str, tuple[Text, Text]], family: str
) -> None:
    """As diffusers does where the mask covers everything, so that nothing of its image is seen."""
    blank, everything = Image.new("RGB", (64, 64)), Image.new("L", (64, 64), 255)
    given = {"image": blank, "mask_image": everything, "width": 64, "height": 64, **given_texts(texts, family)}
    expected = theirs(looking[family], INPAINTING[family], "Euler a", strength=1.0, **given)
    own = ours(looking[family], texts[family], "Euler a", None, made=canvas.blank(64, 64))
    assert torch.equal(own, expected)


# --- a second pass


@pytest.mark.parametrize("sampler", EXACT)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_second_pass_equals_image_to_image_from_enlarged_latents(
    pipelines: dict[str, Any], texts: dict[str, tuple[Text, Text]], family: str, sampler: str
) -> None:
    """Six steps, the last of the ten that a strength of 0.6 makes them a share of; new noise from the same seed."""
    pipeline, taken = pipelines[family], 6
    small = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    larger = torch.nn.functional.interpolate(small, size=(16, 12), mode="bilinear")
    given = {"image": larger, "strength": 0.6, **given_texts(texts, family)}
    expected = theirs(pipeline, PIPELINES[family], sampler, **given)

    scheduler = schedulers.make(sampler, pipeline.scheduler.config)
    schedulers.set_steps(scheduler, STEPS)
    timesteps = schedulers.last_timesteps(scheduler, STEPS, taken)
    generators = [torch.Generator().manual_seed(7)]
    again = enlarged(small, generators, shape=(4, 16, 12), dtype=torch.float32)
    conditioning = encode.conditioning(
        [texts[family][0]], [texts[family][1]], guidance=GUIDANCE, guided=True, size=(96, 128),
        unet=pipeline.unet.config,
    )  # fmt: skip
    at = denoise.begin_from(scheduler, timesteps, generators, again, pure=False, device="cpu")
    *_, last = denoise.denoise(pipeline.unet, scheduler, conditioning, at, generators, timesteps)
    assert torch.equal(last.latents, expected)


def test_a_second_pass_takes_all_its_steps() -> None:
    second = SecondPass(scale=2, width=128, height=128, steps=7, strength=0.3, upscaler="latent", unet_calls=7)
    assert second.steps_in_all == 23
    assert replace(second, strength=1.0).steps_in_all == 7
