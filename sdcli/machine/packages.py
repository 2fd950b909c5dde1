"""Which packages are installed and in which versions, torch among them: told from their files, none is imported."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sdcli import data
from sdcli.machine.cgroups import read_text

# Package, the beginning of its version, and what is wrong with it.
KNOWN_BAD = (
    ("torch", "2.13.0", "bf16 convolutions 4-16 times slower on some CPUs (pytorch#183815), so bf16 is probed there"),
    ("torch", "2.14.0", "fp16 products over 1,000 times slower on CPUs (pytorch#193951); fp16 is never used there"),
)


class Torch(NamedTuple):
    version: str  # 2.13.0+cpu
    cuda: str | None = None  # 12.8
    hip: str | None = None
    xpu: bool = False

    @property
    def flavour(self) -> str:
        """What it was built for: CPU, CUDA 12.8, ROCm 7.2."""
        if self.cuda:
            return f"CUDA {self.cuda}"
        if self.hip:
            return f"ROCm {self.hip}"
        return "XPU" if self.xpu else "CPU"


def torch_build(folder: Path | None = None) -> Torch | None:
    """The installed torch from its version.py, read as text; None without one."""
    folder = folder_of("torch") if folder is None else folder
    if folder is None:
        return None
    text = read_text(folder / "version.py")
    values = dict(re.findall(r"""^(\w+)\s*(?::[^=\n]*)?=\s*['"]([^'"\n]*)['"]""", text, re.MULTILINE))
    version = values.get("__version__")
    if not version:
        return None
    return Torch(
        version=version,
        cuda=values.get("cuda"),
        hip=values.get("rocm") or values.get("hip"),
        xpu=bool(values.get("xpu")) or "+xpu" in version,
    )


def has(package: str) -> bool:
    """Whether a package is installed; it is not imported."""
    return folder_of(package) is not None


def compiler(kind: str, environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> str | None:
    """The command of what torch.compile builds with, on a CPU (C++) or on NVIDIA's GPUs (C, for triton's launchers);
    None where that is not installed."""
    import shutil

    if kind == "cpu":
        usual = {"win32": ("cl",), "darwin": ("clang++",)}.get(platform, ("g++", "clang++"))
        named = environment.get("CXX")
    elif kind == "cuda" and has("triton"):
        usual, named = ("cl",) if platform == "win32" else ("gcc", "clang"), environment.get("CC")
    else:
        return None
    return next(filter(shutil.which, (named,) if named else usual), None)


def folder_of(name: str) -> Path | None:
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


# --- versions


@dataclass(frozen=True, kw_only=True)
class Version:
    """Of an installed package."""

    name: str
    version: str  # "" where it is not installed
    known_bad: str | None = None


def versions(names: Iterable[str] | None = None) -> tuple[Version, ...]:
    """Installed versions of all requirements, or of `names`, from the packages' own records; nothing is imported."""
    names = data.lowest_versions() if names is None else names
    recorded = _recorded()
    pairs = ((name, recorded.get(_normal(name)) or _from_metadata(name)) for name in names)
    return tuple(Version(name=name, version=version, known_bad=known_bad(name, version)) for name, version in pairs)


def _recorded() -> dict[str, str]:
    """Versions from the names of the .dist-info folders: ten times as fast as opening each record."""
    recorded: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in names:
            name, _, version = entry.removesuffix(".dist-info").partition("-")
            if entry.endswith(".dist-info") and version:
                recorded.setdefault(_normal(name), version)
    return recorded


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _from_metadata(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def known_bad(name: str, version: str) -> str | None:
    numbers = version_of(version)
    for package, start, reason in KNOWN_BAD:
        if name == package and numbers and numbers[: len(version_of(start))] == version_of(start):
            return reason
    return None


def below_floor(name: str, version: str) -> str | None:
    """The lowest version required, if this one is older."""
    floor = data.lowest_versions().get(name)
    if floor is None or not version_of(version):
        return None
    return floor if version_of(version) < version_of(floor) else None


def tested(installed: tuple[Version, ...]) -> bool:
    """Whether all have the minor versions that were tested together."""
    pins = data.tested_versions()
    return all(version_of(item.version)[:2] == version_of(pins[item.name])[:2] for item in installed)


def version_of(text: str) -> tuple[int, ...]:
    """2.13.0+cpu → (2, 13, 0); what follows the numbers does not count."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
