"""The command line with the real engine: what the files contain, and what an interrupt leaves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def command(folder: Path, *words: str) -> list[str]:
    tiny = ["-m", str(folder), "--size", "64x64", "-s", "4", "--sampler", "DPM++ 2M Karras", "--dtype", "fp32"]
    return [sys.executable, "-m", "sdcli", "generate", *words, *tiny]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_settings_in_the_png_are_read_by_an_independent_reader_and_figures_are_real(
    tmp_path: Path, tiny_folders: dict[str, Path]
) -> None:
    from PIL import Image
    from sd_parsers import ParserManager

    words = ["a cat, (big:1.2)", "--negative-prompt", "blurry", "--seed", "42", "-g", "6.5", "--json"]
    done = subprocess.run(
        command(tiny_folders["sd15"], *words),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    (image,) = report["images"]
    path = Path(image["path"])
    read = ParserManager().parse(path)
    assert read is not None
    (sampler,) = read.samplers
    assert [prompt.value for prompt in sampler.prompts] == ["a cat, (big:1.2)"]
    assert [prompt.value for prompt in sampler.negative_prompts] == ["blurry"]
    assert sampler.parameters["seed"] in (42, "42") and sampler.parameters["steps"] in (4, "4")
    assert float(sampler.parameters["cfg_scale"]) == 6.5
    assert (sampler.name or "").startswith("DPM++ 2M")
    assert sampler.model is not None and sampler.model.name == "sd15"
    assert read.metadata["Size"] == "64x64" or read.metadata.get("size") == "64x64"
    with Image.open(path) as opened:
        assert hashlib.sha256(opened.convert("RGB").tobytes()).hexdigest() == image["pixel_sha256"]
    assert image["tokens"] == 4 and len(report["batches"][0]["step_seconds"]) == 4
    assert {phase["name"] for phase in report["phases"]} >= {"import", "load", "encode", "denoise", "decode", "save"}
    assert report["memory"]["measured"]["host_peak"] > report["memory"]["measured"]["host_before_load"] > 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("count", [0, 2])
def test_ctrl_c_exits_with_130_and_keeps_finished_images(
    tmp_path: Path, tiny_folders: dict[str, Path], count: int
) -> None:
    """Before the first image (while importing or loading), and after two of a hundred."""
    from PIL import Image

    words = ["a cat", "-n", "100", "--seed", "1"]
    process = subprocess.Popen(
        command(tiny_folders["sd15"], *words), cwd=tmp_path, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if count:
        assert process.stdout is not None
        for _ in range(count):
            assert process.stdout.readline().endswith(".png\n")
    else:  # the plan has been printed, and the libraries are next
        assert process.stderr is not None and process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    kept = sorted(tmp_path.rglob("*.png"))
    assert (len(kept) == 0) if not count else (count <= len(kept) < 100)
    for path in kept:
        with Image.open(path) as image:
            image.load()
    assert not list(tmp_path.rglob("*.part"))
