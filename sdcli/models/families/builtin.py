"""The model that ships with sdcli. Its size is in its UNet's config; its index sets steps, guidance and sampler."""

from sdcli.models.families import sd15
from sdcli.models.families.family import Family

FAMILY = Family(
    name="builtin",
    title="the built-in model",
    pipeline="StableDiffusionPipeline",
    defaults={"steps": 20, "guidance": 4.0, "sampler": "DDIM"},
    colours=sd15.FAMILY.colours,  # unless its index has its own
)
