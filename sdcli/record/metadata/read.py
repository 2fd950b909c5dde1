"""The settings inside an image, read with bounds: plain values come out, whatever the file holds."""

from __future__ import annotations

import errno
import io
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sdcli import reading, schema
from sdcli.errors import BadFile, SdcliError, Usage
from sdcli.record.metadata import a1111, comfyui, exif, invokeai, mflux, own, sdcpp
from sdcli.request.request import Control
from sdcli.terminal import show

T = TypeVar("T")

LARGEST_FILE = 64 << 20
MOST_PIXELS = 64_000_000
LONGEST_TEXT = 1 << 20
FORMATS = ("PNG", "JPEG", "WEBP")
_ONE_OF = {"prompts": "prompt", "seeds": "seed"}
AN_IMAGE = 'sdcli generate "a cat" --settings-from IMAGE   (a png, jpg or webp)'
AS_FLAGS = "--seed 42 --steps 25   (the settings as flags, instead of --settings-from)"


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """`values` are Request fields by name; `unknown` is everything else in it: shown, never used."""

    dialect: str  # sdcli | a1111 | stable-diffusion.cpp | comfyui | invokeai | mflux
    values: Mapping[str, Any]
    unknown: Mapping[str, Any] = field(default_factory=dict)
    record: own.ImageRecord | None = None
    beside: str | None = None  # the text for other programs, where there is a record

    @property
    def plain(self) -> dict[str, Any]:
        """`values` as JSON has them, by the name of what an image has: one prompt and one seed."""
        return by_name(self.values)


def by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _ONE_OF.get(name, name): value[0] if name in _ONE_OF and value else schema.to_json(value)
        for name, value in values.items()
    }


def read(path: str | Path) -> ImageSettings:
    """The settings of one image; BadFile when it is damaged, foreign, or holds none."""
    name = show(path, 200)
    texts = _texts(_bytes(Path(path), name), name)
    if texts.own is not None:
        record = _own(texts.own, name)
        values = own.values(record)
        unknown = _inputs(record)
        if a1111.plain_name(values["model"]) is None:
            unknown["Model"] = values.pop("model")
        if not math.isfinite(values["guidance"]):
            del values["guidance"]
        return ImageSettings(
            dialect="sdcli", values=values, unknown=unknown, record=record, beside=texts.parameters
        )  # fmt: skip
    if texts.parameters is not None:
        info = a1111.read(texts.parameters)
        if info.pairs:
            if sdcpp.is_its(texts.parameters):
                values, unknown = sdcpp.values(texts.parameters)
                return ImageSettings(dialect=sdcpp.DIALECT, values=values, unknown=unknown)
            values, unknown = a1111.values(info)
            return ImageSettings(dialect="a1111", values=values, unknown=unknown)
    for dialect, (read_it, text) in _foreign(texts).items():
        if text is not None:
            values, unknown = read_it(text, f"the {dialect} settings of {name}", AS_FLAGS)
            return ImageSettings(dialect=dialect, values=values, unknown=unknown)
    raise BadFile(f"{name} has no settings that sdcli can read", hint=AS_FLAGS)


def _foreign(texts: Texts) -> dict[str, tuple[Any, str | None]]:
    """What reads each, and its text."""
    comment = texts.parameters
    is_mflux = comment is not None and comment.startswith("{") and mflux.MARK in comment
    older = invokeai.values_of_2 if texts.invokeai is None else invokeai.values
    return {
        "comfyui": (comfyui.values, texts.comfyui),
        "invokeai": (older, texts.invokeai or texts.invokeai_2),
        "mflux": (mflux.values, comment if is_mflux else None),
    }


def stored(path: str | Path) -> Texts:
    """The texts of one image as they are; none where there are none to be read, whatever the file is."""
    name = show(path, 200)
    try:
        return _texts(_bytes(Path(path), name), name)
    except SdcliError:
        return Texts(None, None)


