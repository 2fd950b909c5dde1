"""Stable Diffusion 1.5 and everything fine-tuned from it."""

from sdcli.models.families.family import Family, Known

FAMILY = Family(
    name="sd15",
    title="Stable Diffusion 1.5",
    pipeline="StableDiffusionPipeline",
    components=("text_encoder", "unet", "vae"),
    defaults={"width": 512, "height": 512, "steps": 25, "guidance": 7.0, "sampler": "DPM++ 2M Karras"},
    known=Known(
        alias="sd15",
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        licence="CreativeML OpenRAIL-M",
        formerly=("runwayml/stable-diffusion-v1-5",),
    ),
)
