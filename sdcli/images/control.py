"""Images that ControlNets steer by, made from others without a model."""

from __future__ import annotations

from typing import Any, Protocol

from sdcli.images import edges, read
from sdcli.images.canvas import Canvas, beside
from sdcli.images.read import InputImage

WAYS = ("canny", "scribble", "tile", "invert", "none")

# What a control image may show → its number in ControlNet Unions, which are told; and what else that is called.
SHOWN = {
    "openpose": 0, "depth": 1, "scribble": 2, "canny": 3, "normal": 4, "segmentation": 5, "tile": 6, "repaint": 7,
}  # fmt: skip
_ALSO = {
    "pose": "openpose", "hed": "scribble", "softedge": "scribble", "lineart": "canny", "mlsd": "canny",
    "seg": "segmentation", "inpaint": "repaint",
}  # fmt: skip


def shown_by(name: str) -> str | None:
    """What images of this name show; None where it is no name of any."""
    name = name.strip().casefold()
    return name if name in SHOWN else _ALSO.get(name)


class Steers(Protocol):
    """What a request says of one."""

    @property
    def image(self) -> InputImage: ...
    @property
    def made(self) -> str: ...
    @property
    def fit(self) -> str: ...


def image_of(control: Steers, width: int, height: int, canvas: Canvas | None = None) -> Any:
    """What a ControlNet sees, Pillow's. Where only a part of an image is drawn, as `canvas` has it, of that part."""
    return prepared(beside(read.rgb(control.image), canvas, width, height, control.fit), control.made)


def prepared(image: Any, way: str) -> Any:
    """An RGB image of the same size. It is to be of the size that is drawn: lines found in a larger one would be
    thinner than any that a ControlNet was trained on."""
    image = image.convert("RGB")
    if way in ("none", "tile"):  # ControlNets for tiles want the image itself, and draw its details anew
        return image
    if way == "invert":
        return _inverted(image)
    return {"canny": edges.canny, "scribble": edges.scribble}[way](image)


def _inverted(image: Any) -> Any:
    """For lines drawn black on white: ControlNets were trained on white ones."""
    from PIL import ImageOps

    return ImageOps.invert(image)
