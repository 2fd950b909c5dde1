"""Where images go and what they are called: decided, and tried out, before anything heavy is loaded."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sdcli.errors import CannotWrite, Usage
from sdcli.files import REAL, Files, cannot_write, discard
from sdcli.machine.folders import state_folder
from sdcli.request.request import Job, Request, Shard
from sdcli.terminal import disk_text, show

DEFAULT_FOLDER = "sdcli-images"
SLUG_BYTES = 40
VALUE_BYTES = 48
COMPONENT_BYTES = 200
SUFFIXES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
OTHER_FORMATS = {".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl", ".heic", ".ppm", ".psd", ".svg", ".exr", ".tga"}
FIELDS = ("index", "seed", "width", "height", "model", "steps", "run", "slug")
NUMBERS = ("index", "seed", "width", "height", "steps")
# Reserved for devices on Windows, with any extension; a folder shared with Windows must not hold them either.
DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    name + digit for name in ("COM", "LPT") for digit in "0123456789¹²³"
}
LARGEST_SIDE = {"png": 2**31 - 1, "jpg": 65_535, "webp": 16_383}
BYTES_PER_PIXEL = {"png": 2.0, "jpg": 1.0, "webp": 1.0}  # generous: drawn images took 0.3 to 1.8 as PNG


@dataclass(frozen=True, kw_only=True)
class Destination:
    """The output folder, the folder of this run's records, and how a job turns into a name."""

    folder: Path  # absolute; created when the first image is saved
    records: Path  # absolute: run.jsonl and report.json
    run: str
    kind: str  # numbered | template | file
    pattern: str = ""  # the template, or the one file's name
    format: str = "png"
    model: str = ""
    overwrite: bool = False

    @property
    def suffix(self) -> str:
        return f".{self.format}"

    @property
    def records_apart(self) -> bool:
        """Whether the records lie outside the output folder and must say where that is."""
        return self.records.parent.parent != self.folder

    def names(self, job: Job, number: int = 1) -> Iterator[str]:
        """The name this image should have, then those to fall back on when it is taken. Always with `/`.

        A single file named with -o falls back only beside other images of its own run.
        """
        if self.kind == "numbered":
            for following in itertools.count(number):
                yield numbered_name(following, job, self.suffix)
        yield from with_copies(
            self.pattern if self.kind == "file" else filled(parse_template(self.pattern), values_of(self, job))
        )

    def part(self, index: int, name: str) -> Path:
        """The temporary file beside the image `name`."""
        return (self.folder / name).with_name(f"{part_prefix(self.run)}{index:06d}.part")


def part_prefix(run: str) -> str:
    return f".sdcli-{run}-"


def part_of_run(name: str) -> str | None:
    """The run that a temporary file of this name belongs to."""
    match = re.fullmatch(r"\.sdcli-(\d{8}-\d{6}-[0-9a-f]{4,8}(?:-\d{1,5}-of-\d{1,5})?)-\d{6,}\.part", name)
    return match[1] if match else None


def new_run(shard: Shard | None = None) -> str:
    of = "" if shard is None else f"-{shard.number}-of-{shard.of}"  # shards begin in the same second
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}{of}"


def with_copies(first: str) -> Iterator[str]:
    """The name, then it with -2, -3 …"""
    yield first
    head, _, last = first.rpartition("/")
    stem, suffix = os.path.splitext(last)
    for copy in itertools.count(2):
        name = _cut(stem, COMPONENT_BYTES - len(f"-{copy}{suffix}".encode())) + f"-{copy}{suffix}"
        yield f"{head}/{name}" if head else name


# --- pieces of names


def slug(prompt: str) -> str:
    """A few words of the prompt as plain ASCII: `a Café (at dusk:1.2)` → `a-cafe-at-dusk`."""
    unweighted = re.sub(r":\s*\d{1,3}(?:\.\d{0,6})?\s*\)", ")", prompt[:2000])
    letters = "".join(_ascii_letters(character) for character in unicodedata.normalize("NFKD", unweighted))
    words = re.findall(r"[a-z0-9]+", letters.lower())
    slugged = ""
    for word in words:
        longer = f"{slugged}-{word}" if slugged else word
        if len(longer) > SLUG_BYTES:
            break
        slugged = longer
    return slugged or (words[0][:SLUG_BYTES] if words else "")


