"""Small /proc and /sys trees: what Linux shows a process, in a folder."""

from __future__ import annotations

from pathlib import Path

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def meminfo(total: int, available: int) -> str:
    return f"MemTotal:       {total // 1024} kB\nMemFree:        1024 kB\nMemAvailable:   {available // 1024} kB\n"


def cgroup2(root: Path, path: str, groups: dict[str, dict[str, str]], within: str = "/") -> Path:
    """A v2 hierarchy with this process in `path`; `groups` maps folders below the mount to their files."""
    files = {
        "proc/self/cgroup": f"0::{path}\n",
        "proc/self/mountinfo": f"30 23 0:26 {within} /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
    }
    for group, contents in groups.items():
        files |= {f"sys/fs/cgroup/{group}/{name}": text for name, text in contents.items()}
    return write(root, files)


def cgroup1(root: Path, controller: str, path: str, groups: dict[str, dict[str, str]], within: str = "/") -> Path:
    mount = f"/sys/fs/cgroup/{controller}"
    files = {
        "proc/self/cgroup": f"5:pids:/\n4:{controller}:{path}\n0::/\n",
        "proc/self/mountinfo": f"35 31 0:32 {within} {mount} rw,relatime - cgroup cgroup rw,{controller}\n",
    }
    for group, contents in groups.items():
        files |= {f"{mount.lstrip('/')}/{group}/{name}": text for name, text in contents.items()}
    return write(root, files)


def topology(root: Path, cores: list[tuple[int, int]]) -> Path:
    """(package, core) of each logical processor."""
    return write(
        root,
        {
            f"sys/devices/system/cpu/cpu{number}/topology/{name}": f"{value}\n"
            for number, pair in enumerate(cores)
            for name, value in zip(("physical_package_id", "core_id"), pair, strict=True)
        },
    )


def cpuinfo(name: str, flags: str, count: int = 1) -> str:
    return "".join(f"processor\t: {i}\nmodel name\t: {name}\nflags\t\t: {flags}\n\n" for i in range(count))
