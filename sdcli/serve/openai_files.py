"""Images that come with a request: parts of a form, or base64 in a field. None is ever fetched from a URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from sdcli.images import canvas, read
from sdcli.record.encode import saved
from sdcli.serve.bodies import from_base64, in_data_url
from sdcli.serve.openai_fields import MOST_IMAGES, REFUSED, Asked, BadField, refused_field
from sdcli.serve.uploads import kept
from sdcli.terminal import show

MOST_FIELDS, MOST_FILES = 128, 16
_IMAGE_PARTS = {"image": "image", "image[]": "image", "mask": "mask"}

Upload = Callable[[bytes], str]


@dataclass(frozen=True)
class Form:
    """The parts of a form: texts in their order, and files by what they are."""

    texts: Sequence[tuple[str, str]]
    images: Sequence[bytes]
    mask: bytes | None


async def form(request: Request) -> Form:
    """What a part is called, and of what type it says it is, counts for nothing: its content is looked at."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        message = "an edit is a form: multipart/form-data, with the image as a file"
        raise BadField(message, None, "unsupported_media_type", 415)
    texts: list[tuple[str, str]] = []
    files: dict[str, list[bytes]] = {"image": [], "mask": []}
    try:
        async with request.form(max_files=MOST_FILES + 2, max_fields=MOST_FIELDS) as parts:
            for name, value in parts.multi_items():
                kind = _IMAGE_PARTS.get(name)
                if name.partition("[")[0] in REFUSED:
                    raise refused_field(name.partition("[")[0])
                if isinstance(value, UploadFile):
                    if kind is None:
                        raise BadField(f"{show(name, 60)} is a file; only image and mask are", name, "invalid_type")
                    files[kind].append(await value.read())
                elif kind is not None:
                    raise BadField(f"{name} has to be a file", name, "invalid_type")
                else:
                    texts.append((name, value))
    except HTTPException as error:
        raise BadField(f"the form cannot be read: {show(error.detail, 200)}", None, "bad_body") from None
    if not files["image"]:
        raise BadField("image is missing", "image", "missing_required_parameter")
    if len(files["image"]) > MOST_FILES:
        raise BadField(f"{len(files['image'])} images; {MOST_FILES} are the most", "image")
    if len(files["mask"]) > 1:
        raise BadField("mask is there twice", "mask")
    return Form(texts, files["image"], files["mask"][0] if files["mask"] else None)


# --- as generate is given them


def with_images(asked: Asked, form: Form, upload: Upload) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of an edit, and by what name each file is known to who sent it."""
    count = len(form.images) * asked.images
    if count > MOST_IMAGES:
        raise BadField(f"n: {len(form.images)} images make {count} of them; {MOST_IMAGES} are the most", "n")
    if form.mask is not None and len(form.images) > 1:
        raise BadField("a mask belongs to one image", "mask")
    names: dict[str, str] = {}
    paths = [kept(upload, content, "image", names) for content in form.images]
    typed = {**asked.typed, "image": paths}
    if form.mask is not None:
        sent = kept(upload, form.mask, "mask", names)
        typed["mask"] = upload(_white_where_clear(sent, paths[0]))
        names[typed["mask"]] = "mask"
    return typed, names


def with_control(typed: Mapping[str, Any], asked: Asked, upload: Upload) -> tuple[dict[str, Any], dict[str, str]]:
    """Images that steer, as --control takes them: `union:canny=room.png:0.8:0-0.6`."""
    names: dict[str, str] = {}
    if not asked.control:
        return dict(typed), names
    controls = []
    for one in asked.control:
        path = kept(upload, _from_base64(one["image"]), "control", names)
        shows = f":{one['shows']}" if one.get("shows") else ""
        part = f"{float(one.get('start', 0)):.6f}-{float(one.get('end', 1)):.6f}"
        controls.append(f"{_net(one['model'])}{shows}={path}:{float(one.get('weight', 1)):.6f}:{part}")
    return {**typed, "control": controls}, names


def _net(name: str) -> str:
    """Never a path, also where there is a file of that name."""
    if re.search(r"[\\/:=~]|^\.", name) or not name.strip() or Path(name).exists():
        raise BadField(f'control: "{show(name, 60)}" is not the name of a ControlNet', "control")
    return name


def _from_base64(text: str) -> bytes:
    if re.match(r"\s*[a-z][a-z0-9+.-]{1,20}://", text, re.ASCII | re.IGNORECASE):
        raise BadField(
            "control: no URL is fetched; the image has to be there as base64", "control", "url_images_disabled"
        )
    inside = in_data_url(text)
    content = from_base64(text if inside is None else inside)
    if content is None:
        raise BadField("control: the image is no valid base64", "control")
    return content


def _white_where_clear(mask: str, image: str) -> bytes:
    """OpenAI's mask is clear where to repaint, sdcli's is white there."""
    from PIL import ImageOps

    marks, whole = read.look(mask), read.look(image)
    if (marks.width, marks.height) != (whole.width, whole.height):
        sizes = f"{marks.width}x{marks.height} and the image {whole.width}x{whole.height}"
        raise BadField(f"mask is {sizes}; they have to be as large", "mask")
    alpha = read.layers(marks).alpha
    if alpha is None or alpha.getextrema()[0] > 255 - canvas.HALF:
        raise BadField("mask: nothing is transparent in it; what is to be repainted has to be", "mask")
    return saved(ImageOps.invert(alpha), "PNG")
