"""Emoji artwork from npm packages, rendered with transparency, and its names in three languages."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.builtin_model.things import everyday

# style: (package, version, licence)
PACKAGES = {
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    "3d": ("@lobehub/fluent-emoji-3d", "1.1.0", "MIT"),
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0"),
}
NAMES = ("emojibase-data", "17.0.0", "MIT")
TWINS = 0.035  # the deviation of two images' means, of 1, under which they are taken for the same
LEFT_OUT = (None, 2, 9)  # emojibase's groups: regional letters, components, flags


@dataclass(frozen=True)
class Thing:
    """One emoji: its English name, and its names and tags in each language."""

    code: str
    name: str
    names: dict[str, str]
    tags: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Artwork:
    """`images[style]` holds one RGBA image for each thing that has one: (index of the thing) → pixels.

    A thing is `sided` when its mirror image is another thing: a clock, an arrow, somebody who walks to the right.
    """

    things: tuple[Thing, ...]
    images: dict[str, dict[int, np.ndarray[Any, Any]]]
    sided: frozenset[int]

    def usual(self, thing: int) -> str:
        """The style of a prompt that names none."""
        return next(style for style, every in self.images.items() if thing in every)

    def any(self, random: np.random.Generator) -> tuple[str, int]:
        """A style, and a thing that has an image in it."""
        style = list(self.images)[random.integers(len(self.images))]
        things = list(self.images[style])
        return style, things[random.integers(len(things))]


def artwork(work: Path, scope: str, styles: tuple[str, ...], size: int) -> Artwork:
    """Fetched and rendered once, then read from `work`."""
    things = _things(work, scope)
    images = {style: _rendered(work, style, things, size) for style in styles}
    return Artwork(things, images, _sided(images))


def _things(work: Path, scope: str) -> tuple[Thing, ...]:
    held = package(work, *NAMES[:2])
    languages = {}
    for language in ("en", "it", "zh"):
        rows = json.loads(held.extractfile(f"package/{language}/data.json").read())  # type: ignore[union-attr]
        languages[language] = {row["hexcode"]: row for row in rows}
    wanted = set(everyday()) if scope == "everyday" else None
    found = []
    for code, row in languages["en"].items():
        if row.get("group") in LEFT_OUT or (wanted is not None and row["label"] not in wanted):
            continue
        rows = {language: table.get(code, {}) for language, table in languages.items()}
        names = {language: row["label"] for language, row in rows.items() if "label" in row}
        tags = {language: tuple(row.get("tags") or ()) for language, row in rows.items()}
        found.append(Thing(code.lower(), row["label"], names, tags))
    return tuple(found)


def _sided(images: dict[str, dict[int, np.ndarray[Any, Any]]]) -> frozenset[int]:
    found: set[int] = set()
    for every in images.values():
        small = np.stack([_small(rgba) for rgba in every.values()])
        turned = small[:, :, ::-1].reshape(len(small), -1)
        flat = small.reshape(len(small), -1)
        square = np.square(turned).sum(1)[:, None] + np.square(flat).sum(1)[None] - 2 * turned @ flat.T
        np.fill_diagonal(square, np.inf)
        near = np.sqrt(np.maximum(square.min(1), 0) / flat.shape[1]) < TWINS
        found |= {thing for thing, twin in zip(every, near, strict=True) if twin}
    return frozenset(found)


def _small(rgba: np.ndarray[Any, Any], side: int = 16) -> np.ndarray[Any, Any]:
    """On white, as 16 × 16 means."""
    part = rgba[..., 3:].astype(np.float32) / 255
    white = rgba[..., :3].astype(np.float32) / 255 * part + 1 - part
    cell = rgba.shape[0] // side
    return white.reshape(side, cell, side, cell, 3).mean((1, 3))


def _rendered(work: Path, style: str, things: tuple[Thing, ...], size: int) -> dict[int, np.ndarray[Any, Any]]:
    key = hashlib.sha256(json.dumps([PACKAGES[style], size, [thing.code for thing in things]]).encode()).hexdigest()[
        :12
    ]
    kept = work / f"artwork-{style}-{key}.npz"
    if not kept.exists():
        draw = _Files(work) if style == "3d" else _Vectors(work, style)
        found = {index: draw(thing.code, size) for index, thing in enumerate(things)}
        has = {index: image for index, image in found.items() if image is not None}
        np.savez_compressed(kept, indices=np.array(list(has)), pixels=np.stack(list(has.values())))
    with np.load(kept) as file:
        return dict(zip(file["indices"].tolist(), file["pixels"], strict=True))


class _Vectors:
    """An Iconify collection: one JSON file of SVG bodies."""

    def __init__(self, work: Path, style: str) -> None:
        held = package(work, *PACKAGES[style][:2])
        self.icons = json.loads(held.extractfile("package/icons.json").read())  # type: ignore[union-attr]
        names = json.loads(held.extractfile("package/chars.json").read())  # type: ignore[union-attr]
        self.names = {_plain(code): name for code, name in names.items()}

    def __call__(self, code: str, size: int) -> np.ndarray[Any, Any] | None:
        import resvg_py

        icon = self.icons["icons"].get(self.names.get(_plain(code), ""))
        if icon is None:
            return None
        width, height = icon.get("width", self.icons["width"]), icon.get("height", self.icons["height"])
        box = f'viewBox="0 0 {width} {height}" width="{size}" height="{size}"'
        text = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{icon["body"]}</svg>'
        return _rgba(bytes(resvg_py.svg_to_bytes(svg_string=text, width=size, height=size)), size)


class _Files:
    """One image file for each emoji."""

    def __init__(self, work: Path) -> None:
        self.package = package(work, *PACKAGES["3d"][:2])
        members = [member.name for member in self.package.getmembers() if member.name.endswith((".webp", ".png"))]
        self.members = {_plain(Path(name).stem): name for name in members}

    def __call__(self, code: str, size: int) -> np.ndarray[Any, Any] | None:
        name = self.members.get(_plain(code))
        return None if name is None else _rgba(self.package.extractfile(name).read(), size)  # type: ignore[union-attr]


def _rgba(data: bytes, size: int) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGBA")
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        return np.asarray(image)


def _plain(code: str) -> str:
    """Codes with and without the mark "shown as an image" mean the same emoji."""
    return code.lower().replace("-fe0f", "")


def package(work: Path, name: str, version: str) -> tarfile.TarFile:
    """From the npm registry that npm itself is set to."""
    work.mkdir(parents=True, exist_ok=True)
    kept = work / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not kept.exists():
        subprocess.run(
            ["npm", "pack", f"{name}@{version}", "--pack-destination", str(work)], check=True, stdout=subprocess.DEVNULL
        )
    return tarfile.open(kept)
