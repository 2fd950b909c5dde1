"""Stable Diffusion 1.5 and everything fine-tuned from it."""

from collections.abc import Mapping
from typing import Any

from sdcli.models.families.family import Family, Known


def _matches(unet: Mapping[str, Any]) -> bool:
    return not unet.get("use_linear_projection") and unet.get("addition_embed_type") != "text_time"


FAMILY = Family(
    name="sd15",
    title="Stable Diffusion 1.5",
    pipeline="StableDiffusionPipeline",
    repainting="StableDiffusionInpaintPipeline",
    editing="StableDiffusionInstructPix2PixPipeline",
    text_width=768,
    matches=_matches,
    defaults={"width": 512, "height": 512, "steps": 25, "guidance": 7.0, "sampler": "DPM++ 2M Karras"},
    # fitted by others to its VAE's latents: the Hugging Face forum, thread 23204
    colours=((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473)),
    known=Known(
        alias="sd15",
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        licence="CreativeML OpenRAIL-M",
        formerly=("runwayml/stable-diffusion-v1-5",),
    ),
)
