"""An image and a batch in a report, and what all of a run come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdcli.request.request import Job


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchTimes:
    """`step_seconds` has one entry per UNet call, the first included; none once a run has more than 10,000."""

    index: int
    images: tuple[int, ...] = ()
    encode_seconds: float = 0.0
    step_seconds: tuple[float, ...] = ()
    decode_seconds: float = 0.0
    save_seconds: float = 0.0
    steps: int = 0
    denoise_seconds: float = 0.0
    chunks: int = 1  # of 75 tokens, in its longest prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    index: int
    status: str  # saved | suspect | failed | missing
    file: str | None = None
    format: str | None = None
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    job: Job | None = None  # in JSON its fields are beside these
    tokens: int | None = None
    pixel_sha256: str | None = None
    file_sha256: str | None = None
    error: Mapping[str, Any] | None = None

    @property
    def kept(self) -> bool:
        return self.status in ("saved", "suspect")


@dataclass(slots=True)
class Tally:
    """What all of them come to, counted as they are drawn: a long run is not gone through again."""

    images: int = 0
    kept: int = 0  # of them on the disk
    suspect: int = 0
    hints: set[str | None] = field(default_factory=set)  # of the errors of those that are not
    shapes: set[tuple[Any, ...]] = field(default_factory=set)
    batches: int = 0
    largest: int = 0  # images of a batch
    chunks: int = 0  # of the longest prompt
    steps: int = 0
    step_seconds: list[float] = field(default_factory=list)  # as many as a report keeps
    denoise_seconds: float = 0.0
    finishing_seconds: float = 0.0  # decoding and saving
    images_of_batches: int = 0

    @property
    def lost(self) -> int:
        return self.images - self.kept

    def add_image(self, image: Image) -> None:
        self.images += 1
        self.shapes.add((image.width, image.height, image.job and image.job.guided))
        if image.kept:
            self.kept += 1
            self.suspect += image.status == "suspect"
        else:
            self.hints.add((image.error or {}).get("hint"))

    def add_batch(self, batch: BatchTimes) -> None:
        self.batches += 1
        self.images_of_batches += len(batch.images)
        self.largest = max(self.largest, len(batch.images))
        self.chunks = max(self.chunks, batch.chunks)
        self.steps += batch.steps
        self.step_seconds += batch.step_seconds
        self.denoise_seconds += batch.denoise_seconds
        self.finishing_seconds += batch.decode_seconds + batch.save_seconds


def tally(images: Iterable[Image], batches: Iterable[BatchTimes] = ()) -> Tally:
    found = Tally()
    for image in images:
        found.add_image(image)
    for batch in batches:
        found.add_batch(batch)
    return found
