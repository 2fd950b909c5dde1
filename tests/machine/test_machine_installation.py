"""What this torch can use, and the line that mends it for each kind of installation."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from sdcli import data
from sdcli.machine import installation, packages
from sdcli.machine.installation import Installation
from sdcli.machine.nvml import Gpu, Nvidia
from sdcli.machine.packages import Torch, Version

CPU = Torch(version="2.13.0+cpu")
CU130 = Torch(version="2.13.0+cu130", cuda="13.0")
CU126 = Torch(version="2.13.0+cu126", cuda="12.6")


def _gpu(capability: str | None = "8.9", name: str = "NVIDIA GeForce RTX 4060") -> Gpu:
    return Gpu(index=0, uuid="GPU-1", name=name, total=8 << 30, free=7 << 30, capability=capability)


def _driver(version: str = "581.42", cuda: str | None = "13.0") -> Nvidia:
    return Nvidia(driver=version, cuda=cuda)


# --- torch without importing it


def _torch_folder(tmp_path: Path, text: str) -> Path:
    (tmp_path / "version.py").write_text(text)
    return tmp_path


def test_torchs_version_file_is_read_as_text(tmp_path: Path) -> None:
    text = (
        "from typing import Optional\n__version__ = '2.13.0+cu130'\ndebug = False\n"
        "cuda: Optional[str] = '13.0'\ngit_version = 'cf30153c'\nhip: Optional[str] = None\n"
    )
    torch = packages.torch_build(_torch_folder(tmp_path, text))
    assert torch == CU130 and torch.flavour == "CUDA 13.0"


@pytest.mark.parametrize(
    ("text", "flavour"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda = None\n", "CPU"),
        ("__version__ = '2.13.0+rocm7.2'\ncuda = None\nhip = '7.2.1'\n", "ROCm 7.2.1"),
        ('__version__ = "2.13.0+xpu"\ncuda: Optional[str] = None\n', "XPU"),
    ],
)
def test_builds_for_other_devices_are_named(tmp_path: Path, text: str, flavour: str) -> None:
    torch = packages.torch_build(_torch_folder(tmp_path, text))
    assert torch is not None and torch.flavour == flavour
    assert "build" in (installation.unusable(torch, _gpu(), _driver()) or "")


@pytest.mark.parametrize("text", ["", "import os\nos.abort()\n", "\x00\xff"])
def test_a_version_file_of_something_else_is_no_torch_and_is_not_run(tmp_path: Path, text: str) -> None:
    assert packages.torch_build(_torch_folder(tmp_path, text)) is None
    assert packages.torch_build(tmp_path / "gone") is None


def test_the_installed_torch_is_found_and_not_imported() -> None:
    before = "torch" in sys.modules
    torch = packages.torch_build()
    assert torch is not None and packages.version_of(torch.version) >= (2, 10)
    assert ("torch" in sys.modules) == before


# --- torch, GPU and driver together


@pytest.mark.parametrize(
    ("torch", "capability", "driver", "cuda", "reason"),
    [
        (CU130, "8.9", "581.42", "13.0", None),
        (CU130, "7.5", "580.65.06", "13.0", None),
        (CU130, "12.0", "580.65.06", "13.0", None),
        (CU130, None, "580.65.06", "13.0", None),
        (CU126, "6.1", "535.104.05", "12.2", None),
        (CU126, "8.6", "535.104.05", None, None),
        (CU130, "8.9", "535.104.05", "13.0", None),  # a compatibility package: the driver's own word wins
        (None, "8.9", "581.42", "13.0", "torch is not installed"),
        (CPU, "8.9", "581.42", "13.0", "torch 2.13.0+cpu is a CPU build"),
        (CU130, "8.9", "535.104.05", "12.2", "torch 2.13.0+cu130 needs driver 580 or newer, found 535.104.05"),
        (CU130, "8.9", "535.104.05", None, "torch 2.13.0+cu130 needs driver 580 or newer, found 535.104.05"),
        (CU126, "8.9", "470.1", "11.4", "torch 2.13.0+cu126 needs driver 525 or newer, found 470.1"),
        (CU130, "6.1", "581.42", "13.0", "torch 2.13.0+cu130 is not built for this GPU's compute capability 6.1"),
        (CU126, "12.0", "581.42", "13.0", "torch 2.13.0+cu126 is not built for this GPU's compute capability 12.0"),
    ],
)
def test_a_gpu_is_usable_or_the_reason_is_exact(
    torch: Torch | None, capability: str | None, driver: str, cuda: str | None, reason: str | None
) -> None:
    assert installation.unusable(torch, _gpu(capability), _driver(driver, cuda)) == reason


def test_volta_was_dropped_from_cuda_12_8_builds_with_torch_2_11() -> None:
    torch = Torch(version="2.10.0+cu128", cuda="12.8")
    dropped = Torch(version="2.11.0+cu128", cuda="12.8")
    assert installation.unusable(torch, _gpu("7.0"), _driver()) is None
    assert "7.0" in (installation.unusable(dropped, _gpu("7.0"), _driver()) or "")


def test_a_cuda_that_came_later_is_judged_by_its_driver_alone() -> None:
    later = Torch(version="2.16.0+cu135", cuda="13.5")
    assert installation.unusable(later, _gpu("8.9"), _driver()) is None


@pytest.mark.parametrize(
    ("capability", "driver", "cuda", "tag"),
    [
        ("8.9", "581.42", "13.0", "cu130"),
        ("12.0", "581.42", "13.0", "cu130"),
        ("6.1", "581.42", "13.0", "cu126"),
        ("8.9", "535.1", "12.2", "cu126"),
        ("12.0", "570.1", "12.8", "cu128"),
        ("8.9", "470.1", "11.4", None),
        ("3.5", "470.1", "11.4", None),
        ("3.5", "581.42", "13.0", None),
    ],
)
def test_the_advised_build_fits_gpu_and_driver_and_would_be_usable(
    capability: str, driver: str, cuda: str, tag: str | None
) -> None:
    gpu, nvidia = _gpu(capability), _driver(driver, cuda)
    build = installation.advised(gpu, nvidia)
    assert (build.tag if build else None) == tag
    if build is not None:
        mended = Torch(version=f"2.11.0+{build.tag}", cuda=f"{build.tag[2:4]}.{build.tag[4:]}")
        assert installation.unusable(mended, gpu, nvidia) is None


def test_where_no_torch_helps_the_reason_is_the_gpu_or_the_driver() -> None:
    assert "3.5" in installation.why_no_build(_gpu("3.5"))
    assert "525" in installation.why_no_build(_gpu("8.9"))


# --- the line to paste


def _environment(tmp_path: Path, mark: str | None = None, settings: str = "") -> Path:
    prefix = tmp_path / "env"
    prefix.mkdir(parents=True)
    (prefix / "pyvenv.cfg").write_text(settings)
    if mark is not None:
        (prefix / mark).mkdir() if mark == "conda-meta" else (prefix / mark).write_text("")
    return prefix


@pytest.mark.parametrize(
    ("mark", "kind"),
    [("pipx_metadata.json", "pipx"), ("uv-receipt.toml", "uv tool"), ("conda-meta", "conda"), (None, "venv")],
)
def test_the_kind_is_known_by_what_the_tool_leaves_behind(tmp_path: Path, mark: str | None, kind: str) -> None:
    prefix = _environment(tmp_path, mark)
    assert installation.find(prefix, tmp_path / "python", "py").kind == kind


def test_a_python_of_its_own_is_the_systems(tmp_path: Path) -> None:
    prefix = _environment(tmp_path)
    assert installation.find(prefix, prefix, "py").kind == "system"


def test_a_checkouts_own_environment_is_known_by_the_script_that_made_it(tmp_path: Path) -> None:
    prefix = tmp_path / ".sdcli" / "venv"
    prefix.mkdir(parents=True)
    assert installation.find(prefix, tmp_path, "py").kind == "venv", "any folder may be called .sdcli"
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "sdcli").write_text("")
    assert installation.find(prefix, tmp_path, "py").kind == "checkout"


def _fix(kind: str, capability: str = "8.9", torch: Torch | None = CPU, uv: bool = False, has_pip: bool = True) -> str:
    place = Installation(kind=kind, prefix=Path("/env"), python="/env/bin/python", uv=uv)
    line = installation.fix(
        place, torch, _gpu(capability), _driver(), has_pip=has_pip, origin="/src/sd cli"
    )  # fmt: skip
    assert line is not None
    return line


@pytest.mark.skipif(sys.platform == "win32", reason="quoting of another shell")
def test_each_kind_of_installation_has_its_own_line() -> None:
    index = "--index-url https://download.pytorch.org/whl/cu130"
    pip = f"/env/bin/python -m pip install torch==2.13.0+cu130 {index}"
    assert _fix("venv") == _fix("checkout") == pip
    assert _fix("conda") == pip, "here torch came from pip"
    assert _fix("system").startswith(pip)
    assert _fix("pipx") == f"pipx runpip sdcli-diffusers install torch==2.13.0+cu130 {index}"
    assert _fix("uv tool") == 'uv tool install --reinstall --torch-backend=auto "/src/sd cli"'
    assert _fix("venv", uv=True, has_pip=False) == (
        "uv pip install --python /env/bin/python --reinstall-package torch --torch-backend=auto torch==2.13.0"
    )
    assert _fix("venv", uv=True, has_pip=True) == pip


@pytest.mark.skipif(sys.platform == "win32", reason="quoting of another shell")
@pytest.mark.parametrize(
    ("kind", "uv", "start"),
    [
        ("venv", False, "/env/bin/python -m pip install "),
        ("checkout", False, "/env/bin/python -m pip install "),
        ("pipx", False, "pipx inject sdcli-diffusers "),
        ("uv tool", False, "uv tool install --with "),
        ("venv", True, "uv pip install --python /env/bin/python "),
    ],
)
def test_each_kind_of_installation_has_a_line_for_an_optional_part(kind: str, uv: bool, start: str) -> None:
    place = Installation(kind=kind, prefix=Path("/env"), python="/env/bin/python", uv=uv)
    line = installation.adding("openvino", place, has_pip=not uv, origin="/src")
    assert line.startswith(start)
    assert shlex.split(line.removeprefix(start)) == [*data.extra("openvino"), *(["/src"] if kind == "uv tool" else [])]


def test_an_old_gpu_names_its_build_to_uv_because_uv_looks_at_the_driver_only() -> None:
    assert "--torch-backend=cu126" in _fix("uv tool", "6.1")
    assert "+cu126" in _fix("venv", "6.1") and _fix("venv", "6.1").endswith("/cu126")


@pytest.mark.parametrize("version", ["2.15.0", "2.14.0.dev20260801", "3.0.0", "", "abc"])
def test_a_torch_without_such_a_build_is_replaced_by_the_tested_one(version: str) -> None:
    torch = Torch(version=version) if version else None
    words = shlex.split(_fix("venv", "6.1", torch))
    assert f"torch=={data.tested_versions()['torch']}+cu126" in words


def test_a_build_that_ended_earlier_is_named_with_its_last_torch() -> None:
    place = Installation(kind="venv", prefix=Path("/env"), python="python")
    line = installation.fix(place, CPU, _gpu("12.0"), _driver("570.1", "12.8"), has_pip=True)
    assert line is not None and "torch==2.11.0+cu128" in line


def test_where_no_torch_would_help_there_is_no_line() -> None:
    place = Installation(kind="venv", prefix=Path("/env"), python="python")
    assert installation.fix(place, CPU, _gpu("8.9"), _driver("470.1", "11.4")) is None


def test_what_is_installed_from_a_folder_is_installed_again_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "sdcli_diffusers-0.1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: sdcli-diffusers\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installation.source() == "sdcli-diffusers"
    (record / "direct_url.json").write_text('{"url": "file:///src/my%20sd", "dir_info": {}}')
    assert Path(installation.source()) == Path("/src/my sd") or sys.platform == "win32"
    (record / "direct_url.json").write_text('{"url": "https://example.org/sd.git", "vcs_info": {"vcs": "git"}}')
    assert installation.source() == "git+https://example.org/sd.git"
    (record / "direct_url.json").write_text("{")
    assert installation.source() == "sdcli-diffusers"


def test_the_folder_one_stands_in_is_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Installation(kind="uv tool", prefix=Path("/env"), python="python")
    line = installation.fix(place, CPU, _gpu(), _driver(), origin=str(tmp_path))
    assert line is not None and line.split()[-1] == "."


# --- versions


def test_the_packages_of_this_environment_are_listed_without_importing_them() -> None:
    from importlib import metadata

    versions = {version.name: version.version for version in packages.versions()}
    assert set(versions) == set(data.lowest_versions())
    for name, version in versions.items():
        assert version == metadata.version(name), "the folder's name and the record agree"


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert packages.versions(("no-such-package",)) == (Version(name="no-such-package", version=""),)


def test_known_bad_versions_say_why_and_others_do_not() -> None:
    assert "183815" in (packages.known_bad("torch", "2.13.0+cpu") or "")
    assert packages.known_bad("torch", "2.13.1") is None
    assert packages.known_bad("torch", "") is None
    assert packages.known_bad("diffusers", "2.13.0") is None


@pytest.mark.parametrize(
    ("name", "version", "floor"),
    [
        ("torch", "2.9.1", "2.10"),
        ("torch", "2.10.0", None),
        ("torch", "2.13.0+cpu", None),
        ("torch", "", None),
        ("torch", "git", None),
        ("something", "0.1", None),
    ],
)
def test_floors_compare_numbers_not_letters(name: str, version: str, floor: str | None) -> None:
    assert packages.below_floor(name, version) == floor


def test_the_tested_set_is_told_apart_by_minor_versions() -> None:
    same = tuple(Version(name=name, version=data.tested_versions()[name]) for name in data.lowest_versions())
    assert packages.tested(same)
    assert packages.tested((Version(name="torch", version="2.13.1+cu130"),))
    assert not packages.tested((*same[1:], Version(name="torch", version="2.14.0")))


def test_what_is_required_has_a_lowest_version_and_a_tested_one_that_is_not_below_it() -> None:
    assert {"torch", "diffusers", "transformers"} <= set(data.lowest_versions())
    for name, lowest in data.lowest_versions().items():
        assert packages.version_of(data.tested_versions()[name]) >= packages.version_of(lowest) > (), name


# --- compilers


@pytest.mark.parametrize(
    ("kind", "environment", "platform", "there", "found"),
    [
        ("cpu", {}, "linux", {"g++", "clang++"}, "g++"),
        ("cpu", {}, "linux", {"clang++"}, "clang++"),
        ("cpu", {}, "linux", {"gcc"}, None),
        ("cpu", {"CXX": "g++-14"}, "linux", {"g++", "g++-14"}, "g++-14"),
        ("cpu", {"CXX": "g++-14"}, "linux", {"g++"}, None),
        ("cpu", {}, "darwin", {"clang++"}, "clang++"),
        ("cpu", {}, "win32", {"cl"}, "cl"),
        ("cuda", {}, "linux", {"gcc"}, "gcc"),
        ("cuda", {}, "linux", {"g++"}, None),
        ("mps", {}, "darwin", {"clang++"}, None),
    ],
)
def test_the_compiler_is_the_one_that_torch_would_take(
    monkeypatch: pytest.MonkeyPatch, kind: str, environment: dict[str, str], platform: str, there: set[str],
    found: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr("shutil.which", lambda name: name if name in there else None)
    monkeypatch.setattr(packages, "has", lambda package: True)
    assert packages.compiler(kind, environment, platform) == found
    monkeypatch.setattr(packages, "has", lambda package: False)
    assert (packages.compiler(kind, environment, platform) is None) == (found is None or kind == "cuda")
