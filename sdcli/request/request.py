"""What the user asked for (Request), and what one image needs (Job), with defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from sdcli.images.read import InputImage
from sdcli.schema import transient

LARGEST_SEED = 2**32 - 1
UPSCALERS = ("latent", "lanczos")  # that need no model


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Pixels added to an image on each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


@dataclass(frozen=True, kw_only=True)
class Repaint:
    """The part of an image that is drawn anew: what is white in `mask`, and what is added outside."""

    mask: InputImage | None = None
    blur: int = 4
    padding: int | None = None  # around the masked part, where only that is drawn, enlarged
    content: str = "original"  # of the masked part before it is drawn
    outpaint: Sides | None = None


@dataclass(frozen=True, kw_only=True)
class Start:
    """The image that a job starts from, and how much of it is changed: the share of the steps that are taken. With
    `guidance` it is not started from but looked at, by a model that edits, and this is how closely it is kept to."""

    image: InputImage
    strength: float
    fit: str = "crop"
    repaint: Repaint | None = None
    guidance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Control:
    """An image that steers every UNet call through a net, from `start` to `end` of the calls."""

    net: str  # as it was asked for; in a plan its name
    image: InputImage
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    made: str = "none"  # what is made of the image first: canny …
    shows: str = ""  # what it then shows, where a ControlNet Union is told: canny, depth …
    fit: str = "crop"
    part: str = transient(default="")  # the component that the net is in a plan


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image to draw from as if it were described in the prompt, through an IP-Adapter."""

    image: InputImage
    weight: float = 0.6
    mask: InputImage | None = None  # where it acts: what is white
    layers: str = "all"  # of the UNet: all, or those of style or layout
    fit: str = "crop"  # of the mask


@dataclass(frozen=True, kw_only=True)
class SecondPass:
    """What was drawn is enlarged, and drawn over with some noise on it. All `steps` are taken: they are the last ones
    of as many as the strength makes them a share of."""

    scale: float
    width: int
    height: int
    steps: int
    strength: float
    upscaler: str  # latent | lanczos | a model, as it was asked for; in a plan its name
    unet_calls: int
    part: str = transient(default="")  # the component that the model is in a plan

    @property
    def by_model(self) -> bool:
        return self.upscaler not in UPSCALERS

    @property
    def steps_in_all(self) -> int:
        return int(self.steps / min(self.strength, 0.999))


@dataclass(frozen=True, kw_only=True)
class Refiner:
    """Another model, which takes the last steps: all after this share of them."""

    model: str
    share: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What of a job the refiner does: the last `steps` of those that are taken."""

    model: str  # as it was asked for; in a plan its name
    share: float  # of the steps, before it begins
    steps: int
    unet_calls: int


class Pass(NamedTuple):
    """One way through a UNet, from noise (or what it starts from) to latents. `taken` are the last of the steps, but
    for `left`, which are another pass's."""

    stage: str
    width: int
    height: int
    steps: int
    taken: int
    unet_calls: int
    left: int = 0


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of several equal shares of a run's batches, of which each takes every so many."""

    number: int  # from 1
    of: int

    def takes(self, batch: int) -> bool:
        return batch % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, kw_only=True)