def _ascii_letters(character: str) -> str:
    """ø, ł, đ and æ have no decomposition; their names still say which letters they are."""
    if character.isascii():
        return character
    if unicodedata.combining(character):
        return ""
    name = unicodedata.name(character, "")
    letter = re.fullmatch(r"LATIN (?:SMALL|CAPITAL) (?:LETTER|LIGATURE) ([A-Z]{1,2})(?: WITH .*)?", name)
    if letter:
        return letter[1]
    return "ss" if character == "ß" else ("" if character.isalnum() else " ")


def sanitised(value: str) -> str:
    """A foreign value as part of a file name: [A-Za-z0-9._-], no leading dot or dash, no device name, ≤ 48 bytes."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", unicodedata.normalize("NFKC", value[:1000]))
    text = re.sub(r"\.{2,}", ".", text).strip(".-")[:VALUE_BYTES].strip(".-")
    return _no_device(text) if text else ""


def _no_device(component: str) -> str:
    return f"_{component}" if component.split(".")[0].rstrip(" ").upper() in DEVICES else component


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes, cut between characters."""
    return text.encode("utf-8", "surrogateescape")[:limit].decode("utf-8", "ignore").rstrip(" .")


def numbered_name(number: int, job: Job, suffix: str) -> str:
    words = slug(job.prompt)
    return f"{number:04d}-{words}-{job.seed}{suffix}" if words else f"{number:04d}-{job.seed}{suffix}"


def next_number(folder: Path) -> int:
    """One more than the highest number that begins the name of an image in the folder."""
    highest = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                match = re.match(r"(\d{4,7})-.*\.(?:png|jpg|jpeg|webp)\Z", entry.name)
                highest = max(highest, int(match[1]) if match else 0)
    except OSError:
        return 1  # no folder yet; whether it can be made is another question
    return highest + 1


# --- templates


@dataclass(frozen=True)
class Field:
    name: str
    digits: int = 0


Piece = str | Field


def parse_template(pattern: str) -> tuple[Piece, ...]:
    """`{seed}_{index:03d}.png` as text and fields. Not `str.format`, which reaches into objects."""
    pieces: list[Piece] = []
    text = ""
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if pattern[position : position + 2] in ("{{", "}}"):
            text += character
            position += 2
        elif character == "{":
            end = pattern.find("}", position)
            if end < 0:
                raise _bad_template(pattern, "a { is not closed")
            pieces += [text, _field(pattern, pattern[position + 1 : end])]
            text = ""
            position = end + 1
        elif character == "}":
            raise _bad_template(pattern, "a } without a {")
        else:
            text += character
            position += 1
    return tuple(piece for piece in (*pieces, text) if piece != "")


def _field(pattern: str, inside: str) -> Field:
    name, colon, form = inside.partition(":")
    if name not in FIELDS:
        raise _bad_template(pattern, f"no field {{{show(name, 60)}}}")
    if not colon:
        return Field(name)
    digits = re.fullmatch(r"0([1-9]|1\d|20)d", form, re.ASCII)
    if digits is None or name not in NUMBERS:
        raise _bad_template(pattern, f"{{{show(inside, 60)}}} is not supported; write a number as {{index:04d}}")
    return Field(name, int(digits[1]))


def _bad_template(pattern: str, why: str) -> Usage:
    return Usage(
        f"-o {show(pattern, 120)}: {why}. Fields: {', '.join(f'{{{name}}}' for name in FIELDS)}",
        hint="-o 'sdcli-images/{index:04d}-{slug}-{seed}.png'",
        fields=list(FIELDS),
    )


def values_of(destination: Destination, job: Job) -> dict[str, int | str]:
    return {
        "index": job.index + 1,
        "seed": job.seed,
        "width": job.width,
        "height": job.height,
        "steps": job.steps,
        "model": sanitised(destination.model),
        "run": sanitised(destination.run),
        "slug": slug(job.prompt),
    }


def filled(pieces: tuple[Piece, ...], values: Mapping[str, int | str]) -> str:
    """The relative name, each component safe by itself whatever the values hold."""
    empty = False
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        value = values[piece.name]
        empty = empty or value == ""
        text += f"{value:0{piece.digits}d}" if isinstance(value, int) and piece.digits else str(value)
    *folders, last = text.split("/")
    stem, suffix = os.path.splitext(last)
    if last.startswith(".") and not suffix:  # nothing but the extension is left
        stem, suffix = "", last
    return "/".join([*(_component(name, "", empty) for name in folders), _component(stem, suffix, empty)])


