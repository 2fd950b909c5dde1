"""What starting loads: commands that draw nothing never import the slow libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEVER = {
    "torch", "diffusers", "transformers", "accelerate", "numpy", "PIL", "huggingface_hub", "safetensors", "httpx",
    "pynvml", "psutil", "ray",
}  # fmt: skip

# Runs sdcli as its script does, then writes the names of what was loaded.
CODE = """
import json, sys
try:
    from sdcli.cli.main import run
    run(sys.argv[2:])
finally:
    with open(sys.argv[1], "w") as file:
        json.dump(sorted(sys.modules), file)
"""
# `run` may leave without unwinding (that is faster); the list is then written on the way out.
LEAVING = """
import os, sys
def write_and_leave(code):
    import json
    with open(sys.argv[1], "w") as file:
        json.dump(sorted(sys.modules), file)
    sys.stdout.flush()
    leave(code)
leave, os._exit = os._exit, write_and_leave
"""


def loaded_after(words: list[str], tmp_path: Path) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    listing = tmp_path / "modules.json"
    done = subprocess.run(
        [sys.executable, "-P", "-c", LEAVING + CODE, str(listing), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    return set(json.loads(listing.read_text())), done


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["--help"],
        ["samplers"],
        ["samplers", "--json"],
        ["generate", "--help"],
        ["plan", "a cat", "-m", "sd15", "--as-if", "cuda:8GiB"],
        ["plan", "a cat", "-m", "sdxl", "--as-if", "cpu", "--json"],
        ["plan", "a cat", "-m", "sd15", "--as-if", "mps"],
        ["config", "path"],
        ["help", "exit-codes"],
        ["inspect-unet", "sd15"],
        ["inspect-unet", "sdxl", "--json"],
    ],
    ids=" ".join,
)
def test_no_slow_library_is_loaded_by(words: list[str], tmp_path: Path) -> None:
    loaded, done = loaded_after(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "sdcli.cli.main" in loaded
    assert loaded & NEVER == set()


def test_the_version_is_told_without_even_loading_typer(tmp_path: Path) -> None:
    loaded, done = loaded_after(["--version"], tmp_path)
    assert done.stdout.startswith("sdcli ")
    assert loaded & {"typer", "click", "rich"} == set()


@pytest.mark.parametrize("command", ["plan", "samplers", "generate"])
def test_text_is_not_checked_with_pydantic_where_sdcli_converts_it(command: str, tmp_path: Path) -> None:
    """Typer would load it for any command, and a plan would take half as long again."""
    words = {"samplers": [], "plan": ["a cat", "-m", "sd15", "--as-if", "cpu"], "generate": ["a cat", "--width", "990"]}
    loaded, _ = loaded_after([command, *words[command]], tmp_path)
    assert "typer" in loaded
    assert "pydantic" not in loaded


def test_a_prompt_with_a_mistake_is_refused_before_anything_slow_is_loaded(tmp_path: Path) -> None:
    loaded, done = loaded_after(["generate", "a cat", "--width", "990"], tmp_path)
    assert done.returncode == 2, done.stderr
    assert loaded & NEVER == set()
