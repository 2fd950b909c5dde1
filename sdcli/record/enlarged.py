"""Enlarged images on disk: named, encoded with what is known of how they were made, and written whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdcli import __version__
from sdcli.errors import BadFile, ImagesFailed, Interrupted, SdcliError, Terminated, Usage
from sdcli.events import Degraded, Done, Enlarged, Event, Failed, Memory, Saved
from sdcli.files import REAL, Files, cannot_write
from sdcli.images.read import WHITE
from sdcli.models import upscaler_walk
from sdcli.models.upscaler import PART
from sdcli.plan.plan import Budget, Footprint, Setup
from sdcli.plan.upscaling import UpscalePlan
from sdcli.record import encode
from sdcli.record.metadata import a1111, exif, own, read
from sdcli.record.metadata.own import EnlargedBy
from sdcli.record.names import (
    Destination,
    Field,
    filled,
    next_number,
    parse_template,
    sanitised,
    slug,
    with_copies,
)
from sdcli.record.store import place
from sdcli.request.upscaling import Enlargement
from sdcli.terminal import counted, show

POSTPROCESSING = "postprocessing"  # where A1111 keeps it beside the settings


def store(
    events: Iterator[Event], plan: UpscalePlan, destination: Destination, metadata: str, files: Files = REAL
) -> Iterator[Event]:
    """Every event passes; before each Enlarged comes its Saved."""
    writer = Writer(plan, destination, metadata, files)
    for event in events:
        if isinstance(event, Enlarged):
            yield writer.save(event)
        yield event


def check_fields(destination: Destination) -> None:
    """That a template has only fields that such an image has."""
    pieces = parse_template(destination.pattern) if destination.kind == "template" else ()
    wrong = next((piece.name for piece in pieces if isinstance(piece, Field) and piece.name in _OF_DRAWN), None)
    if wrong is not None:
        raise Usage(
            f"-o {show(destination.pattern, 120)}: an enlarged image has no {{{wrong}}}",
            hint="-o 'sdcli-images/{index:04d}-{slug}-{width}.png'",
        )


_OF_DRAWN = ("seed", "steps")


class Writer:
    def __init__(self, plan: UpscalePlan, destination: Destination, metadata: str, files: Files) -> None:
        self.plan, self.destination, self.metadata, self.files = plan, destination, metadata, files
        self.names: set[str] = set()
        self.number = 0

    def save(self, event: Enlarged) -> Saved:
        started, job = time.perf_counter(), self.plan.jobs[event.index]
        image = _image(event, self.destination.format)
        pixel_sha256 = hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
        texts = _texts(self.plan, job, event, self.metadata, pixel_sha256)
        data = _encoded(image, self.destination.format, texts, event.profile)
        try:
            name, path = self._write(job, data)
        except OSError as error:
            raise cannot_write(self.destination.folder, error) from None
        return Saved(
            batch=event.index, index=event.index, status="saved", file=name, path=str(path),
            format=self.destination.format, bytes=len(data), width=event.width, height=event.height,
            pixel_sha256=pixel_sha256, file_sha256=hashlib.sha256(data).hexdigest(),
            seconds=time.perf_counter() - started,
        )  # fmt: skip

    def _write(self, job: Enlargement, data: bytes) -> tuple[str, Path]:
        """On an error nothing of this image exists under any name."""
        destination = self.destination
        if not self.number and destination.kind == "numbered":
            self.number = next_number(destination.folder)
        ordered = names(destination, job, self.number)
        name, path, attempt = place(destination, ordered, job.index, data, own=self.names, files=self.files)
        self.files.sync_folder(path.parent)
        self.names.add(name)
        self.number += attempt + 1
        return name, path


def names(destination: Destination, job: Enlargement, number: int = 1) -> Iterator[str]:
    """The name an image should have, then those to fall back on when it is taken."""
    words = slug(re.sub(r"^\d{4,7}-", "", Path(job.image.name).stem)) or "image"
    if destination.kind == "numbered":
        for following in itertools.count(number):
            yield f"{following:04d}-{words}-{job.width}x{job.height}{destination.suffix}"
    if destination.kind == "file":
        yield from with_copies(destination.pattern)
    values: dict[str, int | str] = {
        "index": job.index + 1, "width": job.width, "height": job.height, "model": sanitised(destination.model),
        "run": sanitised(destination.run), "slug": words,
    }  # fmt: skip
    yield from with_copies(filled(parse_template(destination.pattern), values))


# --- what is stored with it


@dataclass(frozen=True)
class Texts:
    """The settings of the small image, continued, as A1111 has them and as our own chunk; and what was done to it."""

    parameters: str | None = None
    own: str | None = None
    done: str | None = None


def _texts(plan: UpscalePlan, job: Enlargement, event: Enlarged, metadata: str, pixel_sha256: str) -> Texts:
    if metadata == "none":
        return Texts()
    before, pairs = read.stored(job.image.path), _pairs(plan, job)
    parameters = a1111.continued(before.parameters, pairs) if before.parameters else None
    chunk = _chunk(before.own, plan, job, event, pixel_sha256) if metadata == "full" and before.own else None
    return Texts(parameters, chunk, a1111.line(pairs))


def _pairs(plan: UpscalePlan, job: Enlargement) -> list[tuple[str, str]]:
    """As A1111's page for this writes them."""
    scale = job.width / job.image.width
    even = abs(scale - job.height / job.image.height) < 0.01
    (adapter,) = plan.setup.adapters
    by, to = ("Postprocess upscale by", f"{scale:.4g}"), ("Postprocess upscale to", f"{job.width}x{job.height}")
    return [
        by if even else to,
        ("Postprocess upscaler", adapter.name),
        ("Postprocess upscaler hash", adapter.sha256[:10]),
    ]


