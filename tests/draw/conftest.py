"""Tiny random SD1.5, SD2 and SDXL of the real topology, written once per session, and diffusers' pipelines on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from draw_samples import FAMILIES, diffusers_pipelines
from PIL import Image

from scripts import make_checkpoint
from sdcli.draw import quiet
from sdcli.draw.encode import Text
from sdcli.images.read import InputImage, look


@pytest.fixture(scope="session", autouse=True)
def one_quiet_thread() -> Iterator[None]:
    with quiet.libraries_silenced():
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """fp32 diffusers folders of all families."""
    root = tmp_path_factory.mktemp("tiny")
    return {family: make_checkpoint.write_folder(root / family, family, tiny=True) for family in FAMILIES}


@pytest.fixture(scope="session")
def pipelines(tiny_folders: dict[str, Path], one_quiet_thread: None) -> dict[str, Any]:
    """diffusers' pipelines as usually loaded: what our loop, encoders and decoder are compared with."""
    return diffusers_pipelines(tiny_folders, torch.float32)


@pytest.fixture(scope="session")
def bf16_pipelines(tiny_folders: dict[str, Path], one_quiet_thread: None) -> dict[str, Any]:
    return diffusers_pipelines(tiny_folders, torch.bfloat16)


@pytest.fixture(scope="session")
def texts(pipelines: dict[str, Any]) -> dict[str, tuple[Text, Text]]:
    """A prompt and a negative one, encoded."""
    from test_draw_parity import NEGATIVE, PROMPT, encoded

    return {family: (encoded(pipeline, PROMPT), encoded(pipeline, NEGATIVE)) for family, pipeline in pipelines.items()}


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> InputImage:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    values = numpy.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=numpy.uint8)
    Image.fromarray(values).save(path)
    return look(path)
