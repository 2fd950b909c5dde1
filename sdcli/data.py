"""The only finder of shipped files: component configs, presets, the built-in model, required and tested versions."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def shipped(name: str) -> Path:
    """A file or folder of the project: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / name
    return inside if inside.exists() else package.parent / name


@functools.cache
def configs() -> Path:
    return shipped("configs")


def component_folder(family: str, component: str = "") -> Path:
    return configs() / "components" / family / component


@functools.cache
def component_config(family: str, component: str) -> dict[str, Any]:
    """The shipped JSON of one component (`unet`, `vae`, `text_encoder`, `scheduler` …); do not change it."""
    folder = component_folder(family, component)
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    loaded: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return loaded


def presets() -> Path:
    return configs() / "presets"


def page() -> Path:
    """The files of the web page that `sdcli serve` shows."""
    return Path(__file__).resolve().parent / "serve" / "page"


def builtin_model() -> Path | None:
    """The folder of the model that ships with sdcli, or None in a build without one."""
    folder = Path(__file__).resolve().parent / "models" / "builtin"
    return folder if (folder / "model_index.json").is_file() else None


@functools.cache
def lowest_versions() -> Mapping[str, str]:
    """Of each package that sdcli requires, by pyproject.toml."""
    import tomllib

    project = tomllib.loads(shipped("pyproject.toml").read_text(encoding="utf-8"))["project"]
    return dict(requirement.partition(",")[0].split(">=") for requirement in project["dependencies"])


@functools.cache
def extra(name: str) -> tuple[str, ...]:
    """What an optional part of sdcli needs beside its requirements, by pyproject.toml."""
    import tomllib

    project = tomllib.loads(shipped("pyproject.toml").read_text(encoding="utf-8"))["project"]
    return tuple(project["optional-dependencies"][name])


@functools.cache
def tested_versions() -> Mapping[str, str]:
    """Of each package in the set that is tested together, by constraints.txt."""
    lines = shipped("constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)
