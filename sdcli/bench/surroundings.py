"""What else can change a figure: other programs, clocks, heat, power; and which code and machine produced it."""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from sdcli.machine import cgroups, processor
from sdcli.machine.environment import environment
from sdcli.machine.hardware import Hardware
from sdcli.machine.memory import output
from sdcli.schema import renamed

BUSY_LOAD = 0.5  # programs running or waiting per core before we begin
WORKING = 0.1  # seconds into an image, when its steps run
FOREIGN_SHARE = 0.1  # of the processor's time, taken by others while we measure
# What changes how torch computes, from outside; none of them holds a path.
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MALLOC_ARENA_MAX", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
    "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDNN_BENCHMARK", "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip
# Bits of NVML's reasons for lower clocks that mean the GPU was throttled by heat or power.
THROTTLING = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """A GPU at one moment, as its driver reports it; None where it does not."""

    clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    celsius: int | None = None
    watts: float | None = None
    throttled_by: tuple[str, ...] = renamed("held_back", default=())
    others: int = 0  # programs computing there that are not ours


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Processor time since boot on the allowed cores, in seconds of one core: all of it, and what was not idle."""

    total: float
    busy: float


# --- where and what


def provenance(hardware: Hardware, model_hash: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that can be read without torch and helps to check a figure; no names, no paths."""
    chip = processor.read()
    return {
        **environment(hardware),
        "machine": machine(hardware),
        "cores": chip.cores,
        "cores_allowed": len(processor.allowed_cores()),
        "ram_total": hardware.ram_total,
        "capability": hardware.capability,
        "governor": governor(),
        "battery": on_battery(),
        "load": chip.load,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "git": revision(),
        "model_hash": model_hash,
        "options": dict(options),
    }


def machine(hardware: Hardware) -> str:
    """Equal where two results may be compared. Versions are left out: they are what is often compared."""
    parts = [
        hardware.kind,
        hardware.name,
        str(hardware.total >> 20),
        processor.read().name,
        hardware.isa,
        str(hardware.ram_total >> 20),
    ]
    return sha256("|".join([*parts, platform.system()]).encode()).hexdigest()[:16]


def revision() -> str | None:
    """The commit of this sdcli, with + where files differ from it; None for an installed one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD").strip()
    changed = output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", "sdcli").strip()
    return (commit + ("+" if changed else "")) or None


def governor(root: Path = Path("/")) -> str | None:
    return cgroups.read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None


def _steers_itself(root: Path = Path("/")) -> bool:
    """Drivers whose "powersave" is the usual mode and goes to full speed under load."""
    driver = cgroups.read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver").strip()
    return driver in ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")


def on_battery(root: Path = Path("/")) -> bool | None:
    """Whether a battery is being emptied; None if there is none."""
    try:
        supplies = sorted((root / "sys/class/power_supply").iterdir())
    except OSError:
        return None
    states = [cgroups.read_text(supply / "status").strip() for supply in supplies]
    reported = [state for state in states if state]
    return "Discharging" in reported if reported else None


# --- the machine now


def moment(root: Path = Path("/"), cores: frozenset[int] | None = None) -> Moment | None:
    """From /proc/stat; None elsewhere. Time that a host gave to others counts as busy."""
    names = {f"cpu{number}" for number in (processor.allowed_cores() if cores is None else cores)}
    rows = [line.split() for line in cgroups.read_text(root / "proc/stat").splitlines()]
    counters = [row[1:9] for row in rows if len(row) > 5 and row[0] in names]
    if not counters or not all(word.isdigit() for row in counters for word in row):
        return None
    ticks = [[int(word) for word in row] for row in counters]
    rate = os.sysconf("SC_CLK_TCK")
    total = sum(map(sum, ticks)) / rate
    return Moment(total=total, busy=total - sum(row[3] + row[4] for row in ticks) / rate)


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The processor at one moment: its fastest core's clock, and how often heat has slowed cores down since boot."""

    mhz: int | None = None
    slowed_down: int | None = None


