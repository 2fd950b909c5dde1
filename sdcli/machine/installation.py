"""How sdcli and torch were installed, read from files alone: can this torch use this GPU, and if not, the
command that fixes it for this kind of installation."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdcli import data
from sdcli.machine.cgroups import read_text
from sdcli.machine.nvml import Gpu, Nvidia
from sdcli.machine.packages import Torch, folder_of, version_of
from sdcli.machine.sysfs import AMD, SysfsGpu
from sdcli.terminal import quoted

DISTRIBUTION = "sdcli-diffusers"
WHEELS = "https://download.pytorch.org/whl/"  # torch's own address for its builds, as its documentation gives it


@dataclass(frozen=True, kw_only=True)
class CudaBuild:
    """What a torch built for one CUDA version runs on."""

    tag: str  # as in the wheel's version, cu126
    driver: int  # lowest major version of the driver
    least: float  # compute capability
    most: float
    first: tuple[int, int]  # torch versions that were built for it
    last: tuple[int, int] | None = None


# PyTorch's own support matrix for 2.10-2.14, Linux and Windows.
BUILDS = (
    CudaBuild(tag="cu132", driver=580, least=7.5, most=12.9, first=(2, 12)),
    CudaBuild(tag="cu130", driver=580, least=7.5, most=12.9, first=(2, 9)),
    CudaBuild(tag="cu129", driver=525, least=7.5, most=12.9, first=(2, 8), last=(2, 11)),
    CudaBuild(tag="cu128", driver=525, least=7.5, most=12.9, first=(2, 7), last=(2, 11)),
    CudaBuild(tag="cu126", driver=525, least=5.0, most=9.9, first=(2, 6), last=(2, 14)),
)
ADVISED = ("cu130", "cu126", "cu128")  # in the order they are tried
LOWEST_DRIVER = 525


@dataclass(frozen=True, kw_only=True)
class OtherBuild:
    """A torch for the GPUs of another maker, on Linux."""

    tag: str
    first: tuple[int, int]
    last: tuple[int, int] | None = None


# As PyTorch's build scripts have them for 2.10-2.14.
ROCM_BUILD = OtherBuild(tag="rocm7.2", first=(2, 11))
ROCM_ARCHITECTURES = (
    "gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx950", "gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1150",
    "gfx1151", "gfx1200", "gfx1201",
)  # fmt: skip
XPU_BUILD = OtherBuild(tag="xpu", first=(2, 8))
XPU_DRIVER = "libze_intel_gpu.so.1"  # Level Zero's for Intel's GPUs, which torch's XPU build does not bring along


# --- whether this torch can use a GPU


def unusable(torch: Torch | None, gpu: Gpu, nvidia: Nvidia) -> str | None:
    """Why this torch cannot use this GPU; None where it can."""
    if torch is None or not torch.cuda:
        return _other_build(torch)
    if not _driver_runs(nvidia, torch.cuda):
        return f"torch {torch.version} needs driver {_driver_for(torch.cuda)} or newer, found {nvidia.driver or 'none'}"
    build = _build_of(torch)
    level = _number(gpu.capability)
    if build is None or level is None or build.least <= level <= build.most:
        return None
    return f"torch {torch.version} is not built for this GPU's compute capability {gpu.capability}"


def _other_build(torch: Torch | None) -> str:
    if torch is None:
        return "torch is not installed"
    article = "an" if torch.flavour == "XPU" else "a"
    return f"torch {torch.version} is {article} {torch.flavour} build"


def unusable_by_others(torch: Torch | None, gpu: SysfsGpu, loads: Callable[[str], bool] | None = None) -> str | None:
    """The same for a GPU of AMD or Intel."""
    if gpu.lacking is not None:
        return gpu.lacking
    if torch is None or not (torch.hip if gpu.vendor == AMD else torch.xpu):
        return _other_build(torch)
    if gpu.number is None:
        return "ROCR_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES hides it"
    if gpu.vendor == AMD:
        known = gpu.architecture in ROCM_ARCHITECTURES
        return None if known else f"torch {torch.version} is not built for {gpu.architecture}"
    return None if (loads or _loads)(XPU_DRIVER) else f"Intel's compute driver ({XPU_DRIVER}) is not installed"


def _loads(library: str) -> bool:
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _driver_runs(nvidia: Nvidia, cuda: str) -> bool:
    """A driver runs every CUDA of its major version and older ones; the CUDA version it reports counts first."""
    major = _major(cuda)
    if nvidia.cuda is not None:
        return _major(nvidia.cuda) >= major
    return nvidia.driver is None or _major(nvidia.driver) >= _driver_for(cuda)


def _driver_for(cuda: str) -> int:
    """The first driver of a CUDA major version; all its minor versions run on it."""
    return {10: 410, 11: 450, 12: LOWEST_DRIVER}.get(_major(cuda), 580)


def _build_of(torch: Torch) -> CudaBuild | None:
    tag = "cu" + (torch.cuda or "").replace(".", "")
    build = next((build for build in BUILDS if build.tag == tag), None)
    if build is not None and build.tag in ("cu128", "cu129") and version_of(torch.version)[:2] < (2, 11):
        return CudaBuild(tag=tag, driver=build.driver, least=7.0, most=build.most, first=build.first, last=build.last)
    return build


def advised(gpu: Gpu, nvidia: Nvidia) -> CudaBuild | None:
    """The build of torch for this GPU and driver; None where only another driver, or none at all, would do."""
    level = _number(gpu.capability)
    driver = _driver_major(nvidia)
    for tag in ADVISED:
        build = next(build for build in BUILDS if build.tag == tag)
        fits = level is None or build.least <= level <= build.most
        if fits and (driver is None or driver >= build.driver):
            return build
    return None


def why_no_build(gpu: Gpu) -> str:
    """Why no build of torch would do."""
    level = _number(gpu.capability)
    if level is not None and level < min(build.least for build in BUILDS):
        return f"no current torch is built for its compute capability {gpu.capability}"
    return f"it needs NVIDIA driver {LOWEST_DRIVER} or newer"


def _driver_major(nvidia: Nvidia) -> int | None:
    if nvidia.cuda is not None:  # compatibility packages let an older driver run a newer CUDA
        return _driver_for(nvidia.cuda)
    return _major(nvidia.driver) if nvidia.driver else None


def _major(version: str) -> int:
    return version_of(version)[0] if version_of(version) else 0


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


# --- which kind of installation


@dataclass(frozen=True, kw_only=True)
class Installation:
    kind: str  # checkout | pipx | uv tool | conda | venv | system
    prefix: Path
    python: str
    uv: bool = False  # made by uv: may have no pip of its own


def find(prefix: Path | None = None, base: Path | None = None, python: str | None = None) -> Installation:
    """This installation, recognised by the files each tool leaves in its environment."""
    prefix = Path(sys.prefix) if prefix is None else prefix
    base = Path(sys.base_prefix) if base is None else base
    return Installation(
        kind=_kind(prefix, base),
        prefix=prefix,
        python=python or sys.executable,
        uv=re.search(r"^uv\s*=", read_text(prefix / "pyvenv.cfg"), re.MULTILINE) is not None,
    )


def _kind(prefix: Path, base: Path) -> str:
    if _checkout_of(prefix) is not None:
        return "checkout"
    for mark, kind in (("pipx_metadata.json", "pipx"), ("uv-receipt.toml", "uv tool"), ("conda-meta", "conda")):
        if (prefix / mark).exists():
            return kind
    return "venv" if prefix != base else "system"


def _checkout_of(prefix: Path) -> Path | None:
    """The checkout whose scripts/sdcli made this environment."""
    for folder in (prefix, *prefix.parents):
        if folder.name == ".sdcli" and (folder.parent / "scripts" / "sdcli").is_file():
            return folder.parent
    return None


def source() -> str:
    """What to install again: a folder, a git address or the distribution, as its own record says (PEP 610)."""
    import json
    from importlib import metadata
    from urllib.parse import urlparse
    from urllib.request import url2pathname

    try:
        record = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError, OSError):
        return DISTRIBUTION
    url = str(record.get("url", "")) if isinstance(record, dict) else ""
    if url.startswith("file:"):
        return url2pathname(urlparse(url).path)
    if url and "vcs_info" in record:
        return f"{record['vcs_info'].get('vcs', 'git')}+{url}"
    return url or DISTRIBUTION


# --- the command that fixes it


def fix(
    installation: Installation,
    torch: Torch | None,
    gpu: Gpu,
    nvidia: Nvidia,
    *,
    has_pip: bool | None = None,
    origin: str | None = None,
) -> str | None:
    """One line to paste that gives this installation a torch for this GPU; None where no torch would help."""
    build = advised(gpu, nvidia)
    if build is None:
        return None
    if installation.kind == "conda" and _installer("torch") == "conda":
        return command_line(["conda", "install", "-p", str(installation.prefix), "-c", "conda-forge", "pytorch-gpu"])
    # uv's own choice considers only the driver, so for an old GPU the build is named.
    backend = "auto" if build.tag == ADVISED[0] else build.tag
    return _install(installation, torch, build, backend, has_pip, origin)


def adding(
    extra: str, installation: Installation, *, has_pip: bool | None = None, origin: str | None = None
) -> str:  # fmt: skip
    """One line to paste that adds an optional part of sdcli to this installation."""
    needs, kind = list(data.extra(extra)), installation.kind
    if kind == "uv tool":
        words = [
            "uv",
            "tool",
            "install",
            *(word for need in needs for word in ("--with", need)),
            _here(origin or source()),
        ]
    elif kind == "pipx":
        words = ["pipx", "inject", DISTRIBUTION, *needs]
    elif _uv_alone(installation, has_pip):
        words = ["uv", "pip", "install", "--python", installation.python, *needs]
    else:
        words = [installation.python, "-m", "pip", "install", *needs, *_even_if_managed(kind)]
    return command_line(words)


def _uv_alone(installation: Installation, has_pip: bool | None) -> bool:
    """Whether uv made it, and without a pip."""
    return installation.uv and not (folder_of("pip") if has_pip is None else has_pip)


def _even_if_managed(kind: str) -> list[str]:
    return ["--break-system-packages"] if kind == "system" and _managed() else []


def worthwhile(gpu: SysfsGpu) -> bool:
    """Whether a GPU of AMD or Intel is worth another torch: there is one for it, and it has memory of its own."""
    supported = gpu.vendor != AMD or gpu.architecture in ROCM_ARCHITECTURES
    return supported and not gpu.integrated


def other_build(gpu: SysfsGpu) -> tuple[str, str]:
    """Its maker, and the tag of the torch for it."""
    return ("AMD", ROCM_BUILD.tag) if gpu.vendor == AMD else ("Intel", XPU_BUILD.tag)


def fix_for_others(
    installation: Installation,
    torch: Torch | None,
    gpu: SysfsGpu,
    *,
    has_pip: bool | None = None,
    origin: str | None = None,
) -> str | None:
    """The same for a GPU of AMD or Intel."""
    if gpu.lacking is not None:
        return gpu.remedy
    if gpu.vendor == AMD:
        if gpu.architecture not in ROCM_ARCHITECTURES or (torch is not None and torch.hip):
            return None
    elif torch is not None and torch.xpu:
        return "sudo apt install libze-intel-gpu1 libze1"
    build = ROCM_BUILD if gpu.vendor == AMD else XPU_BUILD
    return _install(installation, torch, build, build.tag, has_pip, origin)


def _install(
    installation: Installation,
    torch: Torch | None,
    build: CudaBuild | OtherBuild,
    backend: str,
    has_pip: bool | None,
    origin: str | None,
) -> str:
    """The line for this kind of installation; `backend` is what uv calls the build."""
    requirement = _requirement(torch, build)
    index = WHEELS + build.tag
    python, kind = installation.python, installation.kind
    if kind == "uv tool":
        words = ["uv", "tool", "install", "--reinstall", f"--torch-backend={backend}", _here(origin or source())]
    elif kind == "pipx":
        words = ["pipx", "runpip", DISTRIBUTION, "install", requirement, "--index-url", index]
    elif _uv_alone(installation, has_pip):
        words = ["uv", "pip", "install", "--python", python, "--reinstall-package", "torch"]
        words += [f"--torch-backend={backend}", requirement.split("+")[0]]
    else:
        words = [python, "-m", "pip", "install", requirement, "--index-url", index, *_even_if_managed(kind)]
    return command_line(words)


def _requirement(torch: Torch | None, build: CudaBuild | OtherBuild) -> str:
    """The same torch version in another build, so that nothing else changes; where there is none, a tested version."""
    version = torch.version.split("+")[0] if torch is not None else ""
    released = re.fullmatch(r"\d+\.\d+\.\d+", version) is not None
    if not (released and _built(build, version)):
        version = data.tested_versions()["torch"]
    if not _built(build, version) and build.last is not None:
        version = f"{build.last[0]}.{build.last[1]}.0"
    return f"torch=={version}+{build.tag}"


def _built(build: CudaBuild | OtherBuild, version: str) -> bool:
    minor = version_of(version)[:2]
    return build.first <= minor and (build.last is None or minor <= build.last)


def _installer(name: str) -> str:
    """Which tool installed a package, by its own record."""
    from importlib import metadata

    try:
        return (metadata.distribution(name).read_text("INSTALLER") or "").strip()
    except (metadata.PackageNotFoundError, OSError):
        return ""


def _managed() -> bool:
    """Whether the system keeps pip out of this Python (PEP 668)."""
    import sysconfig

    return Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()


def _here(origin: str) -> str:
    try:
        return "." if Path(origin).resolve() == Path.cwd() else origin
    except OSError:
        return origin


def command_line(words: list[str]) -> str:
    """As one would type it, quoted for this system's shell."""
    return " ".join(map(quoted, words))
