"""The Plan: every choice made before anything is loaded, with reasons, predicted memory and time, and fallbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sdcli.machine.hardware import Hardware, QueryBlock
from sdcli.models.model import Model
from sdcli.request.request import Job, Request
from sdcli.schema import renamed, transient


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A file used beside the model, known by its content: the same hash and scale have the same effect.

    `word` stands for an embedding in the prompt. `matched` and `unmatched` count the layers of a LoRA. `hub` is the
    origin of a file from the Hub, as --lora takes it: owner/name@commit/file.
    """

    name: str
    sha256: str
    scale: float
    path: str | None = transient(default=None)
    kind: str = "lora"  # lora | embedding | vae | controlnet | t2i-adapter | upscaler …
    word: str = ""
    tensors_sha256: str = ""  # of a LoRA without its header: its identity in galleries
    matched: int = 0
    unmatched: int = 0
    hub: str = ""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A choice for every slot, with device and threads: whatever can move a pixel, the job apart."""

    dtype: str = "fp32"
    storage: str = "same"
    placement: str = "resident"
    attention: str = "fused"
    guidance: str = "batched"
    vae: str = "whole"
    vae_dtype: str = "same"
    execution: str = "eager"
    blocks: tuple[QueryBlock, ...] = ()  # of attention in blocks; none: one rule for every number of keys
    upscaler_tile: int = 0  # pixels a side that a model enlarges at once; 0: the whole image
    threads: int = 1
    device: str = "cpu"
    isa: str = ""
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Predicted peak bytes during a phase. On a CPU device == host."""

    name: str  # load | encode | compile | denoise | decode
    device: int
    host: int
    weights: int = 0  # of device: weights in use
    parked: int = 0  # of device: weights resident but idle
    work: int = 0  # of device: activations and workspace
    pinned: int = 0  # of host: page-locked for streaming


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a setup needs at most, and in which phase."""

    device_peak: int
    host_peak: int
    phases: tuple[Phase, ...] = ()  # always as predicted
    runs: int = 0  # how many runs of this setup on this machine the peaks were measured in; 0: predicted


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The choice for a slot, and why."""

    slot: str
    choice: str
    because: str
    source: str  # auto | pin | remembered
    device_peak: int
    device_peak_without: int | None = None


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One legal setup with its predicted peaks and time; `because` says what it lacks or why it was chosen."""

    setup: Setup
    device_peak: int
    host_peak: int
    slowdown: float
    fits: bool
    chosen: bool = False
    because: str | None = None
    seconds: float | None = None  # of the whole run, only if remembered


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """A smaller setup to continue with when memory runs out; fallbacks are tried in order, each at most once."""

    setup: Setup
    device_peak: int
    changes_pixels: bool


@dataclass(frozen=True, kw_only=True)
class PlanWarning:
    """What to know before drawing."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes that a plan may use."""

    device: int
    host: int


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of the run and its parts, as measured on this machine."""

    total: float
    load: float
    step: float
    source: str = "remembered"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is decided before anything is loaded."""

    schema: str = "sdcli.plan/1"
    version: str = ""
    fits: bool = True
    request: Request
    origins: Mapping[str, str] = field(default_factory=dict)
    model: Model
    hardware: Hardware
    budget: Budget
    setup: Setup
    jobs: tuple[Job, ...]
    batches: tuple[tuple[int, ...], ...]
    footprint: Footprint
    slowdown: float = 1.0
    seconds: Seconds | None = None
    decisions: tuple[Decision, ...] = ()
    alternatives: tuple[Alternative, ...] = renamed("ways", default=())
    fallbacks: tuple[Fallback, ...] = renamed("ladder", default=())
    warnings: tuple[PlanWarning, ...] = ()

    def batch(self, number: int) -> tuple[Job, ...]:
        return tuple(self.jobs[index] for index in self.batches[number])

    def numbered(self) -> list[tuple[int, tuple[Job, ...]]]:
        """Every batch with its number, in the order in which they are drawn."""
        return [(number, self.batch(number)) for number in range(len(self.batches))]
