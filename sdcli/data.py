"""The only finder of shipped files: component configs, presets, the built-in model."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any


@functools.cache
def configs() -> Path:
    """configs/ beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


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


def builtin_model() -> Path | None:
    """The folder of the model that ships with sdcli, or None in a build without one."""
    folder = Path(__file__).resolve().parent / "models" / "builtin"
    return folder if (folder / "model_index.json").is_file() else None