def _component(stem: str, suffix: str, empty: bool) -> str:
    if empty:  # the separators on both sides of an empty value
        stem = re.sub(r"([-_ .])[-_ .]+", r"\1", stem).rstrip("-_ .")
    stem = _cut(stem.lstrip(" .-"), COMPONENT_BYTES - len(suffix)).rstrip(" .")
    return _no_device(stem or "image") + suffix


# --- -o, read and checked


@dataclass(frozen=True)
class Target:
    """-o, parsed."""

    kind: str
    folder: str
    pattern: str
    format: str


def read_output(output: str | None, format: str = "png", *, format_asked: bool = False) -> Target:
    """Which of the three `-o` names: a folder, one file, or a template. A known extension decides the format."""
    if output is None:
        return Target("numbered", DEFAULT_FOLDER, "", format)
    try:
        text = os.path.expanduser(output)
        os.fsencode(text)
    except (UnicodeEncodeError, ValueError):
        raise Usage(f"-o {show(output, 120)} is not a valid file name", hint="-o images") from None
    if not text.strip() or text == "-" or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise Usage(f"-o {show(repr(output), 120)} does not name a file or folder", hint="-o images")
    if "{" in text or "}" in text:
        return _read_template(text, format, format_asked)
    slashes = "/\\" if os.name == "nt" else "/"
    if text[-1] in slashes or text in (".", "..") or os.path.isdir(text):
        return Target("numbered", text, "", format)
    folder, name = os.path.split(text)
    if name in (".", ".."):
        return Target("numbered", text, "", format)
    extension = os.path.splitext(name)[1].lower()
    if extension not in SUFFIXES and extension not in OTHER_FORMATS:
        return Target("numbered", text, "", format)
    _check_length(name)
    if os.name == "nt" and _no_device(name) != name:
        raise Usage(f"{show(name)} is a device name on Windows", hint=f"-o image{extension}")
    return Target("file", folder or ".", name, _format_of(text, extension, format, format_asked))


def _read_template(text: str, format: str, format_asked: bool) -> Target:
    normal = text.replace("\\", "/") if os.name == "nt" else text
    first = min(position for position in (normal.find("{"), normal.find("}")) if position >= 0)
    start = normal.rfind("/", 0, first) + 1
    folder, pattern = normal[:start] or ".", normal[start:]
    pieces = parse_template(pattern)
    literal = "".join(piece if isinstance(piece, str) else "0" for piece in pieces)
    for component in literal.split("/"):
        if component.strip(" .") == "" or component in (".", ".."):
            raise _bad_template(text, "a part between slashes is empty or only dots")
        _check_length(component)
    forbidden = sorted({c for c in literal if c in '<>:"|?*\\'} | {c for c in literal if "\ud800" <= c <= "\udfff"})
    if forbidden:
        raise _bad_template(text, f"{show(' '.join(forbidden))} is not allowed in file names on every system")
    extension = os.path.splitext(literal)[1].lower()
    if extension not in SUFFIXES and extension not in OTHER_FORMATS:
        return Target("template", folder, f"{pattern}.{format}", format)
    return Target("template", folder, pattern, _format_of(text, extension, format, format_asked))


def _check_length(name: str) -> None:
    size = len(name.encode("utf-8", "surrogateescape"))
    if size > COMPONENT_BYTES:
        raise Usage(
            f"the name {show(name, 60)} has {size} bytes; at most {COMPONENT_BYTES} are allowed", hint="-o image.png"
        )


def _format_of(text: str, extension: str, format: str, format_asked: bool) -> str:
    if extension in OTHER_FORMATS:
        raise Usage(
            f"-o {show(text, 120)}: images are written as png, jpg or webp, not {extension[1:]}", hint="-o image.png"
        )
    implied = SUFFIXES[extension]
    if format_asked and implied != format:
        raise Usage(
            f"-o {show(text, 120)} ends in {extension}, but --format says {format}",
            hint=f"--format {implied}   (or leave --format out: the extension decides)",
        )
    return implied


