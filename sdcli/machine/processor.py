"""The CPU: its name, its widest instruction set, and how many physical cores this process may keep busy."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from sdcli.machine import cgroups
from sdcli.machine.memory import output

# Widest first. A name stands for all flags of its row.
_X86 = (
    ("amx", ("amx_tile", "amx_bf16")),
    ("avx512_bf16", ("avx512f", "avx512_bf16")),
    ("avx512", ("avx512f",)),
    ("avx2", ("avx2", "fma")),
    ("avx", ("avx",)),
    ("sse2", ("sse2",)),
)
_ARM = (("neon_bf16", ("asimd", "bf16")), ("neon", ("asimd",)), ("neon", ("neon",)))
_RANK = ("sse2", "avx", "avx2", "avx512", "avx512_bf16", "amx")


class Processor(NamedTuple):
    name: str
    isa: str
    cores: int  # physical, in the machine
    threads: int  # physical cores this process may use: affinity, container quota and OMP_NUM_THREADS counted in
    fast: int = 0  # of them as fast as the fastest, where there are several kinds; 0: all of one kind
    load: float | None = None  # processes running or waiting over the last minute


def read(
    root: Path = Path("/"),
    platform: str = sys.platform,
    environment: Mapping[str, str] | None = None,
    affinity: Iterable[int] | None = None,
) -> Processor:
    """The CPU as the operating system describes it; never fails, at worst one nameless core."""
    environment = os.environ if environment is None else environment
    fast = 0
    if platform == "darwin":
        name, isa, cores, threads = _mac(sysctl)
    elif platform == "win32":
        name, isa, cores, threads = _windows()
    else:
        allowed = allowed_cores() if affinity is None else frozenset(affinity)
        name, isa, cores, threads = _linux(root, allowed)
        fast = _fast(root, allowed)
    threads = max(1, _at_most(threads, environment))
    return Processor(
        name=name,
        isa=limited(isa, environment),
        cores=max(1, cores),
        threads=threads,
        fast=fast if fast < threads else 0,
        load=_load(),
    )


def limited(isa: str, environment: Mapping[str, str]) -> str:
    """The instruction set torch and oneDNN will really use, where the environment limits them."""
    if isa not in _RANK:
        return isa
    caps = []
    onednn = environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA") or ""
    if onednn:
        caps.append(_onednn(onednn.upper()))
    aten = environment.get("ATEN_CPU_CAPABILITY", "").lower()
    if aten in ("default", "avx2"):
        caps.append("sse2" if aten == "default" else "avx2")
    return min([isa, *filter(None, caps)], key=_RANK.index)


def _onednn(name: str) -> str | None:
    if "AMX" in name:
        return "amx"
    if name.startswith(("AVX10", "AVX512_CORE_FP16", "AVX512_CORE_BF16")):
        return "avx512_bf16"
    for start, isa in (("AVX512", "avx512"), ("AVX2", "avx2"), ("AVX", "avx"), ("SSE", "sse2")):
        if name.startswith(start):
            return isa
    return None


def _at_most(threads: int, environment: Mapping[str, str]) -> int:
    """OMP_NUM_THREADS is how schedulers and people say "no more than"; its first number counts."""
    limit = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(threads, int(limit)) if limit.isascii() and limit.isdigit() and int(limit) > 0 else threads


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def busy(threads: int, root: Path = Path("/"), pause: float = 0.002) -> bool:
    """Whether other programs leave fewer cores free than `threads` need now. Only Linux tells at once; elsewhere the
    load of the last minute does."""
    cores = len(allowed_cores())
    running = [count for _ in range(3) if (count := _running(root, pause)) is not None]
    others = min(running) - 1 if running else (_load() or 0.0)  # the least: what ran all the time
    return others + threads > cores + 0.5


def _running(root: Path, pause: float) -> int | None:
    """Threads that run or wait for a core, in the whole machine: of them one asks."""
    time.sleep(pause)
    words = cgroups.read_text(root / "proc/loadavg").split()
    running = words[3].partition("/")[0] if len(words) > 3 else ""
    return int(running) if running.isdigit() else None


# --- Linux


def _linux(root: Path, affinity: frozenset[int]) -> tuple[str, str, int, int]:
    blocks = _cpuinfo(cgroups.read_text(root / "proc/cpuinfo"))
    first = blocks[0] if blocks else {}
    core_of = _topology(root, blocks)
    usable = len({core_of.get(number, (-1, number)) for number in affinity}) or 1
    quota = _quota(root)
    if quota is not None:
        usable = min(usable, max(1, int(quota + 0.01)))
    cores = max(len(set(core_of.values())), usable)
    return short_name(_name(first, root)), _isa(first), cores, usable


def _fast(root: Path, affinity: frozenset[int]) -> int:
    """Physical cores of the fastest kind, where the kernel says how fast each is: by capacity (ARM, newer x86), or by
    the highest frequency, which differs by a tenth even between cores of one kind."""
    core_of = _topology(root, [])
    for file, kind in (("cpu_capacity", 0.9), ("cpufreq/cpuinfo_max_freq", 0.85)):
        speeds: dict[tuple[int, int], int] = {}
        for number in affinity:
            speed = cgroups.number(root / f"sys/devices/system/cpu/cpu{number}", file)
            if speed is not None:
                speeds[core_of.get(number, (-1, number))] = speed
        if speeds:
            return sum(speed >= kind * max(speeds.values()) for speed in speeds.values())
    return 0


def _cpuinfo(text: str) -> list[dict[str, str]]:
    blocks: list[dict[str, str]] = []
    for block in re.split(r"\n\s*\n", text):
        pairs = [line.partition(":") for line in block.splitlines() if ":" in line]
        if pairs:
            blocks.append({key.strip(): value.strip() for key, _, value in pairs})
    return blocks


def _topology(root: Path, blocks: list[dict[str, str]]) -> dict[int, tuple[int, int]]:
    """Logical processor → (package, core)."""
    cores: dict[int, tuple[int, int]] = {}
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
        package = cgroups.number(folder / "topology", "physical_package_id")
        core = cgroups.number(folder / "topology", "core_id")
        if core is not None and folder.name[3:].isdigit():
            cores[int(folder.name[3:])] = (package or 0, core)
    if cores:
        return cores
    for block in blocks:
        number, package_text, core_text = (block.get(key, "") for key in ("processor", "physical id", "core id"))
        if number.isdigit():
            core = int(core_text) if core_text.isdigit() else int(number)
            cores[int(number)] = (int(package_text) if package_text.isdigit() else 0, core)
    return cores


def allowed_cores() -> frozenset[int]:
    """The cores this process may run on; other cores do not matter."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return frozenset(range(os.cpu_count() or 1))