def _chunk(text: str, plan: UpscalePlan, job: Enlargement, event: Enlarged, pixel_sha256: str) -> str | None:
    """Nothing where what is there cannot be read: it may be of a later sdcli."""
    try:
        record = own.read(text)
    except BadFile:
        return None
    (adapter,) = plan.setup.adapters
    config = plan.model.components[PART].config
    done = EnlargedBy(
        upscaler=adapter.name, sha256=adapter.sha256, tile=event.tile, dtype=plan.setup.dtype, width=job.width,
        times=upscaler_walk.times(config, job.image.width, job.image.height, (job.width, job.height)),
        height=job.height, fit=job.fit, pixel_sha256=record.pixel_sha256,
    )  # fmt: skip
    made = replace(record, enlarged=(*record.enlarged, done), pixel_sha256=pixel_sha256)
    chunk = own.chunk(made, ascii_only=True)
    return chunk.decode() if len(chunk) <= own.LIMIT else None


def _image(event: Enlarged, format: str) -> Any:
    from PIL import Image

    image = Image.frombytes(event.mode, (event.width, event.height), event.pixels)
    if event.mode == "RGB" or format != "jpg":
        return image
    white = Image.new("RGBA", image.size, (*WHITE, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _encoded(image: Any, format: str, texts: Texts, profile: bytes) -> bytes:
    options: dict[str, Any] = {"icc_profile": profile} if profile else {}
    if format == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        for key, text in ((encode.A1111_KEY, texts.parameters), (POSTPROCESSING, texts.done)):
            if text is not None and len(text.encode()) <= own.LIMIT:
                info.add_text(key, text)
        if texts.own is not None:
            info.add_itxt(encode.PNG_KEY, texts.own)
        return encode.saved(image, "PNG", pnginfo=info, **options)
    if texts.done is not None:
        told, chunk = texts.parameters or texts.done, texts.own.encode() if texts.own is not None else None
        blocks = (exif.block(told, chunk), exif.block(told, None), exif.block(texts.done, None))
        options["exif"] = next(block for block in blocks if len(block) <= exif.LIMIT)
    if format == "jpg":
        return encode.saved(image, "JPEG", quality=encode.QUALITY, subsampling=0, **options)
    return encode.saved(image, "WEBP", quality=encode.QUALITY, method=4, **options)


# --- the report


@dataclass(frozen=True, kw_only=True)
class Image:
    """`source` is the file that was enlarged, by its name."""

    index: int
    status: str  # saved | failed | missing
    source: str
    source_sha256: str
    source_width: int
    source_height: int
    width: int
    height: int
    file: str | None = None
    path: str | None = None
    format: str | None = None
    bytes: int | None = None
    tile: int | None = None  # 0: whole
    pixel_sha256: str | None = None
    file_sha256: str | None = None
    seconds: float | None = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Peaks:
    phase: str
    predicted_device: int
    predicted_host: int
    device: int | None = None
    host: int | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    schema: str = "sdcli.upscale/1"
    version: str = __version__
    status: str  # done | partial | failed | interrupted
    exit_code: int
    error: Mapping[str, Any] | None = None
    folder: str
    seconds: float
    upscaler: Mapping[str, Any]
    setup: Setup
    budget: Budget
    footprint: Footprint
    images: tuple[Image, ...]
    memory: tuple[Peaks, ...]
    degraded: tuple[Degraded, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        return sum(image.status == "saved" for image in self.images)


class Folding:
    """The events of a run as its report. A sink."""

    def __init__(self, plan: UpscalePlan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.images = [_missing(job) for job in plan.jobs]
        self.peaks = {phase.name: _predicted(phase) for phase in plan.footprint.phases}
        self.degraded: list[Degraded] = []
        self.environment: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case Saved():
                self.images[event.index] = replace(
                    self.images[event.index], status="saved", file=event.file, path=event.path, format=event.format,
                    bytes=event.bytes, pixel_sha256=event.pixel_sha256, file_sha256=event.file_sha256,
                )  # fmt: skip
            case Enlarged():
                self.images[event.index] = replace(self.images[event.index], tile=event.tile, seconds=event.seconds)
            case Failed():
                self.images[event.index] = replace(self.images[event.index], status="failed", error=dict(event.error))
            case Memory() if event.phase in self.peaks:
                before = self.peaks[event.phase]
                device, host = _larger(before.device, event.device_peak), _larger(before.host, event.host_peak)
                self.peaks[event.phase] = replace(before, device=device, host=host)
            case Degraded():
                self.degraded.append(event)
            case Done():
                self.environment |= event.environment
            case _:
                pass

    def report(self, seconds: float, error: SdcliError | None) -> Report:
        kept, failed = (sum(image.status == status for image in self.images) for status in ("saved", "failed"))
        if error is None and failed:
            error = ImagesFailed(f"{failed} of {counted(len(self.images), 'image')} could not be enlarged")
        code = error.code if error is not None else 0
        interrupted = isinstance(error, (Interrupted, Terminated))
        status = "interrupted" if interrupted else "done" if error is None else "partial" if kept else "failed"
        (adapter,) = self.plan.setup.adapters
        return Report(
            status=status, exit_code=code, error=error.to_json() if error is not None else None,
            folder=str(self.folder), seconds=seconds,
            upscaler={"name": adapter.name, "sha256": adapter.sha256, "scale": self.plan.scale},
            setup=self.plan.setup, budget=self.plan.budget, footprint=self.plan.footprint, images=tuple(self.images),
            memory=tuple(self.peaks.values()), degraded=tuple(self.degraded), environment=self.environment,
        )  # fmt: skip


def _missing(job: Enlargement) -> Image:
    return Image(
        index=job.index, status="missing", source=job.image.name, source_sha256=job.image.sha256,
        source_width=job.image.width, source_height=job.image.height, width=job.width, height=job.height,
    )  # fmt: skip


def _predicted(phase: Any) -> Peaks:
    return Peaks(phase=phase.name, predicted_device=phase.device, predicted_host=phase.host)


def _larger(a: int | None, b: int | None) -> int | None:
    return max((value for value in (a, b) if value is not None), default=None)
