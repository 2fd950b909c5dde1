"""SDXL base and everything fine-tuned from it."""

from collections.abc import Mapping
from typing import Any

from sdcli.models.families.family import Encoder, Family, Known


def _matches(unet: Mapping[str, Any]) -> bool:
    return unet.get("addition_embed_type") == "text_time" and not is_told_a_score(unet)


def is_told_a_score(unet: Mapping[str, Any]) -> bool:
    """Whether it is told five numbers beside the prompt's vector, which is as wide as its text, and not six: a score in
    place of the size to draw."""
    width, text = unet.get("projection_class_embeddings_input_dim"), unet.get("cross_attention_dim")
    each = unet.get("addition_time_embed_dim")
    if not (isinstance(width, int) and isinstance(text, int) and isinstance(each, int)):
        return False
    return unet.get("addition_embed_type") == "text_time" and width - text == 5 * each


FAMILY = Family(
    name="sdxl",
    title="SDXL",
    pipeline="StableDiffusionXLPipeline",
    repainting="StableDiffusionXLInpaintPipeline",
    editing="StableDiffusionXLInstructPix2PixPipeline",
    text_width=2048,
    matches=_matches,
    encoders=(
        Encoder(penultimate=True, original="conditioner.embedders.0.transformer."),
        Encoder(part="text_encoder_2", pad=0, penultimate=True, original="conditioner.embedders.1.model."),
    ),
    defaults={"width": 1024, "height": 1024, "steps": 30, "guidance": 5.5, "sampler": "DPM++ 2M Karras"},
    empty_is_zeros=True,
    vae_overflows=True,
    # fitted by others to its VAE's latents: the diffusers documentation
    colours=(
        (0.3448, 0.4168, 0.4395), (-0.1953, -0.0290, 0.0250), (0.1074, 0.0886, -0.0163), (-0.3730, -0.2499, -0.2088),
    ),
    known=Known(
        alias="sdxl",
        repository="stabilityai/stable-diffusion-xl-base-1.0",
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        licence="OpenRAIL++-M",
    ),
)  # fmt: skip
