"""A model to draw with: one value for a folder, a file, a cached Hub repository or a known name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sdcli.models.edm import is_edm
from sdcli.schema import transient

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}  # a number's, by dtype
ENCODERS = ("text_encoder", "text_encoder_2")  # the components that read text, in order
# The components that steer a UNet, by kind; there may be several of each.
NETS = ("controlnet_union", "controlnet", "t2i_adapter")
REFINER = "refiner_"  # begins the names of a refiner's components among those of its base


@cache
def net_kind(component: str) -> str | None:
    """Which kind of net a component is, if it is one: controlnet_2 is a controlnet."""
    return next((kind for kind in NETS if component == kind or component.startswith(f"{kind}_")), None)


@cache
def role(component: str) -> str:
    """What it is: a refiner's UNet is a UNet, and each of several nets or upscalers is one."""
    if component.startswith("upscaler"):
        return "upscaler"
    return net_kind(component) or component.removeprefix(REFINER)


@dataclass(frozen=True, kw_only=True)
class Component:
    """A UNet, a text encoder, a VAE (see `role`). Sizes come from headers, or from the config where not downloaded."""

    parameters: int
    stored_bytes: int
    stored_dtype: str  # fp32 | fp16 | bf16 | fp8 | mixed
    config: Mapping[str, Any] = transient(default_factory=dict)  # diffusers/transformers config, as loaded from JSON
    files: tuple[str, ...] = transient(default=())  # absolute; one single checkpoint may serve several components
    random: bool = transient(default=False)  # weights are random instead of read: for measuring


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model to draw with, wherever its files are."""

    name: str  # short, fit to show: sd15, dreamshaper_8
    kind: str  # sd15 | sdxl | builtin | lora | vae | unet | sd2 | refiner | flux | …
    family: str  # sd15 | sdxl | builtin; "" where sdcli cannot draw with it
    source: str  # builtin | hub | folder | file
    revision: str | None = None
    hash: str | None = None  # first 10 hex of the checkpoint's sha256 (single files), where known
    prediction: str = "epsilon"  # epsilon | v_prediction
    zero_snr: bool = False
    empty_is_zeros: bool = False  # an empty negative prompt is encoded as zeros
    cached: bool = True
    download_bytes: int = 0
    disk_bytes: int = 0
    components: Mapping[str, Component] = field(default_factory=dict)
    path: str | None = transient(default=None)  # the folder or file; None until it is on this disk
    vocabulary: str | None = transient(default=None)  # the folder of its own tokens; None: CLIP's
    preview: tuple[tuple[float, float, float], ...] = transient(default=())  # its latents' colours; (): its family's
    layout: str = transient(default="diffusers")  # diffusers | original (single checkpoint)
    repository: str | None = transient(default=None)
    licence: str | None = transient(default=None)
    scheduler: Mapping[str, Any] = transient(default_factory=dict)  # scheduler_config.json
    defaults: Mapping[str, Any] = transient(default_factory=dict)  # Request fields the model's own files set
    refiner: Model | None = transient(default=None)  # takes the last steps; what of it is used is in `components` too

    @property
    def nets(self) -> tuple[str, ...]:
        """The components that steer it: ControlNets and T2I-Adapters, beside the model's own."""
        return tuple(name for name in self.components if net_kind(name) is not None)

    @property
    def sees_references(self) -> bool:
        """Whether it has an IP-Adapter beside it."""
        return "ip_adapter" in self.components

    @property
    def upscalers(self) -> tuple[str, ...]:
        """The components that enlarge images, beside the model's own."""
        return tuple(name for name in self.components if role(name) == "upscaler")

    @property
    def edm(self) -> bool:
        """Whether it was trained with EDM's noise, and takes samplers of its own."""
        return is_edm(self.scheduler)

    @property
    def sees_mask(self) -> bool:
        """Whether its UNet was trained to repaint: beside latents it sees a mask and the latents around it."""
        return self._sees == 2 * self._latents + 1

    @property
    def edits(self) -> bool:
        """Whether its UNet was trained to change an image as it is told to: beside latents it sees the image's."""
        return self._sees == 2 * self._latents

    @property
    def _sees(self) -> int:
        return int(self.components["unet"].config.get("in_channels", 4))

    @property
    def _latents(self) -> int:
        """Channels."""
        return int(self.components["vae"].config.get("latent_channels", 4))
