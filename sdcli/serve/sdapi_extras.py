"""A1111's extras: images made larger."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.asking import enlarging
from sdcli.errors import Cancelled, ModelMissing, Terminated, from_json
from sdcli.events import Failed, Saved
from sdcli.images import fit, read
from sdcli.images.read import InputImage
from sdcli.models.listing import Entry
from sdcli.plan.upscaling import UpscalePlan, refused
from sdcli.record import enlarged
from sdcli.record.encode import saved
from sdcli.request import config
from sdcli.request.upscaling import LARGEST_SIDE, Target
from sdcli.serve.line import Full
from sdcli.serve.sdapi_answers import encoded
from sdcli.serve.sdapi_body import Body, content_of
from sdcli.serve.sdapi_names import Names, path_of
from sdcli.serve.sdapi_schemas import (
    ONE_IMAGE,
    TEXT,
    YES,
    Fields,
    Kind,
    Schema,
    any_number,
    any_whole,
    check,
    number_of,
    of_object,
    one_of,
)
from sdcli.serve.service import Service
from sdcli.workers.worker import Died, Worker

Stopped = Callable[[], bool]
AT_ONCE = 1
_ABOUT_THE_DEVICE = ("device", "dtype", "max_vram", "max_ram", "fallback")
_NEUTRAL = {
    "gfpgan_visibility": (0,), "codeformer_visibility": (0,), "extras_upscaler_2_visibility": (0,),
}  # fmt: skip
_SIDES = ("upscaling_resize_w", "upscaling_resize_h")
_FIELDS: Fields = {
    **{name: one_of(values) for name, values in _NEUTRAL.items()}, "upscaler_1": TEXT, "resize_mode": number_of((0, 1)),
    "upscaling_resize": any_number(), **dict.fromkeys(_SIDES, any_whole()), "upscaling_crop": YES,
}  # fmt: skip
_ITEM: Schema = {"anyOf": [ONE_IMAGE.schema, of_object({"data": ONE_IMAGE}, "data")]}
_ITEMS = Kind({"type": "array", "items": _ITEM, "minItems": 1})
SINGLE = of_object({**_FIELDS, "image": ONE_IMAGE}, "image")
BATCH = of_object({**_FIELDS, "imageList": _ITEMS}, "imageList")


@dataclass(frozen=True, kw_only=True)
class Size:
    """What each image comes to: a factor, or a width and a height, cut to their shape or large enough for both."""

    factor: float | None = None
    width: int = 0
    height: int = 0
    crop: bool = True

    def of(self, width: int, height: int) -> tuple[int, int]:
        if self.factor is None and self.crop:
            return self.width, self.height
        factor = self.factor or max(self.width / width, self.height / height)
        return max(1, round(width * factor)), max(1, round(height * factor))


class Extras:
    def __init__(self, service: Service, names: Names) -> None:
        self._service, self._names = service, names
        self._free = threading.BoundedSemaphore(AT_ONCE)

    def single(self, body: Body, left: threading.Event) -> dict[str, Any]:
        content = body.image("image")
        if not content:
            raise body.refused("image", "no image")
        return {"image": encoded(self._made(body, {"image": content}, left)[0]), "html_info": ""}

    def batch(self, body: Body, left: threading.Event) -> dict[str, Any]:
        contents = {}
        for number, item in enumerate(body.listed("imageList")):
            field = f"imageList[{number}].data"
            contents[field] = content_of(item.get("data") if isinstance(item, Mapping) else item, field)
        if not contents:
            raise body.refused("imageList", "no image")
        return {"images": [encoded(content) for content in self._made(body, contents, left)], "html_info": ""}

    def _made(self, body: Body, contents: Mapping[str, bytes], left: threading.Event) -> list[bytes]:
        check(body, _FIELDS)
        for name, values in _NEUTRAL.items():
            body.neutral(name, values)
        upscaler, size = body.text("upscaler_1") or "None", _size(body)
        upload = self._service.upload
        images = [read.look(body.kept(content, name, upload)) for name, content in contents.items()]
        if upscaler.casefold() == "none":  # in A1111 too this changes nothing, whatever the size
            return [saved(read.rgb(image), "PNG") for image in images]
        sides = [size.of(image.width, image.height) for image in images]
        for width, height in sides:
            if max(width, height) > LARGEST_SIDE or width * height > read.MOST_PIXELS:
                raise body.refused("upscaling_resize", f"an image would become {width}×{height}")
        plain = _PLAIN.get(upscaler.casefold())
        if plain is not None:
            return [saved(plain(read.rgb(image), *one), "PNG") for image, one in zip(images, sides, strict=True)]
        path = path_of(_named(body, upscaler, self._names))
        with self._turn():
            return self._by_model(path, images, sides, lambda: left.is_set() or self._service.closing)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One at a time, and nobody waits: the threads that wait are those that answer everybody else."""
        if self._service.closing:
            raise Terminated("the server is shutting down")
        if not self._free.acquire(blocking=False):
            raise Full("other images are being enlarged")
        try:
            yield
        finally:
            self._free.release()

    def _by_model(
        self, path: str, images: Sequence[InputImage], sides: Sequence[tuple[int, int]], stopped: Stopped
    ) -> list[bytes]:  # fmt: skip
        """In a process of its own, which ends with it: what is loaded to draw stays loaded, and is planned around."""
        typed = {name: value for name, value in self._service.settings.typed.items() if name in _ABOUT_THE_DEVICE}
        typed |= {"device": self._names.device} if "devices" in self._service.settings.typed else {}
        values = {**config.unfolded(config.from_flags(typed)), "upscaler": path}
        with tempfile.TemporaryDirectory(prefix="sdcli-extras-") as folder, Worker() as worker:
            contents = []
            for image, size in zip(images, sides, strict=True):
                plan = enlarging.plan_for([image], values, Target(size=size), tried=False)
                if not plan.fits:
                    raise refused(plan)
                contents.append(_enlarged(plan, folder, worker, stopped))
        return contents


