"""The images that a batch starts from, each encoded once, whatever the number of seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from sdcli.draw import encode_image
from sdcli.draw.decode import RGBImage
from sdcli.draw.place import Components
from sdcli.draw.start import EncodedStart
from sdcli.images import canvas
from sdcli.images.canvas import HALF, Canvas
from sdcli.images.fit import fitted
from sdcli.models.model import Model
from sdcli.models.vae import scale
from sdcli.request.request import Job, Sides, Start

Exact = Callable[[Any], AbstractContextManager[Any]]


class StartKey(NamedTuple):
    """An image at the size it is drawn at."""

    start: Start | None  # None: no image, for a UNet that sees one all the same
    width: int
    height: int


def keys_of(model: Model, jobs: Sequence[Job]) -> list[StartKey]:
    """What a batch starts from: one for each job, or none."""
    if jobs[0].start is None and not model.sees_mask:
        return []
    return [StartKey(job.start, job.width, job.height) for job in jobs]


@dataclass(frozen=True)
class Started:
    canvas: Canvas
    encoded: EncodedStart


class Images:
    """The images encoded so far; those no longer needed are dropped."""

    def __init__(self) -> None:
        self._started: dict[StartKey, Started] = {}

    def keep(self, keys: Iterable[StartKey]) -> None:
        needed = set(keys)
        self._started = {key: one for key, one in self._started.items() if key in needed}

    def missing(self, keys: Iterable[StartKey]) -> list[StartKey]:
        return [key for key in dict.fromkeys(keys) if key not in self._started]

    def started(self, key: StartKey) -> Started:
        return self._started[key]

    def encode(self, components: Components, part: str, keys: Sequence[StartKey]) -> None:
        """One by one: several at once would change pixels."""
        model = components.model
        edge = scale(components.model.components[part].config)
        with components.encoder(part) as vae:
            for key in keys:
                made = canvas_of(key)
                if model.edits:
                    encoded_start = looked_at(vae, made, components.exact)
                else:
                    encoded_start = encoded(vae, key.start, made, edge, model.sees_mask, components.exact)
                self._started[key] = Started(made, encoded_start)


def canvas_of(key: StartKey) -> Canvas:
    start, width, height = key
    if start is None:
        return canvas.blank(width, height)
    repaint = start.repaint
    if repaint is None:
        return canvas.plain(start.image, width, height, start.fit)
    if repaint.outpaint is not None:
        return canvas.extended(start.image, repaint.mask, width, height, start.fit, _box(repaint.outpaint))
    assert repaint.mask is not None
    if repaint.padding is not None:
        return canvas.only_masked(start.image, repaint.mask, width, height, repaint.padding)
    return canvas.masked(start.image, repaint.mask, width, height, start.fit)


def put_back(drawn: RGBImage, start: Start | None, made: Canvas) -> RGBImage:
    """The masked part of it, in the image it belongs to. What was added around one has nothing to blend with."""
    from PIL import Image

    if start is None or start.repaint is None:
        return drawn
    image = Image.frombytes("RGB", (drawn.width, drawn.height), drawn.pixels)
    whole = made.finished(image, 0 if start.repaint.outpaint else start.repaint.blur)
    return RGBImage(whole.width, whole.height, whole.tobytes(), drawn.retried)


def lanczos(small: RGBImage, width: int, height: int) -> Any:
    """Pillow's image of it, enlarged."""
    from PIL import Image

    image = Image.frombytes("RGB", (small.width, small.height), small.pixels)
    return fitted(image, width, height, "stretch")


def _box(sides: Sides) -> canvas.Box:
    return sides.left, sides.top, sides.right, sides.bottom


def encoded(
    vae: Any, start: Start | None, made: Canvas, edge: int, sees_mask: bool, exact: Exact
) -> EncodedStart:  # fmt: skip
    pixels = encode_image.pixels(made.image)
    repaint = None if start is None else start.repaint
    if repaint is None and not sees_mask:
        return EncodedStart(encode_image.encode(vae, pixels, exact))
    # without a mask everything is drawn anew
    marks = (
        torch.from_numpy(numpy.asarray(made.mask) >= HALF)[None, None]
        if made.mask
        else torch.ones_like(pixels[:, :1], dtype=torch.bool)
    )
    posterior = masked = None
    if start is not None and (not sees_mask or start.strength < 1.0):
        filled = repaint is not None and repaint.content == "fill"
        image = encode_image.pixels(canvas.filled(made.image, made.mask)) if filled else pixels
        posterior = encode_image.encode(vae, image, exact)
    if sees_mask:
        masked = encode_image.encode(vae, pixels * ~marks, exact)
    return EncodedStart(posterior, masked, _of_latents(marks, edge))


def looked_at(vae: Any, made: Canvas, exact: Exact) -> EncodedStart:
    """By a UNet that edits. Not scaled: such UNets were trained so."""
    return EncodedStart(None, edited=encode_image.encode(vae, encode_image.pixels(made.image), exact).mean)


def _of_latents(marks: Tensor, edge: int) -> Tensor:
    """The mask's pixel at the corner of each latent, as diffusers takes it."""
    return marks[:, :, ::edge, ::edge].float()
