"""What a job starts from, at the size it is drawn at, and what is drawn put back into the image it belongs to."""

from __future__ import annotations

from typing import Any, NamedTuple

import sdcli.images.fit as fits
from sdcli.errors import BadFile
from sdcli.images import read
from sdcli.images.read import InputImage
from sdcli.terminal import show

Box = tuple[int, int, int, int]  # left, top, right, bottom

HALF = 128  # a mask's pixel counts from here on


class Canvas(NamedTuple):
    """Pillow's images, all of the size that is drawn but `whole`: the image that the result is put back into."""

    image: Any
    mask: Any = None  # brightness; white is drawn anew
    whole: Any = None
    whole_mask: Any = None  # of its size
    box: Box | None = None  # the part of the whole that is drawn

    def finished(self, drawn: Any, blur: int) -> Any:
        """The drawn image where the mask is white, the old pixels everywhere else."""
        from PIL import Image

        if self.mask is None:
            return drawn
        new = self.whole.copy()
        left, top, right, bottom = self.box or (0, 0, *self.whole.size)
        new.paste(fits.fitted(drawn, right - left, bottom - top, "crop"), (left, top))
        return Image.composite(new, self.whole, _feathered(self.whole_mask, blur))


def blank(width: int, height: int) -> Canvas:
    """Nothing but grey, which is all that may be left of an image."""
    from PIL import Image

    return Canvas(Image.new("RGB", (width, height), (128, 128, 128)))


def plain(image: InputImage, width: int, height: int, fit: str) -> Canvas:
    return Canvas(fits.fitted(read.rgb(image), width, height, fit))


def masked(image: InputImage, mask: InputImage, width: int, height: int, fit: str) -> Canvas:
    """All of the image is drawn, and what is not masked put back."""
    whole = fits.fitted(read.rgb(image), width, height, fit)
    marks = fits.fitted(mask_of(mask, image), width, height, fit)
    return Canvas(whole, marks, whole, marks)


def only_masked(image: InputImage, mask: InputImage, width: int, height: int, padding: int) -> Canvas:
    """The masked part with some of its surroundings, as large as the size that is drawn."""
    whole, marks = read.rgb(image), mask_of(mask, image)
    box = region(marks, width, height, padding)
    image_part, marked_part = (fits.fitted(one.crop(box), width, height, "pad") for one in (whole, marks))
    return Canvas(image_part, marked_part, whole, marks, box)


def extended(image: InputImage, mask: InputImage | None, width: int, height: int, fit: str, sides: Box) -> Canvas:
    """The image with something around it that is drawn anew."""
    from PIL import Image

    left, top, right, bottom = sides
    inner = width - left - right, height - top - bottom
    whole = Image.new("RGB", (width, height))
    placed = fits.fitted(read.rgb(image), *inner, fit)
    whole.paste(placed, (left, top))
    _continue_edges(whole, (left, top, left + inner[0], top + inner[1]))
    marks = Image.new("L", (width, height), 255)
    within = fits.fitted(mask_of(mask, image), *inner, fit) if mask is not None else Image.new("L", inner, 0)
    marks.paste(within, (left, top))
    return Canvas(whole, marks, whole, marks)


def beside(image: Any, canvas: Canvas | None, width: int, height: int, fit: str) -> Any:
    """An image that says something about each place of what is drawn, of that size. Where only a part of a canvas is
    drawn, that part of it."""
    if canvas is None or canvas.box is None:
        return fits.fitted(image, width, height, fit)
    across, down = canvas.whole.size
    return fits.fitted(fits.fitted(image, across, down, "stretch").crop(canvas.box), width, height, "pad")


def mask_of(mask: InputImage, image: InputImage) -> Any:
    """Brightness, of the image's size."""
    marks = read.grey(mask)
    size = image.width, image.height
    return marks if marks.size == size else fits.fitted(marks, *size, "stretch")


def check_mask(mask: InputImage) -> None:
    """That something is white in it."""
    if read.grey(mask).getextrema()[1] < HALF:
        raise BadFile(
            f"nothing is white in the mask {show(mask.path, 200)}", hint="a mask that is white where to repaint"
        )


def region(marks: Any, width: int, height: int, padding: int) -> Box:
    """The box around what is not black, with some padding, widened to the shape of the size as far as it goes."""
    left, top, right, bottom = marks.getbbox()
    left, top = max(left - padding, 0), max(top - padding, 0)
    right, bottom = min(right + padding, marks.width), min(bottom + padding, marks.height)
    if (right - left) / (bottom - top) > width / height:
        top, bottom = _widened(top, bottom, int((right - left) / (width / height) - (bottom - top)), marks.height)
    else:
        left, right = _widened(left, right, int((bottom - top) * (width / height) - (right - left)), marks.width)
    return left, top, right, bottom


def _widened(first: int, last: int, more: int, most: int) -> tuple[int, int]:
    """Around its middle, moved to stay within `most`."""
    first, last = first - more // 2, last + more - more // 2
    beyond = max(0, last - most)
    first, last = first - beyond, last - beyond
    short = max(0, -first)
    return first + short, min(last + short, most)


def filled(image: Any, mask: Any) -> Any:
    """The masked part filled with what is around it, coarse inside and finer towards its border."""
    from PIL import Image, ImageFilter

    kept = Image.new("RGBa", image.size)
    known = image.convert("RGBA")
    known.putalpha(mask.point(lambda value: 0 if value >= HALF else 255))
    known = known.convert("RGBa")  # colours weighted by how much is known, so that blurring mixes only what is
    for radius in _RADII:
        blurred = known.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(2 if radius > 1 else 1):
            kept = Image.alpha_composite(kept.convert("RGBA"), blurred)
    return Image.composite(kept.convert("RGB"), image, mask.point(lambda value: 255 if value >= HALF else 0))


_RADII = (256, 64, 16, 8, 4, 2, 1)


def _feathered(mask: Any, blur: int) -> Any:
    """How much of the new image each pixel takes: all of it inside, none outside, less towards the border within."""
    from PIL import Image, ImageFilter

    hard = mask.point(lambda value: 255 if value >= HALF else 0)
    if blur <= 0:
        return hard
    soft = hard.filter(ImageFilter.GaussianBlur(blur))
    while blur > 1 and soft.getextrema()[1] < 255:  # too much for so small a mask: nothing of the new would be left
        blur //= 2
        soft = hard.filter(ImageFilter.GaussianBlur(blur))
    soft = soft.point(lambda value: max(0, min(255, 2 * value - 255)))
    return Image.composite(soft, Image.new("L", mask.size, 0), hard)


def _continue_edges(image: Any, box: Box) -> None:
    """The pixels at the border of the box carried on to the image's edges."""
    left, top, right, bottom = box
    if left:
        image.paste(image.crop((left, top, left + 1, bottom)).resize((left, bottom - top)), (0, top))
    if right < image.width:
        image.paste(
            image.crop((right - 1, top, right, bottom)).resize((image.width - right, bottom - top)), (right, top)
        )
    if top:
        image.paste(image.crop((0, top, image.width, top + 1)).resize((image.width, top)), (0, 0))
    if bottom < image.height:
        image.paste(
            image.crop((0, bottom - 1, image.width, bottom)).resize((image.width, image.height - bottom)), (0, bottom)
        )
