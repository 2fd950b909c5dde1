"""Images that are changed: the form that OpenAI's client sends, its files and its mask."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai_clients import client, file, mask, opened
from PIL import Image

Serve = Callable[..., Any]
FEW = {"steps": 4, "seed": 5}


def last(server: Any) -> Any:
    return list(server.service.tickets.values())[-1]


def test_an_image_is_changed_as_often_as_asked(serving: Any) -> None:
    answer = client(serving).images.edit(
        prompt="a cat", image=file((64, 96)), n=2, output_format="webp", quality="high", input_fidelity="high",
        background="opaque", user="me", extra_body={**FEW, "strength": 0.5, "negative_prompt": "a dog"},
    )  # fmt: skip
    assert answer.data is not None and [image.seed for image in answer.data] == [5, 6]  # type: ignore[attr-defined]
    assert (answer.size, answer.output_format) == ("64x96", "webp")
    assert [opened(image).size for image in answer.data] == [(64, 96)] * 2
    jobs = last(serving).plan.jobs
    assert [(job.start.strength, job.steps_taken, job.negative_prompt) for job in jobs] == [(0.5, 2, "a dog")] * 2


@pytest.mark.parametrize("as_it_comes", [io.BytesIO, lambda data: ("any.exe", data, "text/html"), lambda data: data])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_what_a_file_is_says_its_content(serving: Any, as_it_comes: Callable[[bytes], Any], format: str) -> None:
    sent = file(format=format)
    assert client(serving).images.edit(prompt="a cat", image=as_it_comes(sent), extra_body=FEW).data
    assert Path(last(serving).plan.jobs[0].start.image.path).read_bytes() == sent


def test_each_of_several_images_is_changed_by_itself(serving: Any) -> None:
    answer = client(serving).images.edit(
        prompt="a cat", image=[file((64, 64)), file((64, 128)), file((128, 64))], extra_body=FEW
    )
    assert answer.data is not None and answer.size is None
    assert [opened(image).size for image in answer.data] == [(64, 64), (64, 128), (128, 64)]
    assert [image.size for image in answer.data] == ["64x64", "64x128", "128x64"]  # type: ignore[attr-defined]
    small = client(serving).images.edit(prompt="a cat", image=[file(), file((64, 128))], size="64x64", extra_body=FEW)
    assert small.size == "64x64" and small.data is not None and len(small.data) == 2


def test_what_is_clear_in_the_mask_is_repainted(serving: Any) -> None:
    client(serving).images.edit(prompt="a cat", image=file(), mask=mask(clear=(0, 0, 24, 64)), extra_body=FEW)
    repaint = last(serving).plan.jobs[0].start.repaint
    marks = Image.open(repaint.mask.path).convert("L")
    assert marks.size == (64, 64)
    assert marks.crop((0, 0, 24, 64)).getextrema() == (255, 255)
    assert marks.crop((24, 0, 64, 64)).getextrema() == (0, 0)
    assert last(serving).plan.jobs[0].start.strength == 0.8


def palette_mask() -> bytes:
    """With transparency in a palette, as many small programs write it."""
    picture = Image.new("P", (64, 64), 1)
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.paste(0, (0, 0, 32, 64))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


def test_a_masks_transparency_may_stand_in_a_palette(serving: Any) -> None:
    client(serving).images.edit(prompt="a cat", image=file(), mask=palette_mask(), extra_body=FEW)
    marks = Image.open(last(serving).plan.jobs[0].start.repaint.mask.path).convert("L")
    assert (marks.getpixel((10, 10)), marks.getpixel((50, 10))) == (255, 0)


@pytest.mark.parametrize(
    ("sent", "param", "says"),
    [
        ({"image": b"GIF89a"}, "image", "PNG, JPEG or WebP"),
        ({"image": b""}, "image", "PNG, JPEG or WebP"),
        ({"image": file()[:60]}, "image", "damaged"),
        ({"image": [file()] * 4, "n": 3}, "n", "10 are the most"),
        ({"image": [file()] * 2, "mask": mask()}, "mask", "one image"),
        ({"mask": mask((64, 128))}, "mask", "64x128 and the image 64x64"),
        ({"mask": file()}, "mask", "nothing is transparent"),
        ({"mask": mask(clear=(0, 0, 0, 0))}, "mask", "nothing is transparent"),
        ({"mask": b"mask"}, "mask", "PNG, JPEG or WebP"),
        ({"n": 11}, "n", "between 1 and 10"),
        ({"extra_body": {"sead": 5}}, "sead", "near: seed"),
        ({"extra_body": {"strength": "much"}}, "strength", "a number, and is text"),
        ({"extra_body": {"strength": 0}}, "strength", "steps"),
        ({"extra_body": {"hires": 2}}, "hires", "starts from an image"),
        ({"extra_body": {"image": "a cat"}}, "image", "a file"),
        ({"markup": mask()}, "markup", "not supported"),
        ({"svg": {"model": "x"}}, "svg", "not supported"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_edit_is_named(serving: Any, sent: dict[str, Any], param: str, says: str) -> None:
    before = len(serving.service.tickets)
    with pytest.raises(openai.BadRequestError) as wrong:
        client(serving).images.edit(**{"prompt": "a cat", "image": file(), **sent})
    assert wrong.value.param == param and says in wrong.value.message
    assert "/" not in wrong.value.message.replace("/v1/", "")  # no path of the server's
    assert len(serving.service.tickets) == before


@pytest.mark.parametrize(
    "sent",
    [
        {"data": {"prompt": "a cat"}, "files": {"other": file()}},
        {"data": {"prompt": ["a cat", "a dog"]}, "files": {"image": file()}},
        {"data": {f"field{number}": "x" for number in range(200)}, "files": {"image": file()}},
        {"files": [("image[]", file())] * 30},
        {"content": b"--x\r\nnothing", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": b"", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
    ],
)  # fmt: skip
def test_a_form_that_is_none_is_a_bad_request(serving: Any, sent: dict[str, Any]) -> None:
    answer = httpx2.post(f"{serving.url}/v1/images/edits", **sent)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_an_edit_is_a_form_and_nothing_else(serving: Any) -> None:
    for sent in ({"json": {"prompt": "a cat"}}, {"data": {"prompt": "a cat"}}):
        answer = httpx2.post(f"{serving.url}/v1/images/edits", **sent)
        assert answer.status_code == 415 and answer.json()["error"]["type"] == "invalid_request_error"


def test_a_transparent_image_is_white_there_and_its_warning_names_no_file_of_the_server(serving: Any) -> None:
    answer = client(serving).images.edit(prompt="a cat", image=mask(), extra_body=FEW)
    assert answer.data is not None
    assert "image: its transparent parts are white" in answer.data[0].warnings  # type: ignore[attr-defined]
