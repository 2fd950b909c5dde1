"""Where it will run: devices, memory free now, cores and instruction sets; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sdcli.schema import live

if TYPE_CHECKING:
    from sdcli.machine.survey import Survey

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
    notes: tuple[str, ...] = live(default=())  # what a person should know of this device

    @property
    def kind(self) -> str:
        return self.device.split(":", 1)[0]


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One thing a person should hear, with a line to paste."""

    code: str
    message: str
    hint: str


# Whoever needs only the types above, or plans for a machine that is not there, does not pay for looking at this one.


def detect(
    device: str = "auto", environment: Mapping[str, str] | None = None, survey: Survey | None = None
) -> Hardware:
    """The device that was asked for. auto: the first card torch can use, else Apple's GPU, else the CPU."""
    from sdcli.machine import survey as surveys

    return surveys.choose(device, survey or surveys.look(environment))


def devices(environment: Mapping[str, str] | None = None, survey: Survey | None = None) -> tuple[Hardware, ...]:
    """All devices that can be used, the one `auto` takes first, the CPU last."""
    from sdcli.machine import survey as surveys

    return surveys.usable(survey or surveys.look(environment))


def gpu_warning(
    hardware: Hardware,
    environment: Mapping[str, str] | None = None,
    survey: Survey | None = None,
    asked: str = "auto",
) -> Notice | None:
    """Why the plan is for the CPU although there is an NVIDIA card; None where the CPU was asked for."""
    from sdcli.machine import survey as surveys

    if hardware.kind != "cpu" or hardware.source == "as-if" or asked.strip().lower() == "cpu":
        return None
    return surveys.gpu_problem(survey or surveys.look(environment))
