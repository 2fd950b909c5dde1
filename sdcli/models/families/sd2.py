"""Stable Diffusion 2.0 and 2.1, base and 768-v, and everything fine-tuned from them.

Their text encoder is OpenCLIP's ViT-H, and its config leaves out the last layer: diffusers uses the last but one,
normalised. 768-v predicts v; the base models, at 512², predict noise and say so in their scheduler.
"""

from collections.abc import Mapping
from typing import Any

from sdcli.models.families import sd15
from sdcli.models.families.family import Encoder, Family


def _matches(unet: Mapping[str, Any]) -> bool:
    return bool(unet.get("use_linear_projection")) and unet.get("addition_embed_type") != "text_time"


FAMILY = Family(
    name="sd2",
    title="Stable Diffusion 2",
    pipeline="StableDiffusionPipeline",
    repainting="StableDiffusionInpaintPipeline",
    editing="StableDiffusionInstructPix2PixPipeline",
    text_width=1024,
    matches=_matches,
    encoders=(Encoder(pad=0, original="cond_stage_model.model."),),
    defaults={"width": 768, "height": 768, "steps": 25, "guidance": 7.0, "sampler": "DPM++ 2M Karras"},
    colours=sd15.FAMILY.colours,  # the same VAE
)