def clock(root: Path = Path("/")) -> Clock:
    """What Linux reports; on a virtual machine often nothing."""
    folder = root / "sys/devices/system/cpu"
    clocks = [
        cgroups.read_text(folder / f"cpu{number}/cpufreq/scaling_cur_freq").strip()
        for number in processor.allowed_cores()
    ]
    counts = [
        cgroups.read_text(folder / f"cpu{number}/thermal_throttle/core_throttle_count").strip()
        for number in processor.allowed_cores()
    ]
    khz = [int(text) for text in clocks if text.isdigit()]
    slowed = [int(text) for text in counts if text.isdigit()]
    if not khz:
        lines = cgroups.read_text(root / "proc/cpuinfo").splitlines()
        khz = [int(float(line.partition(":")[2]) * 1000) for line in lines if re.match(r"cpu MHz\s*: *[\d.]+$", line)]
    return Clock(mhz=max(khz) // 1000 if khz else None, slowed_down=sum(slowed) if slowed else None)


def own_seconds(pids: Iterable[int], root: Path = Path("/")) -> float:
    """Processor time of this process and of `pids`, so far."""
    times = os.times()
    total = times.user + times.system
    rate = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    for pid in pids:
        fields = cgroups.read_text(root / f"proc/{pid}/stat").rpartition(")")[2].split()
        if len(fields) > 12:
            total += (int(fields[11]) + int(fields[12])) / rate
    return total


def gpu_state(hardware: Hardware, ours: Iterable[int] = ()) -> GpuState | None:
    """The GPU now, from the driver's own tool; only between rounds, since the query takes a moment."""
    if hardware.backend != "cuda":
        return None
    which = ("-i", hardware.uuid) if hardware.uuid else ()
    fields = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    line = output("nvidia-smi", *which, f"--query-gpu={fields}", "--format=csv,noheader,nounits").partition("\n")[0]
    words = [word.strip() for word in line.split(",")]
    if len(words) != 5:
        return None
    running = output("nvidia-smi", *which, "--query-compute-apps=pid", "--format=csv,noheader").split()
    return GpuState(
        clock_mhz=_whole(words[0]), memory_clock_mhz=_whole(words[1]), celsius=_whole(words[2]),
        watts=_number(words[3]), throttled_by=throttled_by(words[4]),
        others=others({int(pid) for pid in running if pid.isdigit()}, set(ours)),
    )  # fmt: skip


def others(running: set[int], own: set[int]) -> int:
    """How many programs are not ours. In a container the driver reports other process ids: then only numbers count."""
    return len(running - own) if running & own else max(0, len(running) - len(own))


def throttled_by(mask: str) -> tuple[str, ...]:
    try:
        bits = int(mask, 16)
    except ValueError:
        return ()
    return tuple(name for bit, name in THROTTLING.items() if bits & bit)


def _whole(word: str) -> int | None:
    return int(word) if word.isdigit() else None


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


class Watch:
    """Checks the machine before, between and after rounds; `reasons` says why it was not quiet."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        chip = processor.read()
        self.cores = max(1, len(processor.allowed_cores()))
        self.load = chip.load
        self.governor, self.battery = governor(), on_battery()
        self.gpus: list[GpuState] = []
        self.clocks: list[Clock] = [replace(clock(), mhz=None)]
        self.foreign = self.observed = 0.0
        self._before: tuple[Moment, float] | None = None
        self._pids: tuple[int, ...] = ()

    def start(self, pids: Iterable[int]) -> None:
        """Begins a period; these processes and this one are ours."""
        self._pids = tuple(pids)
        now = moment()
        self._before = (now, own_seconds(self._pids)) if now else None

    def stop(self) -> None:
        """Ends the period, while all of them are still alive."""
        now = moment()
        if self._before is not None and now is not None:
            then, own = self._before
            others = (now.busy - then.busy) - (own_seconds(self._pids) - own)
            self.foreign += max(0.0, others)
            self.observed += now.total - then.total
        self._before = None
        self.clocks.append(replace(clock(), mhz=None))  # nothing runs now, so clocks mean nothing
        state = gpu_state(self.hardware, self._pids)
        if state is not None:
            self.gpus.append(replace(state, clock_mhz=None, memory_clock_mhz=None))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Around unmeasured work that resembles what is measured: records clocks, heat and other programs."""
        looking = threading.Thread(target=self._look, daemon=True)
        looking.start()
        try:
            yield
        finally:
            looking.join()

    def _look(self) -> None:
        time.sleep(WORKING)
        self.clocks.append(clock())
        state = gpu_state(self.hardware, self._pids)
        if state is not None:
            self.gpus.append(state)

    @property
    def foreign_share(self) -> float | None:
        return self.foreign / self.observed if self.observed else None

    def reasons(self) -> tuple[str, ...]:
        reasons = []
        # The load of the last minute may be our own, of a measurement just over: only where nothing better is known.
        if self.foreign_share is None and self.load is not None and self.load / self.cores > BUSY_LOAD:
            reasons.append(f"load {self.load:.1f} on {self.cores} cores before the start")
        if self.foreign_share is not None and self.foreign_share > FOREIGN_SHARE:
            reasons.append(f"other programs took {self.foreign_share * 100:.0f} % of the processor")
        if any(gpu.others for gpu in self.gpus):
            reasons.append("other programs used the GPU")
        throttled = sorted({name for gpu in self.gpus for name in gpu.throttled_by})
        if throttled:
            reasons.append(f"the GPU was throttled: {', '.join(throttled)}")
        slowed = [one.slowed_down for one in self.clocks if one.slowed_down is not None]
        if slowed and slowed[-1] > slowed[0]:
            reasons.append("heat slowed the processor down")
        if self.governor == "powersave" and self.hardware.kind == "cpu" and not _steers_itself():
            reasons.append("the processor's governor is powersave")
        if self.battery:
            reasons.append("on battery")
        return tuple(reasons)


def now_utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