def _quota(root: Path) -> float | None:
    """How many CPUs' time the container may use; the smallest limit of all levels."""
    group = cgroups.find("cpu", root)
    if group is None:
        return None
    quotas = []
    for folder in group.folders:
        if group.version == 2:
            words = cgroups.read_text(folder / "cpu.max").split()
            quota, period = (words[0], words[1]) if len(words) == 2 else ("max", "")
        else:
            quota = str(cgroups.number(folder, "cpu.cfs_quota_us"))
            period = str(cgroups.number(folder, "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _isa(block: Mapping[str, str]) -> str:
    arm = set(block.get("Features", "").split())
    return _widest(_ARM, arm) if arm else _widest(_X86, set(block.get("flags", "").split()))


def _widest(table: tuple[tuple[str, tuple[str, ...]], ...], flags: set[str]) -> str:
    return next((name for name, needed in table if flags.issuperset(needed)), "")


def _name(block: Mapping[str, str], root: Path) -> str:
    for key in ("model name", "Hardware", "cpu model", "Model"):
        if block.get(key):
            return block[key]
    return cgroups.read_text(root / "proc/device-tree/model").strip("\0 \n") or "CPU"


def short_name(name: str) -> str:
    """`Ryzen 5 5600` from `AMD Ryzen 5 5600 6-Core Processor`."""
    name = re.sub(r"\((?:R|TM|C)\)|™|®", "", name, flags=re.IGNORECASE)
    name = re.sub(r"\s+@.*$|\bCPU\b|\b\d+-Core\b|\bProcessor\b", " ", name)
    words = name.split()
    if len(words) > 2 and words[0] in ("AMD", "Intel"):
        words = words[1:]
    return " ".join(words) or "CPU"


# --- macOS


def _mac(ask: Callable[[str], str]) -> tuple[str, str, int, int]:
    name = short_name(ask("machdep.cpu.brand_string"))
    cores = _integer(ask("hw.physicalcpu")) or os.cpu_count() or 1
    # Work is split evenly, so the slowest core decides: keep to the fast ones, as torch does.
    threads = _integer(ask("hw.perflevel0.physicalcpu")) or cores
    if ask("hw.optional.arm64") == "1" or name.startswith("Apple"):
        return name, "neon_bf16" if ask("hw.optional.arm.FEAT_BF16") == "1" else "neon", cores, threads
    for flag, isa in (("hw.optional.avx512f", "avx512"), ("hw.optional.avx2_0", "avx2"), ("hw.optional.avx1_0", "avx")):
        if ask(flag) == "1":
            return name, isa, cores, threads
    return name, "sse2", cores, threads


def sysctl(name: str) -> str:
    return output("/usr/sbin/sysctl", "-n", name).strip()


def _integer(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


# --- Windows


def _windows() -> tuple[str, str, int, int]:
    import psutil

    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    # Which of the allowed processors share a core is not reported, so no more are used than there are cores.
    allowed = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else []
    return short_name(_registry_name()), _windows_isa(), cores, min(cores, len(allowed) or cores)


def _registry_name() -> str:
    try:
        import winreg

        with winreg.OpenKey(  # type: ignore[attr-defined,unused-ignore]
            winreg.HKEY_LOCAL_MACHINE,  # type: ignore[attr-defined,unused-ignore]
            r"HARDWARE\DESCRIPTION\System\CentralProcessor\0",
        ) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0])  # type: ignore[attr-defined,unused-ignore]
    except (ImportError, OSError):
        return os.environ.get("PROCESSOR_IDENTIFIER", "CPU")


def _windows_isa() -> str:
    """Windows does not report bf16 instructions; a probe may find them later."""
    import ctypes

    try:
        has = ctypes.WinDLL("kernel32").IsProcessorFeaturePresent  # type: ignore[attr-defined,unused-ignore]
    except (AttributeError, OSError):
        return ""
    for number, isa in ((41, "avx512"), (40, "avx2"), (39, "avx"), (19, "neon"), (10, "sse2")):
        if has(number):
            return isa
    return ""
