"""Where it will run: devices, memory free now, cores and instruction sets; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sdcli.schema import live

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device and the host around it. Bytes; on a CPU `total` and `free` are the host's."""

    device: str  # cpu | cuda:0 | mps
    name: str
    source: str  # nvml | os | as-if
    total: int
    free: int
    ram_total: int
    ram_free: int
    capability: str | None = None  # CUDA compute capability, "8.6"
    driver: str | None = None
    isa: str = ""  # avx2 | avx512 | avx512_bf16 | amx | neon …
    threads: int = 1  # physical cores this process may use
    dtypes: Mapping[str, str] = field(default_factory=dict)  # name → probed | assumed | unavailable
    uuid: str | None = live(default=None)
    executions: tuple[str, ...] = live(default=("eager", "compile"))  # ways to launch the UNet this installation has

    @property
    def kind(self) -> str:
        return self.device.split(":", 1)[0]
