"""A1111's extras: images made larger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.images import fit, read
from sdcli.record.encode import saved
from sdcli.request.upscaling import LARGEST_SIDE
from sdcli.serve.sdapi_answers import encoded
from sdcli.serve.sdapi_body import Body, content_of
from sdcli.serve.sdapi_names import Names
from sdcli.serve.service import Service
from sdcli.terminal import show

_NEUTRAL = {
    "gfpgan_visibility": (0,), "codeformer_visibility": (0,), "extras_upscaler_2_visibility": (0,),
}  # fmt: skip


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


def single(body: Body, service: Service, names: Names) -> dict[str, Any]:
    content = body.image("image")
    if not content:
        raise body.refused("image", "no image")
    return {"image": encoded(_enlarged(body, content, service)), "html_info": ""}


def batch(body: Body, service: Service, names: Names) -> dict[str, Any]:
    contents = []
    for number, item in enumerate(body.listed("imageList")):
        field = f"imageList[{number}].data"
        contents.append(content_of(item.get("data") if isinstance(item, Mapping) else item, field))
    if not contents:
        raise body.refused("imageList", "no image")
    return {"images": [encoded(_enlarged(body, content, service)) for content in contents], "html_info": ""}


def _enlarged(body: Body, content: bytes, service: Service) -> bytes:
    for name, values in _NEUTRAL.items():
        body.neutral(name, values)
    upscaler, size = (body.text("upscaler_1") or "None").casefold(), _size(body)
    image = read.decoded(service.upload(content))
    if upscaler == "none":  # in A1111 too this changes nothing, whatever the size
        return saved(image, "PNG")
    width, height = size.of(*image.size)
    if max(width, height) > LARGEST_SIDE or width * height > read.MOST_PIXELS:
        raise body.refused("upscaling_resize", f"the image would become {width}×{height}")
    if upscaler not in _PLAIN:
        raise body.refused("upscaler_1", f"{show(body.text('upscaler_1'), 60)} is not one of None, Lanczos, Nearest")
    return saved(_PLAIN[upscaler](image, width, height), "PNG")


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


_SIDES = ("upscaling_resize_w", "upscaling_resize_h")


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
