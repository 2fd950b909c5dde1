"""Where it will run: devices, memory free now, cores and instruction sets. Values only; survey.py reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from sdcli.schema import transient


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device and the host around it. Bytes; on a CPU `total` and `free` are the host's."""

    device: str  # as torch names it: cpu | cuda:0 | xpu:0 | mps
    name: str
    source: str  # nvml | sysfs | torch | os | as-if | ray: on another machine
    total: int
    free: int
    ram_total: int
    ram_free: int
    amd: bool = False  # torch calls AMD's GPUs cuda too
    integrated: bool = False  # a GPU that uses the host's memory
    capability: str | None = None  # CUDA compute capability, "8.6"
    driver: str | None = None
    isa: str = ""  # avx2 | avx512 | avx512_bf16 | amx | neon …
    threads: int = 1  # physical cores this process may use
    fast_threads: int = transient(default=0)  # of them as fast as the fastest, where they are of several kinds
    dtypes: Mapping[str, str] = field(default_factory=dict)  # name → probed | assumed | unavailable
    openvino: bool = False  # whether it is installed, to compute on the CPU
    compiler: bool = False  # whether what torch.compile builds with on this device is installed
    trial: Trial | None = transient(default=None)  # of the model to be drawn with
    uuid: str | None = transient(default=None)
    notes: tuple[str, ...] = transient(default=())  # what the user should know about this device

    @cached_property
    def kind(self) -> str:
        return self.device.split(":", 1)[0]

    @property
    def backend(self) -> str:
        """What computes: cpu, mps, xpu, cuda (NVIDIA) or rocm (AMD)."""
        return "rocm" if self.amd else self.kind

    @property
    def shares_memory(self) -> bool:
        """Whether device and host are one memory, so that everything counts once."""
        return self.integrated or self.kind in ("cpu", "mps")

    @property
    def elsewhere(self) -> bool:
        """Whether it is another machine's: nothing can be tried on it from here."""
        return self.source == "ray"

    def tried(self, dtype: str) -> Trial | None:
        """The trial, if it was made in this number type."""
        return self.trial if self.trial is not None and self.trial.dtype == dtype else None

    @property
    def best_threads(self) -> int:
        """As many as were fastest in the trial; all, if nothing was tried."""
        return (self.trial.threads if self.trial is not None else 0) or self.threads

    def fingerprint(self, versions: Mapping[str, str]) -> str:
        """Equal where measurements may be compared: the same device, host and software."""
        parts = [
            self.backend, self.name, self.capability or "", str(self.total >> 20), self.isa, str(self.threads),
            str(self.ram_total >> 20),
        ]  # fmt: skip
        parts += [f"{name} {version}" for name, version in sorted(versions.items())]
        return " | ".join(parts)


@dataclass(frozen=True, kw_only=True)
class QueryBlock:
    """How many queries are computed at once in attention over so many keys."""

    keys: int
    queries: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a short race between the ways to compute one model's layers found on this CPU: seconds in a UNet call. A way
    that is not there does not work here."""

    dtype: str
    threads: int = 0  # the fastest number of them, where cores are of several kinds
    attention: Mapping[str, float] = field(default_factory=dict)  # fused | blocked
    execution: Mapping[str, float] = field(default_factory=dict)  # eager | packed
    guidance: Mapping[str, float] = field(default_factory=dict)  # batched | in-turn, of the heaviest layers
    blocks: tuple[QueryBlock, ...] = ()  # of the attentions that blocks are faster for
    seconds: float = 0.0  # how long the trial took


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a short test of a device found: the dtypes that give right results and are worth using there."""

    dtypes: Mapping[str, str] = field(default_factory=dict)  # name → probed | unavailable
    ratio: Mapping[str, float] = field(default_factory=dict)  # name → time relative to fp32
    seconds: float = 0.0  # how long the probe took


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A notice to the user, with a command to paste."""

    code: str
    message: str
    hint: str
