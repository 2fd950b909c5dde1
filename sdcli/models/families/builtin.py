"""The model that ships with sdcli. Its own folder says its size, and its index the steps, guidance and sampler."""

from sdcli.models.families.family import Family

FAMILY = Family(
    name="builtin",
    title="the built-in model",
    pipeline="StableDiffusionPipeline",
    components=("text_encoder", "unet", "vae"),
    defaults={"steps": 20, "guidance": 4.0, "sampler": "DDIM"},
)
