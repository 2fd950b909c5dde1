"""What the user asked for (Request), and what one image needs (Job), with defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """Every setting of a run, resolved. options.py says how each is spelled on the command line."""

    prompts: tuple[str, ...]
    negative_prompt: str = ""
    model: str = "builtin"
    revision: str | None = None
    lora: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    vae_file: str | None = None
    num_images: int = 1
    seeds: tuple[int, ...] = ()
    steps: int = 25
    guidance: float = 7.0
    width: int = 512
    height: int = 512
    sampler: str = "DPM++ 2M Karras"
    clip_skip: int = 1
    emphasis: str = "a1111"
    batch_size: int = 1
    batch_invariant: bool = False
    device: str = "auto"
    pins: Mapping[str, str] = field(default_factory=dict)
    compile: str = "auto"
    max_vram: int | None = None
    max_ram: int | None = None
    fallback: bool = True
    offline: bool = False
    output: str | None = None
    format: str = "png"
    metadata: str = "full"
    overwrite: bool = False
    preview_every: int = 0
    filmstrip: int = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image. `unet_calls` differs from `steps` for samplers that call the UNet twice a step."""

    index: int
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    unet_calls: int
    guidance: float
    width: int
    height: int
    sampler: str
    clip_skip: int = 1
    emphasis: str = "a1111"
    id: str | None = None

    @property
    def guided(self) -> bool:
        """Whether each step needs the unconditional call too (diffusers' own rule)."""
        return self.guidance > 1.0


# Settings that each image of a run may have for itself, under the same name in both.
PER_IMAGE = tuple(one.name for one in fields(Job) if one.name in {other.name for other in fields(Request)})