def _inputs(record: own.ImageRecord) -> dict[str, Any]:
    """The templates of its prompts, and the files that it was drawn from, by name: only whoever has them can give them
    again."""
    start, named = record.job.start, _templates(record)
    if start is not None:
        named["Image"] = start.image.name
        if start.repaint is not None and start.repaint.mask is not None:
            named["Mask"] = start.repaint.mask.name
    if record.job.controls:
        hub = {one.name: one.hub for one in record.setup.adapters if one.hub}
        named["Control"] = " and ".join(_asked(control, hub) for control in record.job.controls)
    if record.job.references:
        named["Reference"] = " and ".join(f"{one.image.name}:{one.weight:g}" for one in record.job.references)
    return named


def _templates(record: own.ImageRecord) -> dict[str, Any]:
    """What the prompts were chosen from, as dynamic prompts calls it."""
    texts = {"Template": record.job.template, "Negative Template": record.job.negative_template}
    return {name: text for name, text in texts.items() if text is not None}


def _asked(control: Control, hub: Mapping[str, str]) -> str:
    """As --control takes it, but for the image's folder."""
    shows = f":{control.shows}" if control.shows else ""
    return f"{hub.get(control.net, control.net)}{shows}={control.image.name}"


def _own(text: str, name: str) -> own.ImageRecord:
    try:
        return own.read(text, f"the sdcli chunk of {name}")
    except BadFile as error:
        if error.hint == BadFile.usual_hint:
            error.hint = AS_FLAGS
        raise


def contents(path: Path) -> bytes:
    return _bytes(path, show(path, 200))


def _bytes(path: Path, name: str) -> bytes:
    try:
        return reading.whole(path, LARGEST_FILE)
    except ValueError:  # a NUL in it
        raise Usage(f"{name} is not a path", hint=AN_IMAGE) from None
    except OSError as error:
        large = error.errno == errno.EFBIG
        raise (BadFile if large else Usage)(f"cannot read {name}: {show(error.strerror)}", hint=AN_IMAGE) from None


@dataclass(frozen=True)
class Texts:
    own: str | None
    parameters: str | None
    comfyui: str | None = None
    invokeai: str | None = None
    invokeai_2: str | None = None


def _texts(data: bytes, name: str) -> Texts:
    return opened(data, name, _all_texts, hints=(AN_IMAGE, AS_FLAGS))


def opened(data: bytes, name: str, taken: Callable[[Any], T], *, hints: tuple[str, str] = ("", "")) -> T:
    """What is `taken` of an image. Pillow's decoders fail in many ways on damaged files, not all of them documented;
    here they become one. `hints`: where it is no image, and where it is a damaged one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs (MOST_PIXELS is stricter) and of odd EXIF
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise BadFile(f"{name} has {image.width}×{image.height} pixels, more than sdcli reads")
                return taken(image)
    except SdcliError:
        raise
    except UnidentifiedImageError:  # its message names a Python object
        raise BadFile(f"{name} is not a PNG, JPEG or WebP image", hint=hints[0]) from None
    except Exception as error:
        raise BadFile(f"{name} is a damaged image ({show(error, 120)})", hint=hints[1]) from None


def _all_texts(image: Any) -> Texts:
    texts = _texts_of(image)
    if texts == Texts(None, None) and image.format == "PNG":
        image.load()  # some programs put their text after the pixels
        texts = _texts_of(image)
    return texts


def _texts_of(image: Any) -> Texts:
    tags = image.getexif()
    if image.format == "PNG":
        mine, parameters = image.info.get("sdcli"), image.info.get("parameters")
    else:
        mine, parameters = exif.own_text(tags), None
        if mine is not None and '"sdcli.image/' not in mine:
            mine = None  # a description somebody wrote
    # Where both exist the comment wins, as in the web UI.
    return Texts(
        _bounded(mine), _bounded(exif.comment(tags)) or _bounded(parameters), _graph(image, tags),
        _bounded(image.info.get("invokeai_metadata")), _bounded(image.info.get("sd-metadata")),
    )  # fmt: skip


def _graph(image: Any, tags: Any) -> str | None:
    """ComfyUI's prompt; other programs keep plain text under that name."""
    text = image.info.get("prompt") if image.format == "PNG" else tags.get(exif.MODEL_OF_CAMERA)
    text = text.removeprefix("prompt:").strip("\0 ") if isinstance(text, str) else None
    return _bounded(text) if text is not None and text.startswith("{") else None


def _bounded(text: Any) -> str | None:
    return text if isinstance(text, str) and 0 < len(text) <= LONGEST_TEXT else None
