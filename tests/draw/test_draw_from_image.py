"""Starting from images against diffusers' pipelines, on the same components: no difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from draw_samples import FAMILIES, TheTruth
from PIL import Image

from scripts.proofs import modes
from scripts.proofs.modes import EXACT, STEPS, Compared, compared_in, mask_picture, picture, start_of
from sdcli.draw import decode, denoise, schedulers
from sdcli.draw.images import put_back
from sdcli.draw.start import Begun
from sdcli.images import canvas
from sdcli.images.canvas import Canvas
from sdcli.images.fit import fitted
from sdcli.images.read import look
from sdcli.request.request import Repaint, SecondPass
from sdcli.request.samplers import find

Comparable = Callable[..., Compared]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparable:
    """Pipelines of diffusers by family and channels of the UNet, each loaded once."""
    root, made = tmp_path_factory.mktemp("compared"), dict[tuple[str, int], Compared]()

    def of(family: str, channels: int = 4) -> Compared:
        if (family, channels) not in made:
            made[family, channels] = compared_in(root, family, channels)
        return made[family, channels]

    return of


# A few of every kind of sampler at every strength; scripts/prove modes goes through all.
FEW = ("DDIM", "Euler a", "DPM++ 2M Karras", "Heun", "LCM")


# scripts/prove modes has every sampler at every strength in every mode; here every second.
DRAWN = [*((name, 0.6) for name in EXACT), *((name, strength) for name in FEW for strength in (0.35, 1.0))]
COMPARED = [
    (*mode, *drawn)
    for row, mode in enumerate([
        ("image-to-image", "sd15", 4),
        ("repainting", "sdxl", 4),
        ("repainting", "sd15", 9),
        ("editing", "sd15", 8),
        ("second pass", "sdxl", 4),
    ])
    for column, drawn in enumerate(DRAWN)
    if (row + column) % 2 == 0
]  # fmt: skip


@pytest.mark.parametrize(("mode", "family", "channels", "sampler", "strength"), COMPARED)
def test_latents_equal_those_of_diffusers_bit_for_bit(
    compared: Comparable, mode: str, family: str, channels: int, sampler: str, strength: float
) -> None:
    assert modes.MODES[mode](compared(family, channels), sampler, strength)


@pytest.mark.parametrize(
    ("mode", "channels"), [("image-to-image", 4), ("repainting", 4), ("repainting", 9), ("editing", 8)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_so_they_do_in_every_family(compared: Comparable, family: str, mode: str, channels: int) -> None:
    assert modes.MODES[mode](compared(family, channels), "Euler", 0.6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_from_one_image_equals_diffusers_too(compared: Comparable, family: str) -> None:
    """Encoded once here, once for each seed there."""
    expected = compared(family).theirs("image", "Euler a", 2, image=picture(), strength=0.6)
    assert torch.equal(compared(family).ours("Euler a", start_of(0.6), Canvas(picture()), 2), expected)


def test_latents_with_a_mean_of_their_own_are_scaled_as_decoding_expects(compared: Comparable) -> None:
    vae = compared("sdxl").pipeline.vae
    own = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 1.2, 0.8]}
    before = dict(vae.config)
    vae.register_to_config(**own)
    try:
        assert modes.from_image(compared("sdxl"), "Euler", 0.6)
    finally:
        vae.register_to_config(**{name: before.get(name) for name in own})


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_model_for_repainting_draws_without_an_image_too(compared: Comparable, family: str) -> None:
    """As diffusers does where the mask covers everything, so that nothing of its image is seen."""
    everything = {"image": Image.new("RGB", (64, 64)), "mask_image": Image.new("L", (64, 64), 255)}
    expected = compared(family, 9).theirs("mask", "Euler a", strength=1.0, width=64, height=64, **everything)
    assert torch.equal(compared(family, 9).ours("Euler a", None, canvas.blank(64, 64)), expected)


@pytest.mark.parametrize("padding", [0, 8, 32])
def test_the_masked_part_alone_gives_the_pixels_that_diffusers_gives(
    compared: Comparable, tmp_path: Path, padding: int
) -> None:
    """A 200×136 image; only its masked part is drawn, at 64×64, and put back."""
    image, mask = picture(200, 136), mask_picture(200, 136)
    image.save(tmp_path / "image.png")
    mask.save(tmp_path / "mask.png")
    (expected,) = compared("sd15").theirs(
        "mask", "Euler", image=image, mask_image=mask, strength=0.6, width=64, height=64, padding_mask_crop=padding,
        output_type="pil",
    )  # fmt: skip
    made = canvas.only_masked(look(tmp_path / "image.png"), look(tmp_path / "mask.png"), 64, 64, padding)
    start = start_of(0.6, Repaint(padding=padding, blur=0))
    drawn = decode.decode(compared("sd15").pipeline.vae, compared("sd15").ours("Euler", start, made))
    own = put_back(drawn, start, made)
    assert (own.width, own.height) == expected.size == (200, 136)
    assert own.pixels == expected.tobytes()


@pytest.mark.parametrize("way", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 104), (40, 200)])
def test_an_image_is_fitted_as_diffusers_does(way: str, size: tuple[int, int]) -> None:
    from diffusers.image_processor import VaeImageProcessor

    mode = {"crop": "crop", "pad": "fill", "stretch": "default"}[way]
    image = picture(150, 90)
    expected = VaeImageProcessor().resize(image, size[1], size[0], resize_mode=mode)
    assert fitted(image, *size, way).tobytes() == expected.tobytes()


def test_a_second_pass_takes_all_its_steps() -> None:
    second = SecondPass(scale=2, width=128, height=128, steps=7, strength=0.3, upscaler="latent", unet_calls=7)
    assert second.steps_in_all == 23
    assert replace(second, strength=1.0).steps_in_all == 7


# --- PNDM, which diffusers starts in the middle of its doubled step


@pytest.mark.parametrize("taken", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("sampler", ["PNDM", "DDIM"])
def test_pndm_leads_back_to_the_image_from_any_step(compared: Comparable, sampler: str, taken: int) -> None:
    """diffusers' own way of starting it leaves most of the noise."""
    scheduler = schedulers.make(sampler, compared("sd15").pipeline.scheduler.config)
    schedulers.set_steps(scheduler, STEPS)
    timesteps = schedulers.last_timesteps(scheduler, STEPS, taken)
    assert len(timesteps) == find(sampler).unet_calls(taken)
    image, noise = (torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    generators = [torch.Generator().manual_seed(2)]
    start = denoise.begin_from(
        scheduler, timesteps, generators, Begun(latents=image, noise=noise), pure=False, device="cpu"
    )
    plain = denoise.Conditioning(guidance=denoise.Guidance(scale=1.0, sides=1), rows={})
    *_, last = denoise.denoise(TheTruth(scheduler, image), scheduler, plain, start, generators, timesteps)
    left = ((last.latents - image) * noise).sum() / noise.square().sum()  # the share of it that is still there
    assert abs(float(left)) < 0.04
    assert (last.latents - image).abs().max() < 0.2
