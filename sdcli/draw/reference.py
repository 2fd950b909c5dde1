"""Reference images: each encoded once, and turned once into the keys and values that the UNet's layers attend to beside
those of the prompt. diffusers' arithmetic, which computes them anew in every call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from sdcli.draw.place import Components
from sdcli.images import canvas, read
from sdcli.images.canvas import HALF, Canvas
from sdcli.images.read import InputImage
from sdcli.models import vision
from sdcli.models.model import Model
from sdcli.models.reference import acts_in, cross_attentions
from sdcli.models.reference_walk import PLAIN
from sdcli.plan.stages import sides
from sdcli.request.request import Job, Reference

# What CLIP's image encoders were trained on: red, green and blue.
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LONGEST = 32  # times the short side; of a longer image the ends, which are never looked at, are cut off first


def pixels(image: Any, side: int) -> Tensor:
    """Pillow's RGB image as [1, 3, side, side]: the short side resized, and the middle of the long one."""
    from PIL import Image

    image = _shortened(image)
    short = min(image.size)
    width, height = (side if edge == short else int(side * edge / short) for edge in image.size)
    small = image.resize((width, height), resample=Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    square = numpy.asarray(small.crop((left, top, left + side, top + side)), dtype=numpy.uint8)
    shares = (square.astype(numpy.float64) * (1 / 255)).astype(numpy.float32)
    scaled = (shares - numpy.array(MEAN, dtype=numpy.float32)) / numpy.array(DEVIATION, dtype=numpy.float32)
    return torch.from_numpy(scaled.transpose(2, 0, 1)[None].copy())


def _shortened(image: Any) -> Any:
    width, height = (min(edge, LONGEST * min(image.size)) for edge in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


# --- which images are attended to together


class Together(NamedTuple):
    """The images of a job, with or without the rows of guidance's other side. Their tokens are made at once, as
    diffusers does: products of very few rows round otherwise."""

    images: tuple[InputImage, ...]
    guided: bool


def in_groups(references: Sequence[Reference]) -> list[tuple[Reference, ...]]:
    """Those without a mask share one attention; each of the others has its own."""
    everywhere = tuple(one for one in references if one.mask is None)
    return [*([everywhere] if everywhere else []), *((one,) for one in references if one.mask is not None)]


def _together(job: Job, guided: bool) -> Together:
    return Together(tuple(one.image for group in in_groups(job.references) for one in group), guided)


Attended = list[tuple[Tensor, Tensor]]  # keys and values of each layer, [rows, images, tokens, width], on the host


class References:
    """What was made of reference images so far; what is no longer needed is dropped."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._encoded: dict[InputImage | None, Tensor] = {}  # None: of no image
        self._attended: dict[Together, Attended] = {}

    def needed(self, jobs: Sequence[Job]) -> list[Together]:
        both = sides(self._model, jobs[0]) > 1
        return list(dict.fromkeys(_together(job, both) for job in jobs if job.references))

    def keep(self, needed: Iterable[Together]) -> None:
        kept = set(needed)
        images = {image for one in kept for image in one.images}
        self._attended = {one: attended for one, attended in self._attended.items() if one in kept}
        self._encoded = {image: one for image, one in self._encoded.items() if image is None or image in images}

    def missing(self, needed: Iterable[Together]) -> list[Together]:
        return [one for one in needed if one not in self._attended]

    # the two models, one after the other

    def encode(self, components: Components, part: str, needed: Sequence[Together]) -> None:
        """One by one: several at once would round otherwise."""
        images: list[InputImage | None] = [image for one in needed for image in one.images]
        if not self._plain and any(one.guided for one in needed):
            images.append(None)
        side = vision.side(components.model.components[part].config)
        with components.use(part) as encoder:
            for image in dict.fromkeys(images):
                if image not in self._encoded:
                    given = torch.zeros((1, 3, side, side)) if image is None else pixels(read.rgb(image), side)
                    given = given.to(components.device_of(part), components.dtype_of(part))
                    self._encoded[image] = encoded(encoder, given, rows=not self._plain)

    def attend(self, components: Components, part: str, needed: Sequence[Together]) -> None:
        with components.use(part) as adapter:
            for one in needed:
                given = self._given(one).to(components.device_of(part), components.dtype_of(part))
                self._attended[one] = attended(adapter, given)

    @property
    def _plain(self) -> bool:
        return bool(self._model.components["ip_adapter"].config["kind"] == PLAIN)

    def _given(self, together: Together) -> Tensor:
        """[rows, images, …]; without an image there is a vector of zeros, or what is seen in none."""
        seen = torch.stack([self._encoded[image] for image in together.images], dim=1)
        if not together.guided:
            return seen
        nothing = torch.zeros_like(seen)
        if not self._plain:
            nothing = torch.stack([self._encoded[None]] * len(together.images), dim=1)
        return torch.cat([nothing, seen])

    # for the UNet

    def referred(
        self, jobs: Sequence[Job], latents: tuple[int, int], size: tuple[int, int], canvases: Sequence[Canvas | None],
        device: torch.device,
    ) -> dict[str, dict[str, Any]]:  # fmt: skip
        """What a batch's rows attend to, as attention.with_references takes it: by group its weight, and by layer its
        keys and values. `latents` is their height and width, `size` the image's width and height."""
        both = sides(self._model, jobs[0]) > 1
        found = [self._attended[_together(job, both)] for job in jobs]
        names = [name for name, _ in cross_attentions(self._model.components["unet"].config)]
        result: dict[str, dict[str, Any]] = {}
        end = 0
        for number, group in enumerate(in_groups(jobs[0].references)):
            images = slice(end, end := end + len(group))
            weight, shares = _weights(group)
            if not weight:
                continue
            layers = {name: index for index, name in enumerate(names) if acts_in(group[0].layers, name)}
            result[str(number)] = seen = {
                "weight": weight,
                "keys": {
                    name: _rows([one[layer][0][:, images] for one in found]).to(device)
                    for name, layer in layers.items()
                },
                "values": {
                    name: _rows([_shared(one[layer][1][:, images], shares) for one in found]).to(device)
                    for name, layer in layers.items()
                },
            }
            if group[0].mask is not None:
                masks = [in_groups(job.references)[number][0] for job in jobs]
                marks = [marked(mask, made, *size) for mask, made in zip(masks, canvases, strict=True)]
                seen["masks"] = {
                    str(height * width): _at_level(marks, height, width, both).to(device, found[0][0][0].dtype)
                    for height, width in levels(self._model, *latents)
                }
        return result


@torch.no_grad()
def encoded(encoder: Any, given: Tensor, *, rows: bool) -> Tensor:
    """On the host: a vector of the whole image, or the rows before the last layer."""
    if not rows:
        vector: Tensor = encoder(given).image_embeds
        return vector.cpu()
    states: Tensor = encoder(given, output_hidden_states=True).hidden_states[-2]
    return states.cpu()


@torch.no_grad()
def attended(adapter: Any, given: Tensor) -> Attended:
    return [(keys.cpu(), values.cpu()) for keys, values in adapter(given)]


def _weights(group: Sequence[Reference]) -> tuple[float, tuple[float, ...]]:
    """The weight of all; where they differ, 1, and the share that each image's values have."""
    weights = tuple(one.weight for one in group)
    return (weights[0], ()) if len(set(weights)) == 1 else (1.0, weights)


def _shared(values: Tensor, shares: tuple[float, ...]) -> Tensor:
    return values * torch.tensor(shares).view(1, -1, 1, 1).to(values) if shares else values


def _rows(each: Sequence[Tensor]) -> Tensor:
    """[rows, tokens of all images, width] of a batch: what goes with negative prompts first."""
    joined = [one.flatten(1, 2) for one in each]
    return torch.cat([one[row : row + 1] for row in range(len(joined[0])) for one in joined])


# --- masks


def marked(reference: Reference, made: Canvas | None, width: int, height: int) -> Tensor:
    """Where it acts, [1, 1, height, width] of zeros and ones."""
    assert reference.mask is not None
    placed = canvas.beside(read.grey(reference.mask), made, width, height, reference.fit)
    return torch.from_numpy(numpy.asarray(placed) >= HALF)[None, None].float()


def levels(model: Model, height: int, width: int) -> Iterator[tuple[int, int]]:
    """The sizes at which a UNet attends, from that of its latents."""
    for _ in model.components["unet"].config["block_out_channels"]:
        yield height, width
        height, width = -(-height // 2), -(-width // 2)


def _at_level(marks: Sequence[Tensor], height: int, width: int, both: bool) -> Tensor:
    """[rows, 1, tokens, 1]"""
    small = torch.cat([functional.interpolate(one, size=(height, width), mode="bicubic") for one in marks])
    return torch.cat([small] * (2 if both else 1)).flatten(2)[..., None]
