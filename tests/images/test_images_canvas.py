"""Masks: where they are, what is drawn, and that everything else keeps its pixels."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from sdcli.errors import BadFile
from sdcli.images import canvas, read
from sdcli.images.canvas import Canvas
from sdcli.images.read import InputImage


def noise(width: int, height: int) -> Image.Image:
    values = numpy.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(values)


def marks(width: int, height: int, *boxes: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    for box in boxes:
        ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


def file(folder: Path, name: str, image: Image.Image) -> InputImage:
    image.save(folder / name)
    return read.look(folder / name)


def unmasked_differ(before: Image.Image, after: Image.Image, mask: Image.Image) -> int:
    outside = numpy.asarray(mask) < 128
    return int((numpy.asarray(before)[outside] != numpy.asarray(after)[outside]).sum())


@pytest.mark.parametrize("blur", [0, 1, 4, 30])
def test_what_is_not_masked_keeps_its_pixels_exactly(tmp_path: Path, blur: int) -> None:
    image, mask = noise(96, 64), marks(96, 64, (20, 10, 60, 50))
    made = canvas.masked(file(tmp_path, "a.png", image), file(tmp_path, "m.png", mask), 96, 64, "crop")
    drawn = Image.new("RGB", (96, 64), (255, 0, 255))
    finished = made.finished(drawn, blur)
    assert unmasked_differ(image, finished, mask) == 0
    assert finished.getpixel((40, 30)) == (255, 0, 255)


def test_new_and_old_blend_within_the_mask(tmp_path: Path) -> None:
    image, mask = Image.new("RGB", (64, 64)), marks(64, 64, (16, 16, 48, 48))
    made = Canvas(image, mask, image, mask)
    finished = made.finished(Image.new("RGB", (64, 64), (200, 200, 200)), 4)
    across = [finished.getpixel((x, 32))[0] for x in range(16, 33)]
    assert across == sorted(across) and across[0] < 60 and across[-1] == 200
    assert finished.getpixel((15, 32)) == (0, 0, 0)


def test_only_the_masked_part_of_a_large_photo_is_drawn(tmp_path: Path) -> None:
    photo, mask = noise(1200, 800), marks(1200, 800, (600, 300, 700, 360))
    made = canvas.only_masked(file(tmp_path, "a.png", photo), file(tmp_path, "m.png", mask), 64, 64, 32)
    left, top, right, bottom = made.box or (0, 0, 0, 0)
    assert made.image.size == made.mask.size == (64, 64)
    assert left <= 568 and top <= 268 and right >= 732 and bottom >= 392 and right - left == bottom - top
    finished = made.finished(Image.new("RGB", (64, 64), (9, 9, 9)), 4)
    assert finished.size == (1200, 800)
    assert unmasked_differ(photo, finished, mask) == 0
    assert finished.getpixel((650, 330)) == (9, 9, 9)


sides = st.integers(8, 200)


@settings(deadline=None, max_examples=150)
@given(width=sides, height=sides, padding=st.integers(0, 300), data=st.data())
def test_the_box_holds_the_mask_and_stays_within_the_image(
    width: int, height: int, padding: int, data: st.DataObject
) -> None:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    drawn = data.draw(st.sampled_from([(64, 64), (96, 64), (64, 512)]))
    box = canvas.region(marks(width, height, (left, top, right, bottom)), *drawn, padding)
    assert 0 <= box[0] <= left and 0 <= box[1] <= top
    assert right <= box[2] <= width and bottom <= box[3] <= height


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 104)])
@pytest.mark.parametrize("padding", [0, 3, 32])
@pytest.mark.parametrize("box", [(10, 10, 30, 20), (0, 0, 5, 90), (100, 50, 149, 90), (3, 80, 140, 90)])
def test_the_box_is_the_one_diffusers_finds(
    size: tuple[int, int], padding: int, box: tuple[int, int, int, int]
) -> None:
    from diffusers.image_processor import VaeImageProcessor

    mask = marks(150, 90, box)
    assert canvas.region(mask, *size, padding) == VaeImageProcessor.get_crop_region(mask, *size, pad=padding)


def test_around_an_image_the_image_itself_stays(tmp_path: Path) -> None:
    image = noise(64, 48)
    made = canvas.extended(file(tmp_path, "a.png", image), None, 128, 80, "crop", (40, 16, 24, 16))
    assert made.image.size == (128, 80)
    assert made.image.crop((40, 16, 104, 64)).tobytes() == image.tobytes()
    finished = made.finished(Image.new("RGB", (128, 80), (1, 2, 3)), 0)
    assert finished.crop((40, 16, 104, 64)).tobytes() == image.tobytes()
    assert {finished.getpixel(at) for at in ((0, 0), (39, 40), (127, 79), (60, 15), (60, 64))} == {(1, 2, 3)}


def test_the_edges_are_carried_on_around_it(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (10, 200, 30))
    made = canvas.extended(file(tmp_path, "a.png", image), None, 64, 48, "crop", (24, 16, 24, 16))
    assert set(made.image.get_flattened_data()) == {(10, 200, 30)}


def test_a_mask_of_another_size_and_the_same_shape_is_enlarged(tmp_path: Path) -> None:
    image, mask = file(tmp_path, "a.png", noise(96, 64)), file(tmp_path, "m.png", marks(48, 32, (12, 8, 24, 16)))
    made = canvas.masked(image, mask, 96, 64, "crop")
    assert made.mask.size == (96, 64)
    assert made.mask.getpixel((36, 24)) == 255 and made.mask.getpixel((10, 10)) == 0


@pytest.mark.parametrize("brightest", [0, 127])
def test_a_mask_without_white_is_refused(tmp_path: Path, brightest: int) -> None:
    mask = file(tmp_path, "m.png", Image.new("L", (8, 8), brightest))
    with pytest.raises(BadFile, match="nothing is white in the mask"):
        canvas.check_mask(mask)


def test_filling_takes_the_colours_around_the_mask_and_leaves_the_rest() -> None:
    image, mask = Image.new("RGB", (96, 64), (200, 100, 50)), marks(96, 64, (30, 20, 60, 40))
    image.paste((0, 0, 255), (30, 20, 60, 40))
    made = canvas.filled(image, mask)
    assert unmasked_differ(image, made, mask) == 0
    red, green, blue = made.getpixel((45, 30))
    assert abs(red - 200) < 12 and abs(green - 100) < 12 and abs(blue - 50) < 12