def prepare(
    request: Request,
    *,
    state: Path | None = None,
    count: int | None = None,
    run: str | None = None,
    model: str = "",
    origins: Mapping[str, str] | None = None,
    files: Files = REAL,
) -> Destination:
    """The Destination of this request, after trying that it can be written; leaves nothing behind.

    A single `-o FILE.png` keeps its records in the state folder (`state`, if another). `origins` says whether --format
    was asked for or is a default that the extension may overrule.
    """
    asked = (origins or {}).get("format") == "flag"
    target = read_output(request.output, request.format, format_asked=asked)
    count = count if count is not None else len(request.prompts) * max(request.num_images, len(request.seeds), 1)
    _check_side(request, target.format)
    folder = Path(os.path.abspath(target.folder))
    run = run or new_run(request.shard)
    if request.shard is not None:
        target = _named_by_index(target, request.output)
    if target.kind == "file":
        _check_one_file(folder / target.pattern, count, request.overwrite)
    destination = Destination(
        folder=folder,
        records=(folder if target.kind != "file" else state or state_folder()) / "runs" / run,
        run=run,
        kind=target.kind,
        pattern=target.pattern,
        format=target.format,
        model=model or request.model,
        overwrite=request.overwrite,
    )
    _check_writable(folder, run, files)
    _check_writable(destination.records.parent, run, files)
    _check_space(folder, request, count, target.format)
    return destination


def _named_by_index(target: Target, output: str | None) -> Target:
    """Shards number images as one run of all would, in an empty folder: no shard knows how far the others are."""
    if target.kind == "file":
        raise Usage(
            f"-o {show(output, 120)} names one file, and a shard is a part of several images",
            hint="-o images   (a folder, or a name with {index})",
        )
    if target.kind == "numbered":
        pattern = f"{{index:04d}}-{{slug}}-{{seed}}.{target.format}"
        return replace(target, kind="template", pattern=pattern)
    return target


def _check_side(request: Request, format: str) -> None:
    side = max(request.width, request.height)
    if side > LARGEST_SIDE[format]:
        raise Usage(f"a {format} has at most {LARGEST_SIDE[format]} pixels a side, not {side}", hint="--format png")


def _check_one_file(path: Path, count: int, overwrite: bool) -> None:
    stem, suffix = os.path.splitext(path.name)
    if count > 1:
        raise Usage(
            f"{count} images cannot all be saved as {show(path.name)}",
            hint=f"-o '{show(stem)}-{{index}}{suffix}'",
            count=count,
        )
    if os.path.lexists(path) and not overwrite:
        raise already_there(path)


def already_there(path: Path) -> CannotWrite:
    return CannotWrite(f"{show(path)} already exists", hint="--overwrite   (or another name)", path=str(path))


def _check_writable(folder: Path, run: str, files: Files) -> None:
    """A probe file in the folder, or in the nearest one above it that exists: permission bits alone are not enough."""
    probe = _nearest(folder) / f"{part_prefix(run)}probe.part"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(folder)  # too long a name, a file further up, a folder that may not be searched
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        files.close(files.create(probe))
    except OSError as error:
        raise cannot_write(folder, error, done="nothing was loaded or downloaded") from None
    finally:
        discard(files, probe)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def _check_space(folder: Path, request: Request, count: int, format: str) -> None:
    try:
        free = shutil.disk_usage(_nearest(folder)).free
    except OSError:
        return  # some network storage does not say; the write itself will
    each = int(request.width * request.height * BYTES_PER_PIXEL[format]) + 65_536
    if each * count > free:
        images = "1 image needs" if count == 1 else f"{count} images need"
        raise CannotWrite(
            f"{show(folder)} has {disk_text(free)} free; {images} about {disk_text(each * count)}",
            done="nothing was loaded or downloaded",
            hint="-o FOLDER   (on a disk with more room)",
            need=each * count,
            free=free,
        )


def inside(folder: Path, name: str) -> Path:
    """The absolute path of `name`, still inside the folder after every symbolic link on the way; else CannotWrite."""
    path = folder / name
    base = folder.resolve()
    if ".." in name.split("/") or not path.parent.resolve().is_relative_to(base):
        raise CannotWrite(
            f"{show(name)} would be outside {show(folder)}: one of its folders is a link",
            hint="the same command with -o sdcli-images",
            path=str(path),
        )
    return path
