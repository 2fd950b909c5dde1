"""Image files as people have them, and as nobody should: what is read, what is refused, and how it is said."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from scripts.proofs import modes
from sdcli.errors import BadFile, Usage
from sdcli.images import read

ORIENTATION = 0x0112


def saved(path: Path, image: Image.Image, **how: Any) -> Path:
    image.save(path, **how)
    return path


def colours(path: Path) -> set[Any]:
    return set(read.rgb(read.look(path)).get_flattened_data())


def test_an_image_is_known_by_its_content(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (40, 30), (1, 2, 3)))
    found = read.look(path)
    assert (found.name, found.width, found.height) == ("a.png", 40, 30)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.path == str(path)
    assert found.told == ()


@pytest.mark.parametrize("suffix", read.SUFFIXES)
def test_every_named_format_is_read(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a{suffix}", Image.new("RGB", (16, 16), (200, 40, 40)))
    (colour,) = {tuple(round(value / 8) for value in found) for found in colours(path)}
    assert colour == (25, 5, 5)


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    image.paste((255, 0, 0), (0, 0, 40, 10))
    tags = Image.Exif()
    tags[ORIENTATION] = 6  # as phones held upright write it
    path = saved(tmp_path / "a.png", image, exif=tags)
    found = read.look(path)
    assert (found.width, found.height) == (20, 40)
    upright = read.rgb(found)
    assert upright.getpixel((15, 20)) == (255, 0, 0) and upright.getpixel((5, 20)) == (0, 0, 0)


def test_transparent_parts_become_white_and_it_is_told(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    path = saved(tmp_path / "a.png", image)
    assert read.look(path).told == ("its transparent parts are white",)
    assert colours(path) == {(255, 255, 255), (10, 20, 30)}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_opaque_alpha_channel_changes_nothing(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (4, 4), 77).convert(mode))
    assert read.look(path).told == ()
    assert colours(path) == {(77, 77, 77)}


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([9, 9, 9, 50, 60, 70])
    image.putpixel((1, 0), 1)
    path = saved(tmp_path / "a.png", image, transparency=0)
    assert colours(path) == {(255, 255, 255), (50, 60, 70)}
    assert read.look(path).told == ("its transparent parts are white",)


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    values = numpy.array([[0, 257 * 100, 65535]], dtype=numpy.uint16)
    path = saved(tmp_path / "a.png", Image.fromarray(values))
    assert list(read.rgb(read.look(path)).get_flattened_data()) == [(0,) * 3, (100,) * 3, (255,) * 3]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
    (colour,) = colours(path)
    assert colour[0] > 200 and max(colour[1:]) < 60


def test_of_an_animation_the_first_frame_is_used_and_it_is_told(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert read.look(path).told == ("only its first frame is used",)
    assert colours(path) == {(255, 0, 0)}


def test_numbers_that_are_no_colours_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tiff", Image.new("F", (4, 4), 0.5))
    with pytest.raises(BadFile, match="floating-point"):
        read.look(path)


# --- refused


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="there is no file"):
        read.look(tmp_path / "nothing.png")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="it is a folder"):
        read.look(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no names on Windows")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadFile, match="a pipe or a device"):
        read.look(tmp_path / "pipe.png")


@pytest.mark.parametrize("content", [b"", b"hello", b"%PDF-1.4", b"<svg/>", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadFile, match=r"is not an image|is a damaged image"):
        read.look(tmp_path / "a.png")


def test_a_truncated_file_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.effect_noise((200, 200), 90).convert("RGB"))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(BadFile, match=r"damaged image \(.*truncated"):
        read.look(path)


@pytest.mark.parametrize("side", [10_001, 60_000])
def test_a_bomb_is_refused_by_its_size_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(bomb)
    with pytest.raises(BadFile, match="more than the 100 million pixels"):
        read.look(tmp_path / "a.png")


def test_a_file_that_changed_since_it_was_looked_at_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (8, 8)))
    found = read.look(path)
    saved(path, Image.new("RGB", (8, 8), (1, 1, 1)))
    with pytest.raises(BadFile, match="changed while it was in use"):
        read.rgb(found)


@pytest.mark.parametrize("format", modes.FORMATS)
def test_damaged_files_give_an_image_or_a_typed_error(tmp_path: Path, format: str) -> None:
    """A few bytes changed, dropped or doubled in each of many copies; scripts/prove modes makes 10,000."""
    assert set(modes.damaged(tmp_path / "damaged", format, 60)) <= {"read", "refused"}


# --- several


def test_a_folder_and_a_pattern_name_their_images_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "c.webp"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in read.files_of(str(tmp_path))] == ["a.JPG", "b.png", "c.webp"]
    assert [path.name for path in read.files_of(str(tmp_path / "*.png"))] == ["b.png"]
    assert [path.name for path in read.files_of(str(tmp_path / "b.png"))] == ["b.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").write_bytes(b"")
    assert [path.name for path in read.files_of(str(tmp_path / "a[1].png"))] == ["a[1].png"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="there is no image in"):
        read.files_of(str(tmp_path))
