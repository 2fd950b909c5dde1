"""OpenAI's own client, unmodified, against a server."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image


def client(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_an_image_comes_back_and_is_kept_where_generate_keeps_it(serve: Callable[..., Any], tmp_path: Path) -> None:
    server = serve()
    answer = client(server).images.generate(prompt="a cat", size="64x64", n=2, extra_body={"seed": 5, "steps": 2})
    assert answer.data is not None and [image.seed for image in answer.data] == [5, 6]  # type: ignore[attr-defined]
    for image in answer.data:
        content = base64.b64decode(image.b64_json or "")
        assert Image.open(io.BytesIO(content)).size == (64, 64)
        assert (tmp_path / "images" / image.file).read_bytes() == content  # type: ignore[attr-defined]
    (run,) = (tmp_path / "images" / "runs").iterdir()
    assert (run / "report.json").exists() and (run / "run.jsonl").exists()


def test_the_same_seed_gives_the_same_image_and_another_seed_another(serve: Callable[..., Any]) -> None:
    images = client(serve()).images
    hashes = []
    for seed in (5, 5, 6):
        answer = images.generate(prompt="a cat", size="64x64", extra_body={"seed": seed, "steps": 1})
        assert answer.data is not None
        pixels = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or ""))).tobytes()
        hashes.append(hashlib.sha256(pixels).hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_field_nobody_knows_is_refused_by_its_name(serve: Callable[..., Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client(serve()).images.generate(prompt="a cat", extra_body={"sead": 5})
    assert refused.value.param == "sead"


def test_a_model_is_named_and_never_a_path(serve: Callable[..., Any], tmp_path: Path) -> None:
    server = serve()
    assert "builtin" in [model.id for model in client(server).models.list()]
    with pytest.raises(openai.NotFoundError):
        client(server).images.generate(prompt="a cat", model=str(tmp_path))
