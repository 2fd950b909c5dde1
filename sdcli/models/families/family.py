"""What every family declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Known(NamedTuple):
    """A repository with a short name. Its facts are here, so that a plan needs no network."""

    alias: str
    repository: str
    revision: str
    licence: str
    formerly: tuple[str, ...] = ()  # former names, and mirrors that no longer exist


class Encoder(NamedTuple):
    """How one of its text encoders is used."""

    part: str = "text_encoder"
    pad: int | None = None  # the token that fills a chunk; None: the end mark
    penultimate: bool = False  # one layer below the last, not normalised
    original: str = "cond_stage_model.transformer."  # the prefix of its tensors in a single file


class Family(NamedTuple):
    name: str
    title: str
    pipeline: str  # the diffusers class a model_index.json of this family names
    defaults: Mapping[str, Any]  # Request fields; the size too where the family was trained at one
    repainting: str = ""  # the same of its models that were trained to repaint
    editing: str = ""  # and of those trained to edit
    text_width: int = 0  # of the text that its UNet reads (cross_attention_dim), as published
    matches: Callable[[Mapping[str, Any]], bool] | None = None  # whether a UNet's config is its, whatever the widths
    encoders: tuple[Encoder, ...] = (Encoder(),)
    known: Known | None = None
    empty_is_zeros: bool = False  # an empty negative prompt is zeros, unless the model's index says otherwise
    vae_overflows: bool = False  # its VAE leaves the range of fp16, unless its config says force_upcast = false
    refines: str = ""  # the family whose last steps its models take; by themselves they draw over images only
    # Red, green and blue of each latent channel, in -1…1, for previews.
    colours: tuple[tuple[float, float, float], ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        return (*(encoder.part for encoder in self.encoders), "unet", "vae")

    @property
    def native(self) -> tuple[int, int] | None:
        return (self.defaults["width"], self.defaults["height"]) if "width" in self.defaults else None