def _enlarged(plan: UpscalePlan, folder: str, worker: Worker, stopped: Stopped) -> bytes:
    destination = enlarging.destination(plan, {"output": folder}, {})
    try:
        for event in enlarged.store(worker.enlarge(plan), plan, destination, "full"):
            if isinstance(event, Saved):
                return Path(event.path).read_bytes()
            if isinstance(event, Failed):
                raise from_json(dict(event.error))
            if stopped():
                break
    except Died as died:
        raise died.error from None
    raise Cancelled("cancelled")


def _named(body: Body, upscaler: str, names: Names) -> Entry:
    try:
        return names.beside(upscaler, "upscaler", "upscaler")
    except ModelMissing as missing:
        raise body.refused("upscaler_1", missing.message) from None


def _size(body: Body) -> Size:
    mode = body.whole("resize_mode") or 0
    if mode not in (0, 1):
        raise body.refused("resize_mode", f"{mode} is not one of 0, 1")
    if mode == 0:
        factor = body.number("upscaling_resize")
        if factor is not None and factor <= 0:
            raise body.refused("upscaling_resize", f"{factor:g} is not more than 0")
        return Size(factor=factor or 2.0)
    sides = [512 if body.whole(name) is None else body.whole(name) or 0 for name in _SIDES]
    if min(sides) < 1:
        raise body.refused(_SIDES[sides.index(min(sides))], "less than 1")
    return Size(width=sides[0], height=sides[1], crop=body.yes("upscaling_crop") is not False)


def _lanczos(image: Any, width: int, height: int) -> Any:
    return fit.fitted(image, width, height, "crop")


def _nearest(image: Any, width: int, height: int) -> Any:
    """Cut to the shape first: no pixel is mixed with another."""
    from PIL import Image

    factor = max(width / image.width, height / image.height)
    across, down = width / factor, height / factor
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, left + across, top + down)
    return image.resize((width, height), Image.Resampling.NEAREST, box=box)


_PLAIN = {"lanczos": _lanczos, "nearest": _nearest}
