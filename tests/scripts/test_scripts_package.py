"""What `pip install .` would install, built for real."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from sdcli import data

ROOT = Path(__file__).resolve().parents[2]


BUILTIN = "sdcli/models/builtin"
# A built-in model as this build may or may not have one: one small file of every kind.
SMALL = (
    "model_index.json", "README.md", "sheet.jpg", "words.txt", "unet/config.json", "tokenizer/merges.txt",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors", "vae/diffusion_pytorch_model.safetensors",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the repository holds, so that nothing lying around comes along; with a built-in model."""
    folder = tmp_path_factory.mktemp("package") / "checkout"
    folder.mkdir()
    leave = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("sdcli", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name in ("pyproject.toml", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    if not (folder / BUILTIN).exists():
        for small in SMALL:
            (folder / BUILTIN / small).parent.mkdir(parents=True, exist_ok=True)
            (folder / BUILTIN / small).write_bytes(small.encode())
    for target in ("wheel", "sdist"):
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", target], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> zipfile.ZipFile:
    (built,) = (checkout / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_every_module_every_shipped_config_and_the_page(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sdcli").rglob("*.py")}
    configs = {f"sdcli/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.json")}
    presets = {f"sdcli/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.toml")}
    page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sdcli" / "serve" / "page").iterdir()}
    assert len(configs) > 10 and presets and len(page) > 5
    assert modules | configs | presets | page | {"sdcli/configs/components/clip/merges.txt"} <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]


def test_the_wheel_brings_the_command_and_its_licence_and_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert info.startswith("sdcli_diffusers-")
    assert "sdcli = sdcli.__main__:run" in wheel.read(f"{info}/entry_points.txt").decode()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "Name: sdcli-diffusers" in metadata and "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_an_installed_sdcli_knows_what_is_required_and_tested(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = "from sdcli import data; print(data.__file__, data.lowest_versions(), data.tested_versions())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, check=True)
    expected = f"{tmp_path / 'sdcli' / 'data.py'} {data.lowest_versions()} {data.tested_versions()}"
    assert done.stdout.decode().strip() == expected


def test_the_built_in_model_comes_along_whole(checkout: Path, wheel: zipfile.ZipFile) -> None:
    files = {path.relative_to(checkout).as_posix() for path in (checkout / BUILTIN).rglob("*") if path.is_file()}
    assert len(files) >= len(SMALL) and files <= set(wheel.namelist())
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        assert files <= {name.partition("/")[2] for name in file.getnames()}
    one = next(name for name in sorted(files) if name.endswith(".safetensors"))
    assert wheel.read(one) == (checkout / one).read_bytes()


def test_sdcli_finds_its_configs_from_inside_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "sdcli", "plan", "a cat", "-m", "sdxl", "--as-if", "cuda:24GiB", "--json"],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["components"]["unet"]["parameters"] == 2_567_463_684


def test_pins_stand_within_the_ranges_that_users_get() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    requirements = [Requirement(text) for text in texts]
    assert [str(need) for need in requirements if canonicalize_name(need.name) not in pins] == []
    assert [str(need) for need in requirements if pins[canonicalize_name(need.name)] not in need.specifier] == []
    assert not [line for line in lines if "://" in line or line.startswith("-") or "+" in line.split("==")[-1]]
