"""The facts of one UNet: where it came from, its structure at a size, and how its file differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict

from sdcli import __version__, schema
from sdcli.errors import ErrorObject, SdcliError, Usage
from sdcli.models.model import BYTES
from sdcli.models.unet import Block, Skip, Unet, analyse


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor in a file, under its diffusers name; `file`, `start`, `end` say where its bytes are."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # fp32, fp16, bf16, fp8 … as on screens
    file: str
    start: int
    end: int
    stored: str = ""  # its dtype as in the file: F16, BF16 …


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    name: str
    shape: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the structure comes from. The analysis needs only `config`; only files have `tensors`."""

    name: str
    kind: str  # known | hub | folder | checkpoint | unet-file | config | module
    family: str  # sd15, sdxl … or "" where unknown
    title: str  # for people: Stable Diffusion 1.5
    origin: str  # for people: from the shipped config, nothing downloaded
    config: Mapping[str, Any]
    pixels_per_latent: int = 8
    tensors: Mapping[str, Stored] = field(default_factory=dict)
    stored_bytes: int | None = None
    stored_dtypes: Mapping[str, int] = field(default_factory=dict)  # dtype → parameters stored in it
    beside: tuple[str, ...] = ()  # what else is in the file, for people
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    fault: SdcliError | None = None  # what is wrong with the file, reported after what was read

    @property
    def whole(self) -> bool:
        return not self.missing and not self.mismatched and self.fault is None


@dataclass(frozen=True, kw_only=True)
class At:
    """The size in pixels at which the UNet is inspected, and the dtype in which bytes are counted."""

    width: int
    height: int
    batch: int = 1
    tokens: int = 77
    dtype: str = "fp16"

    @property
    def dtype_bytes(self) -> int:
        return BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class MeasuredBlock:
    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MeasuredCall:
    """One real call on this machine."""

    device: str
    dtype: str
    seconds: float
    blocks: tuple[MeasuredBlock, ...]
    activation_peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A source, inspected at one size: what every table, diagram and file is made from."""

    source: Source
    at: At
    unet: Unet
    measured: MeasuredCall | None = None

    @property
    def weight_bytes(self) -> int:
        return self.unet.parameters * self.at.dtype_bytes

    @property
    def peak_bytes(self) -> int:
        return self.unet.activation_peak(self.at.dtype_bytes)

    def measured_as(self, measured: MeasuredCall) -> Inspection:
        return replace(self, measured=measured)


def native_size(source: Source) -> tuple[int, int]:
    """Width and height in pixels that this UNet was trained for."""
    size = source.config.get("sample_size")
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size):
        height, width = size
    else:
        height = width = size if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 10_000 else 64
    return width * source.pixels_per_latent, height * source.pixels_per_latent


def inspect(source: Source, at: At) -> Inspection:
    """The source's structure, work and memory at one size."""
    step = source.pixels_per_latent
    for name, value in (("width", at.width), ("height", at.height)):
        if value % step or value < step:
            below, above = value // step * step, (value // step + 1) * step
            near = f"{below} and {above} are" if below else f"{above} is"
            width, height = (max(1, round(side / step)) * step for side in (at.width, at.height))
            raise Usage(
                f"{name} {value} is not a multiple of {step}; {near}",
                hint=f"sdcli inspect-unet {source.name} --at {width}x{height}",
            )
    unet = analyse(source.config, height=at.height // step, width=at.width // step, batch=at.batch, tokens=at.tokens)
    return Inspection(source=source, at=at, unet=unet)


class SourceObject(TypedDict):
    name: str
    kind: str
    family: str | None
    stored_bytes: int | None
    stored_dtypes: dict[str, int]


class AtObject(TypedDict):
    width: int
    height: int
    latent: list[int]
    batch: int
    tokens: int
    dtype: str


class TotalsObject(TypedDict):
    parameters: int
    bytes: int
    macs: int
    flops: int
    macs_by_kind: dict[str, int]
    activation_peak_bytes: int
    leaves: int


class BlockObject(TypedDict):
    name: str
    role: str
    type: str
    level: int
    resolution: list[int]
    in_channels: int
    out_channels: int
    parameters: int
    bytes: int
    macs: int
    activation_bytes: int


class LayerObject(TypedDict):
    name: str
    type: str
    kind: str
    weight_shape: list[int]
    kernel: list[int]
    bias: bool
    parameters: int
    bytes: int
    output_shape: list[int]
    macs: int
    activation_bytes: int


class ConditioningObject(TypedDict):
    time_channels: int
    time_enters: int
    text_channels: int
    text_enters: int


class UnetDocument(TypedDict):
    """`layers` has every leaf in the order of calls; their macs add up to `totals.macs`."""

    schema: Literal["sdcli.unet/1"]
    version: str
    source: SourceObject
    at: AtObject
    totals: TotalsObject
    blocks: list[BlockObject]
    layers: list[LayerObject]
    skips: list[Skip]
    conditioning: ConditioningObject
    missing: list[str]
    unexpected: list[str]
    mismatched: list[Mismatch]
    measured: MeasuredCall | None
    error: ErrorObject | None


def to_json(look: Inspection) -> UnetDocument:
    """The document `inspect-unet --json` prints."""
    source, at, unet, size = look.source, look.at, look.unet, look.at.dtype_bytes
    return {
        "schema": "sdcli.unet/1",
        "version": __version__,
        "source": {
            "name": source.name,
            "kind": source.kind,
            "family": source.family or None,
            "stored_bytes": source.stored_bytes,
            "stored_dtypes": dict(source.stored_dtypes),
        },
        "at": {
            "width": at.width,
            "height": at.height,
            "latent": list(unet.latent),
            "batch": at.batch,
            "tokens": unet.tokens,
            "dtype": at.dtype,
        },
        "totals": {
            "parameters": unet.parameters,
            "bytes": look.weight_bytes,
            "macs": unet.macs,
            "flops": 2 * unet.macs,
            "macs_by_kind": dict(unet.macs_by_kind),
            "activation_peak_bytes": look.peak_bytes,
            "leaves": len(unet.leaves),
        },
        "blocks": [_block(block, size) for block in unet.blocks],
        "layers": [
            {
                "name": leaf.name,
                "type": leaf.type,
                "kind": leaf.kind,
                "weight_shape": list(leaf.weight_shape),
                "kernel": list(leaf.kernel),
                "bias": leaf.bias,
                "parameters": leaf.parameters,
                "bytes": leaf.parameters * size,
                "output_shape": list(leaf.output_shape),
                "macs": leaf.macs,
                "activation_bytes": leaf.elements * size,
            }
            for leaf in unet.leaves
        ],
        "skips": schema.to_json(unet.skips),
        "conditioning": {
            "time_channels": unet.time_channels,
            "time_enters": unet.time_enters,
            "text_channels": unet.text_channels,
            "text_enters": unet.text_enters,
        },
        "missing": list(source.missing),
        "unexpected": list(source.unexpected),
        "mismatched": schema.to_json(source.mismatched),
        "measured": schema.to_json(look.measured),
        "error": source.fault.to_json() if source.fault else None,
    }


def _block(block: Block, size: int) -> BlockObject:
    return {
        "name": block.name,
        "role": block.role,
        "type": block.type,
        "level": block.level,
        "resolution": list(block.resolution),
        "in_channels": block.in_channels,
        "out_channels": block.out_channels,
        "parameters": block.parameters,
        "bytes": block.parameters * size,
        "macs": block.macs,
        "activation_bytes": block.elements * size,
    }
