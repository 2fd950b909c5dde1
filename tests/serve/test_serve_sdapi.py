"""A1111's API, called by the unmodified webuiapi."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import webuiapi
from PIL import Image

from sdcli import __version__
from sdcli.record.metadata import read

Start = Callable[..., Any]


def client(server: Any) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", sampler="Euler a", steps=2)


def hash_of(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def test_images_of_all_batches_come_back_with_consecutive_seeds_and_a1111s_info(serve: Start, tmp_path: Path) -> None:
    server = serve()
    result = client(server).txt2img(
        prompt="a cat", negative_prompt="dog", seed=5, batch_size=2, n_iter=2, width=64, height=80, cfg_scale=3.5
    )
    assert len(result.images) == 4 and {image.size for image in result.images} == {(64, 80)}
    assert len({hash_of(image) for image in result.images}) == 4
    info = result.info
    assert info["all_seeds"] == [5, 6, 7, 8] and info["seed"] == 5 and info["index_of_first_image"] == 0
    assert info["all_prompts"] == ["a cat"] * 4 and info["all_negative_prompts"] == ["dog"] * 4
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (64, 80, 2, 3.5)
    assert info["sampler_name"] == "Euler a" and info["version"] == f"sdcli {__version__}"
    assert [image.info["parameters"] for image in result.images] == info["infotexts"]
    assert result.parameters["prompt"] == "a cat" and result.parameters["steps"] == 2
    kept = {path.read_bytes() for path in (tmp_path / "images").glob("*.png")}
    assert kept == {base64.b64decode(image) for image in result.json["images"]}