class LoraWeight:
    """Of a LoRA of the run, by its name, where an image has another weight than the run."""

    name: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What a sweep sets to each of some values, as they were written."""

    name: str
    values: tuple[str, ...]


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
    rng: str = "cpu"
    batch_size: int = 1
    batch_invariant: bool = False
    keep_steps: bool = False
    device: str = "auto"
    pins: Mapping[str, str] = field(default_factory=dict)
    compile: str = "auto"
    max_vram: int | None = None
    max_ram: int | None = None
    fallback: bool = True
    offline: bool = False
    output: str | None = None
    format: str = "png"
    quality: int = 95
    metadata: str = "full"
    overwrite: bool = False
    preview_every: int = 0
    filmstrip: int = 0
    image: tuple[InputImage, ...] = ()
    strength: float | None = None
    fit: str = "crop"
    image_guidance: float = 1.5
    mask: InputImage | None = None
    mask_blur: int = 4
    only_masked: bool = False
    mask_padding: int = 32
    masked_content: str | None = None
    outpaint: Sides | None = None
    control: tuple[Control, ...] = ()
    control_from: str = "none"
    guess_mode: bool = False
    reference: tuple[Reference, ...] = ()
    reference_model: str | None = None
    reference_encoder: str | None = None
    reference_layers: str = "all"
    reference_mask: tuple[InputImage, ...] = ()
    hires: float | None = None
    hires_steps: int | None = None
    hires_strength: float | None = None
    upscaler: str = "latent"
    refiner: Refiner | None = None
    shard: Shard | None = None
    devices: str | None = None
    sweep: tuple[Axis, ...] = ()
    wildcards: str | None = transient(
        default=None
    )  # the folder of the files that prompts choose from; off: none choose
    sides_of_image: tuple[str, ...] = transient(default=())  # of width and height those that nobody set
    multiple: int = transient(default=8)  # of which sides have to be: the pixels of one latent
    edits: bool = transient(default=False)  # whether the model was trained to edit images


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One image. `unet_calls`, of its first pass, differ from `steps` for samplers that call the UNet twice a step."""

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
    rng: str = "cpu"  # how noise comes of the seed: as on a CPU, or as on an NVIDIA GPU
    id: str | None = None
    start: Start | None = None  # an image, instead of pure noise
    second: SecondPass | None = None
    controls: tuple[Control, ...] = ()
    guess_mode: bool = False
    references: tuple[Reference, ...] = ()
    refined: Refined | None = None
    template: str | None = None  # what the prompt was chosen from
    negative_template: str | None = None
    lora_weights: tuple[LoraWeight, ...] = ()

    @property
    def steps_taken(self) -> int:
        """Of `steps`, the last ones."""
        return self.steps if self.start is None else steps_taken(self.steps, self.start.strength)

    @property
    def passes(self) -> tuple[Pass, ...]:
        left = self.refined.steps if self.refined is not None else 0
        first = Pass(
            stage="denoise", width=self.width, height=self.height, steps=self.steps, taken=self.steps_taken - left,
            left=left, unet_calls=self.unet_calls,
        )  # fmt: skip
        if self.refined is not None:
            rest = first._replace(stage="refine", taken=left, left=0, unet_calls=self.refined.unet_calls)
            return first, rest
        if (second := self.second) is None:
            return (first,)
        again = Pass(
            stage="second-pass", width=second.width, height=second.height, steps=second.steps_in_all,
            taken=second.steps, unet_calls=second.unet_calls,
        )  # fmt: skip
        return first, again

    @property
    def all_calls(self) -> int:
        """Of the UNet, in all passes."""
        return sum(one.unet_calls for one in self.passes)

    @property
    def size(self) -> tuple[int, int]:
        """What comes out of the last pass."""
        last = self.passes[-1]
        return last.width, last.height

    @property
    def guided(self) -> bool:
        """Whether each step needs the unconditional call too (diffusers' own rule)."""
        return self.guidance > 1.0


def steps_taken(steps: int, strength: float) -> int:
    """Of the last steps, as many as diffusers takes: its very product, 50 × 0.58 = 28.999…"""
    return min(int(steps * strength), steps)


# What a job's start is made of.
STARTING = (
    "image", "strength", "fit", "image_guidance", "mask", "mask_blur", "only_masked", "mask_padding", "masked_content",
    "outpaint",
)  # fmt: skip

# What steers it.
STEERING = ("control", "control_from")

# What else it is drawn from.
REFERRING = ("reference", "reference_layers", "reference_mask")

# What its second pass is made of.
SECOND = ("hires", "hires_steps", "hires_strength", "upscaler")

# Settings that each image of a run may have for itself, under the same name in both.
PER_IMAGE = tuple(one.name for one in fields(Job) if one.name in {other.name for other in fields(Request)})
