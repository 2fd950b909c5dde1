"""OpenAI's own client, unmodified, against a server."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai_clients import asynchronous, client, content, opened

Serve = Callable[..., Any]


def test_an_image_comes_back_and_is_kept_where_generate_keeps_it(serve: Serve, tmp_path: Path) -> None:
    answer = client(serve()).images.generate(prompt="a cat", size="64x96", n=2, extra_body={"seed": 5, "steps": 2})
    assert answer.data is not None and [image.seed for image in answer.data] == [5, 6]  # type: ignore[attr-defined]
    assert (answer.size, answer.output_format, answer.background) == ("64x96", "png", "opaque")
    for image in answer.data:
        assert opened(image).size == (64, 96) and image.url is None
        assert (tmp_path / "images" / image.file).read_bytes() == content(image)  # type: ignore[attr-defined]
    (run,) = (tmp_path / "images" / "runs").iterdir()
    assert (run / "report.json").exists() and (run / "run.jsonl").exists()


def test_the_same_seed_gives_the_same_image_and_another_seed_another(serving: Any) -> None:
    images = client(serving).images
    hashes = []
    for seed in (5, 5, 6):
        answer = images.generate(prompt="a cat", size="64x64", extra_body={"seed": seed, "steps": 1})
        assert answer.data is not None
        hashes.append(hashlib.sha256(opened(answer.data[0]).tobytes()).hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]


def test_every_argument_of_the_client_that_moves_nothing_is_taken(serving: Any) -> None:
    answer = client(serving).images.generate(
        prompt="a cat", model="builtin", n=1, size="64x64", quality="high", background="auto", moderation="low",
        output_format="jpeg", output_compression=30, response_format="b64_json", style="vivid", user="me",
        safety_identifier="me", complexity="low", stream=False, extra_body={"steps": 1},
    )  # fmt: skip
    assert answer.data is not None and opened(answer.data[0]).format == "JPEG"
    assert answer.output_format == "jpeg"
    assert set(answer.ignored) == {"quality", "moderation", "style", "user", "safety_identifier", "complexity"}  # type: ignore[attr-defined]


def test_formats_and_compression_are_the_files_own(serving: Any) -> None:
    images = client(serving).images

    def file(format: Any, compression: int | None) -> bytes:
        answer = images.generate(
            prompt="a cat", size="64x64", output_format=format, output_compression=compression,
            extra_body={"seed": 1, "steps": 1, "metadata": "none"},
        )  # fmt: skip
        assert answer.data is not None and opened(answer.data[0]).format == format.upper()
        return content(answer.data[0])

    assert len(file("jpeg", 10)) < len(file("jpeg", 100))
    assert len(file("webp", 0)) < len(file("webp", None))


def test_a_url_serves_the_file_until_it_expires(serving: Any) -> None:
    answer = client(serving).images.generate(
        prompt="<b>", size="64x64", response_format="url", extra_body={"steps": 1, "seed": 3}
    )
    assert answer.data is not None and answer.data[0].b64_json is None
    url = answer.data[0].url or ""
    assert url.startswith(f"{serving.url}/v1/results/") and len(url.rpartition("/")[2]) == 32
    found = httpx2.get(url)
    assert (found.status_code, found.headers["content-type"]) == (200, "image/png")
    assert found.headers["etag"] == f'"{hashlib.sha256(found.content).hexdigest()}"'
    assert found.headers["cache-control"].startswith("private") and "immutable" in found.headers["cache-control"]
    assert (
        found.headers["x-content-type-options"] == "nosniff" and "sandbox" in found.headers["content-security-policy"]
    )
    assert httpx2.get(url, headers={"If-None-Match": found.headers["etag"]}).status_code == 304
    for other in (url[:-1] + "1", url[:-2], url + "/..%2f..%2fx", url.replace("results/", "results/..%2f")):
        assert httpx2.get(other).status_code == 404
    ticket = list(serving.service.tickets.values())[-1]
    Path(ticket.images[0].path).write_bytes(b"something else")
    assert httpx2.get(url).status_code == 404
    Path(ticket.images[0].path).write_bytes(found.content)
    assert httpx2.get(url).status_code == 200
    ticket.created -= serving.service.settings.keep + 1
    assert httpx2.get(url).status_code == 404


def test_models_are_listed_named_and_never_a_path(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    api = client(server)
    assert "builtin" in [model.id for model in api.models.list()]
    assert api.models.retrieve("builtin").owned_by == "sdcli"
    with pytest.raises(openai.NotFoundError) as unknown:
        api.models.retrieve("stabilityai/builtn")
    assert unknown.value.param == "model" and unknown.value.code == "model_missing"
    with pytest.raises(openai.APIStatusError) as kept:
        api.models.delete("builtin")
    assert kept.value.status_code == 405
    for name in (str(tmp_path), "../builtin", "gpt-image-2"):
        with pytest.raises(openai.NotFoundError) as missing:
            api.images.generate(prompt="a cat", model=name)
        assert missing.value.param == "model"
    with pytest.raises(openai.NotFoundError):  # retired
        api.images.create_variation(image=b"\x89PNG")


def test_raw_answers_and_the_asynchronous_client(serving: Any) -> None:

    async def both() -> None:
        async with asynchronous(serving) as api:
            asked = [
                api.images.generate(prompt="a cat", size="64x64", extra_body={"seed": s, "steps": 1}) for s in (1, 2)
            ]
            answers = await asyncio.gather(*asked)
            assert [answer.data[0].seed for answer in answers if answer.data] == [1, 2]  # type: ignore[attr-defined]
            raw = await api.images.with_raw_response.generate(prompt="a cat", size="64x64", extra_body={"steps": 1})
            assert raw.headers["content-type"] == "application/json" and raw.parse().data
            assert [model.id async for model in api.models.list()]
            assert (await api.models.retrieve("builtin")).id == "builtin"

    asyncio.run(both())
    with client(serving).images.with_streaming_response.generate(
        prompt="a cat", size="64x64", extra_body={"steps": 1}
    ) as streamed:
        assert streamed.parse().data


def test_a_word_that_the_model_never_saw_is_a_warning_beside_its_image(serving: Any) -> None:
    answer = client(serving).images.generate(prompt="a xylographer", size="64x64", extra_body={"steps": 1})
    assert answer.data is not None
    assert any("xylographer" in warning for warning in answer.data[0].warnings)  # type: ignore[attr-defined]
