"""Which control groups this process is in, v1 or v2: containers and job schedulers set their limits there."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Group(NamedTuple):
    """One controller's folders: the process's own first, then its parents up to the mount."""

    version: int  # 1 or 2
    folders: tuple[Path, ...]


def find(controller: str, root: Path = Path("/")) -> Group | None:
    """The group that governs `controller` (memory, cpu), or None where there is none to read."""
    memberships = _memberships(root)
    mounts = _mounts(root)
    if controller in memberships:
        group = _group(1, memberships[controller], [m for m in mounts if controller in m.controllers], root)
        if group is not None:
            return group
    if "" in memberships:
        return _group(2, memberships[""], [m for m in mounts if m.version == 2], root)
    return None


def number(folder: Path, name: str) -> int | None:
    """The integer in a control file; None for `max`, an absent file or an unlimited v1 value."""
    words = read_text(folder / name).split()
    try:
        value = int(words[0]) if words else None
    except ValueError:
        return None
    return None if value is None or value < 0 or value >= 1 << 60 else value


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


class _Mount(NamedTuple):
    version: int
    within: str  # the part of the hierarchy that is mounted
    folder: str
    controllers: frozenset[str]


def _memberships(root: Path) -> dict[str, str]:
    """Controller → path; v2's single hierarchy under the empty name."""
    paths: dict[str, str] = {}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            paths[""] = path
        else:
            for controller in filter(None, controllers.split(",")):
                paths[controller] = path
    return paths


def _mounts(root: Path) -> list[_Mount]:
    mounts = []
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        before, dash, after = line.partition(" - ")
        fields, source = before.split(" "), after.split(" ")
        if not dash or len(fields) < 5 or not source[0].startswith("cgroup"):
            continue
        version = 2 if source[0] == "cgroup2" else 1
        options = frozenset(source[-1].split(",")) if version == 1 else frozenset()
        mounts.append(_Mount(version, _unescaped(fields[3]), _unescaped(fields[4]), options))
    return mounts


def _unescaped(text: str) -> str:
    return text.replace(r"\040", " ").replace(r"\011", "\t").replace(r"\012", "\n").replace(r"\134", "\\")


def _group(version: int, path: str, mounts: list[_Mount], root: Path) -> Group | None:
    # The mount that shows our part of the hierarchy is better than one that shows another.
    for mount in sorted(mounts, key=lambda m: _below(path, m.within) is None):
        top = root / mount.folder.lstrip("/")
        if not top.is_dir():
            continue
        folder = top / (_below(path, mount.within) or "")
        # A container without its own cgroup namespace names a path that exists only outside.
        folder = folder if folder.is_dir() else top
        folders = [folder]
        while folders[-1] != top:
            folders.append(folders[-1].parent)
        return Group(version, tuple(folders))
    return None


def _below(path: str, within: str) -> str | None:
    """`path` relative to `within`, or None where it lies elsewhere."""
    parts = [part for part in path.split("/") if part]
    top = [part for part in within.split("/") if part]
    if ".." in parts or parts[: len(top)] != top:
        return None
    return "/".join(parts[len(top) :])
