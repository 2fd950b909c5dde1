"""Memory of the host, of this process, and room on a disk: what is really available, container limits included."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sdcli.machine import cgroups

KIB = 1 << 10


class Memory(NamedTuple):
    """`available` can be used without swapping out other programs; `limited`: a container sets the bounds."""

    total: int
    available: int
    limited: bool = False


def read(root: Path = Path("/"), platform: str = sys.platform) -> Memory:
    """Host memory as this process may use it; (0, 0) where the system does not report it."""
    if platform == "win32":
        return _windows()
    host = _host() if platform == "darwin" else _within_cgroup(_meminfo(root), root)
    left = address_space_left(root)
    return host if left is None else host._replace(available=min(host.available, left))


def address_space_left(root: Path = Path("/")) -> int | None:
    """Bytes this process may still map under a limit of its own (`ulimit -v`); None where there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    return max(0, limit - _status(root).get("VmSize", 0))


def _meminfo(root: Path) -> Memory:
    fields: dict[str, int] = {}
    for line in cgroups.read_text(root / "proc/meminfo").splitlines():
        match = re.match(r"(\w+):\s+(\d+) kB", line)
        if match:
            fields[match[1]] = int(match[2]) * KIB
    # Kernels before 3.14 and some sandboxes have no MemAvailable.
    estimate = sum(fields.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
    total = fields.get("MemTotal", 0)
    return Memory(total=total, available=min(total, fields.get("MemAvailable", estimate)))


def _within_cgroup(memory: Memory, root: Path) -> Memory:
    group = cgroups.find("memory", root)
    if group is None:
        return memory
    total, available, limited = memory.total, memory.available, False
    for folder in group.folders:
        limit, used = _limit(folder, group.version), _used(folder, group.version)
        if limit is None:
            continue
        if not memory.total or limit < memory.total:
            limited = True
            total = min(total, limit) if total else limit
        if used is not None:
            available = min(available, max(0, limit - used)) if memory.total else max(0, limit - used)
    return Memory(total=total, available=min(total, available), limited=limited)


def _limit(folder: Path, version: int) -> int | None:
    if version == 2:
        # Above memory.high a process is not killed but slowed to a crawl, so it is as good as a limit.
        limits = [cgroups.number(folder, name) for name in ("memory.max", "memory.high")]
    else:
        limits = [cgroups.number(folder, "memory.limit_in_bytes"), _stat(folder).get("hierarchical_memory_limit")]
    return min((limit for limit in limits if limit is not None and limit < 1 << 60), default=None)


def _used(folder: Path, version: int) -> int | None:
    """Bytes that are not available. The file cache is: the kernel gives it up before it kills anyone, and counts
    it as available itself (MemAvailable). Freshly read weights would otherwise count against their own model."""
    used = cgroups.number(folder, "memory.current" if version == 2 else "memory.usage_in_bytes")
    if used is None:
        return None
    stat = _stat(folder)
    names = ("inactive_file", "active_file")
    if version == 1:  # total_: children included, as in usage
        names = ("total_inactive_file", "total_active_file")
    return max(0, used - sum(stat.get(name, 0) for name in names) - stat.get("slab_reclaimable", 0))


def _stat(folder: Path) -> dict[str, int]:
    lines = [line.split() for line in cgroups.read_text(folder / "memory.stat").splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}


# --- macOS and Windows


def _host() -> Memory:
    import psutil

    memory = psutil.virtual_memory()
    return Memory(total=memory.total, available=memory.available)


def _windows() -> Memory:
    host, left = _host(), _commit_left()
    return host if left is None else host._replace(available=min(host.available, left))


def _commit_left() -> int | None:
    """Windows refuses what the page file cannot back, however much RAM is free; psutil does not report that."""
    import ctypes

    status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its length; bytes of RAM, free, of page file, free …
    try:
        return status[4] if ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(status) else None  # type: ignore[attr-defined,unused-ignore]
    except (AttributeError, OSError):
        return None


def apple_limit(total: int) -> int:
    """How much of the shared memory macOS lets the GPU use by default: two thirds up to 36 GiB, then 3/4."""
    return total * 2 // 3 if total <= 36 << 30 else total * 3 // 4


def output(*command: str) -> str:
    """What a small system tool prints; empty where it is missing or fails."""
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


# --- this process


def resident(root: Path = Path("/"), platform: str = sys.platform) -> int | None:
    """Bytes of RAM this process uses now, or None."""
    return _process().rss if platform in ("darwin", "win32") else _status(root).get("VmRSS")


def peak(root: Path = Path("/"), platform: str = sys.platform) -> int | None:
    """The most RAM it used: since `reset_peak()` where that works, else since the process began."""
    if platform == "win32":
        return getattr(_process(), "peak_wset", None)
    return _status(root).get("VmHWM") or _max_rss(platform)


def reset_peak(root: Path = Path("/"), platform: str = sys.platform) -> bool:
    """Let `peak()` start again from the present use; False where the system cannot."""
    if platform in ("darwin", "win32"):
        return False
    try:
        (root / "proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    status = _status(root)
    high, now = status.get("VmHWM"), status.get("VmRSS")
    # Some sandboxes accept the write and do nothing. The two counters are read a moment apart, hence the slack.
    return high is not None and now is not None and high - now <= 8 << 20


def _status(root: Path) -> dict[str, int]:
    text = cgroups.read_text(root / "proc/self/status")
    return {name: int(value) * KIB for name, value in re.findall(r"^(Vm\w+):\s+(\d+) kB", text, re.MULTILINE)}


def _max_rss(platform: str) -> int | None:
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (most if platform == "darwin" else most * KIB) or None  # the one place macOS counts in bytes


def _process() -> Any:
    import psutil

    return psutil.Process().memory_info()


# --- disk


def disk_free(path: Path | str, usage: Callable[[Path], int] | None = None) -> int | None:
    """Free bytes where `path` is or would be made: its nearest existing parent decides."""
    target = Path(os.path.expanduser(path)).absolute()
    for folder in (target, *target.parents):
        try:
            return (usage or _free)(folder)
        except (OSError, ValueError):
            continue
    return None


def _free(folder: Path) -> int:
    import shutil

    return shutil.disk_usage(folder).free
