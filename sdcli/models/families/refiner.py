"""SDXL's refiner and what is fine-tuned from it: trained for the last steps alone, so that it draws over images, or
over what a base model has not finished.

It reads the prompt through the second of SDXL's text encoders, and is told how beautiful the image is to be where base
models are told its size.
"""

from sdcli.models.families import sdxl
from sdcli.models.families.family import Encoder, Family

FAMILY = Family(
    name="refiner",
    title="the SDXL refiner",
    pipeline="StableDiffusionXLImg2ImgPipeline",
    text_width=1280,
    matches=sdxl.is_told_a_score,
    encoders=(
        Encoder(part="text_encoder_2", pad=0, penultimate=True, original="conditioner.embedders.0.model."),
    ),
    defaults={**sdxl.FAMILY.defaults, "strength": 0.3},
    vae_overflows=True,
    colours=sdxl.FAMILY.colours,  # the same VAE
    refines="sdxl",
)  # fmt: skip
