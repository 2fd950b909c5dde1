"""SDXL base and everything fine-tuned from it."""

from sdcli.models.families.family import Family, Known

FAMILY = Family(
    name="sdxl",
    title="SDXL",
    pipeline="StableDiffusionXLPipeline",
    components=("text_encoder", "text_encoder_2", "unet", "vae"),
    defaults={"width": 1024, "height": 1024, "steps": 30, "guidance": 5.5, "sampler": "DPM++ 2M Karras"},
    known=Known(
        alias="sdxl",
        repository="stabilityai/stable-diffusion-xl-base-1.0",
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        licence="OpenRAIL++-M",
    ),
)
