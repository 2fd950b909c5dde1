"""The model that ships with sdcli. Its size, sampler and steps stand in its own folder's model_index.json."""

from sdcli.models.families.family import Family

FAMILY = Family(
    name="builtin",
    title="the built-in model",
    pipeline="StableDiffusionPipeline",
    components=("text_encoder", "unet", "vae"),
    defaults={"width": 256, "height": 256, "steps": 20, "guidance": 4.0, "sampler": "DDIM"},
)
