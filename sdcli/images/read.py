"""Image files that a run starts from: what one is, and its pixels as RGB, whatever program or camera wrote it."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sdcli import reading
from sdcli.errors import BadFile, SdcliError, Usage
from sdcli.schema import transient
from sdcli.terminal import show

LARGEST_FILE = 512 << 20
MOST_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
HINT = "another image file   (png, jpg, webp, avif, bmp, gif or tiff)"
WHITE = (255, 255, 255)
MADE_WHITE = "its transparent parts are white"


@dataclass(frozen=True, kw_only=True)
class InputImage:
    """An image file, known by its content. Sides are those of the upright image."""

    name: str
    width: int
    height: int
    sha256: str
    path: str = transient(default="")
    told: tuple[str, ...] = transient(default=())  # what was done to it to make it RGB, where that loses something


def look(path: str | Path) -> InputImage:
    """What is in a file. It is decoded once, so that a damaged one is refused here and not after loading a model."""
    data = _bytes(path)
    image, told = _decoded(data, path, _upright_rgb)
    return InputImage(
        name=Path(path).name, width=image.width, height=image.height, sha256=_sha256(data),
        path=str(Path(path).absolute()), told=told,
    )  # fmt: skip


def decoded(path: str | Path) -> Any:
    """The pixels of a file, a PIL image in RGB, in one reading: for what is looked at once, and not drawn from."""
    return _decoded(_bytes(path), path, _upright_rgb)[0]


def rgb(image: InputImage) -> Any:
    """Its pixels, a PIL image; they are those that were looked at, or it is refused."""
    return _pixels(image, "RGB")


def grey(image: InputImage) -> Any:
    """As brightness alone: what a mask is."""
    return _pixels(image, "L")


class Layers(NamedTuple):
    """Pillow's images of the same size: colours, and how opaque they are where they are not everywhere."""

    rgb: Any
    alpha: Any = None
    profile: bytes = b""  # of the colours


def layers(image: InputImage) -> Layers:
    """Its colours as they are stored, whatever is transparent."""
    found: Layers = _decoded(_same(image), image.path, _layers)
    return found


def _layers(image: Any) -> Layers:
    from PIL import ImageOps

    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "P") else None
    image.load()
    plain = _eight_bits(ImageOps.exif_transpose(image))
    if not plain.has_transparency_data:
        return Layers(plain.convert("RGB"), None, profile or b"")
    with_alpha = plain.convert("RGBA")
    alpha = with_alpha.getchannel("A")
    return Layers(with_alpha.convert("RGB"), None if alpha.getextrema()[0] == 255 else alpha, profile or b"")


def _pixels(image: InputImage, mode: str) -> Any:
    return _decoded(_same(image), image.path, _upright_rgb)[0].convert(mode)


def _same(image: InputImage) -> bytes:
    """The bytes that were looked at."""
    data = _bytes(image.path)
    if _sha256(data) != image.sha256:
        raise BadFile(f"{show(image.path, 200)} changed while it was in use", hint="the same command again")
    return data


def _sha256(data: bytes) -> str:
    from hashlib import sha256  # slow to load, and every command imports this module

    return sha256(data).hexdigest()


def _bytes(path: str | Path) -> bytes:
    name = show(path, 200)
    try:
        return reading.whole(path, LARGEST_FILE)
    except ValueError:  # a NUL in it
        raise Usage(f"{name} is not a path", hint=HINT) from None
    except FileNotFoundError:
        raise Usage(f"there is no file {name}", hint=HINT) from None
    except OSError as error:
        raise reading.cannot_read(path, error, HINT) from None


def _decoded(data: bytes, path: str | Path, taken: Callable[[Any], Any]) -> Any:
    """What is `taken` of it. Pillow's decoders fail in many ways on damaged files, not all documented: here those are
    one."""
    from PIL import Image, UnidentifiedImageError

    name = show(path, 200)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs (MOST_PIXELS is checked first) and of odd EXIF
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                return taken(image)
    except SdcliError:
        raise
    except Image.DecompressionBombError:
        raise BadFile(
            f"{name} has more than the {MOST_PIXELS // 10**6} million pixels that sdcli reads", hint=HINT
        ) from None
    except UnidentifiedImageError:  # its message names a Python object
        raise BadFile(f"{name} is not an image that sdcli reads", hint=HINT) from None
    except MemoryError:
        raise
    except Exception as error:
        raise BadFile(f"{name} is a damaged image ({show(error, 120)})", hint=HINT) from None


def _upright_rgb(image: Any) -> tuple[Any, tuple[str, ...]]:
    """Upright and RGB, and what was done to it."""
    from PIL import ImageOps

    told = []
    if image.format in _MOVING and getattr(image, "is_animated", False):
        told.append("only its first frame is used")
    image.load()
    upright = ImageOps.exif_transpose(image)
    plain, transparent = _without_alpha(_eight_bits(upright))
    if transparent:
        told.append(MADE_WHITE)
    return plain, tuple(told)


_MOVING = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")


def _eight_bits(image: Any) -> Any:
    """Sixteen bits scaled: Pillow would cut off whatever is brighter than 255."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if not image.mode.startswith("I"):
        return image
    import numpy
    from PIL import Image

    values = numpy.asarray(image).astype(numpy.float64).clip(0, 65535)
    return Image.fromarray((values / 257).round().astype(numpy.uint8), mode="L")


def _without_alpha(image: Any) -> tuple[Any, bool]:
    """RGB, transparent parts over white; and whether there were any."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB"), False
    with_alpha = image.convert("RGBA")
    if with_alpha.getchannel("A").getextrema()[0] == 255:
        return with_alpha.convert("RGB"), False
    white = Image.new("RGBA", image.size, (*WHITE, 255))
    return Image.alpha_composite(white, with_alpha).convert("RGB"), True


def files_of(text: str) -> list[Path]:
    """The files that a path, a folder or a pattern such as photos/*.jpg names, sorted by name."""
    path = Path(os.path.expanduser(text))
    if os.path.isdir(path):
        found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES]
    elif os.path.exists(path) or not any(mark in text for mark in "*?["):
        return [path]
    else:
        import glob

        found = [Path(name) for name in sorted(glob.glob(str(path)))]
    if not found:
        raise Usage(f"there is no image in {show(text, 200)}", hint=HINT)
    return found
