"""What happens while a plan runs: a stream of small values from the engine through the store to the sinks.

Every event turns into JSON and back. Between processes an event is a line of JSON, an image's bytes follow it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from sdcli import schema
from sdcli.errors import BadFile
from sdcli.plan.plan import Plan, Setup
from sdcli.request.request import Job
from sdcli.schema import renamed, transient


@dataclass(frozen=True, kw_only=True)
class Happened:
    """What all events have. `worker` names the sender where several draw at once; no two draw the same batch."""

    worker: str = ""


@dataclass(frozen=True, kw_only=True)
class Planned(Happened):
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Queued(Happened):
    """A batch that the plan does not list, of jobs that were read while it was drawn."""

    batch: int
    jobs: tuple[Job, ...]


@dataclass(frozen=True, kw_only=True)
class Timed(Happened):
    """The time of a phase outside the batches: plan, import, compile, or all of load."""

    phase: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Loaded(Happened):
    """A component was loaded. `bytes` in memory; `seconds` for it alone."""

    component: str
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Encoded(Happened):
    stage: str = "encode"
    batch: int
    tokens: tuple[int, ...]  # one count per image of the batch
    seconds: float
    chunks: int = 1  # of 75 tokens, in the longest prompt of the batch


@dataclass(frozen=True, kw_only=True)
class EncodedImage(Happened):
    """The images that a batch starts from are latents now, or those that it is drawn like were looked at."""

    stage: str = "encode-image"
    batch: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Step(Happened):
    """A UNet call (guidance's pair counts once) and its scheduler step. `step` counts from 1 to `of`."""

    stage: str = "denoise"
    batch: int
    step: int
    of: int
    seconds: float
    device_bytes: int | None = None
    device_peak: int | None = None


@dataclass(frozen=True, kw_only=True)
class KeptStep(Happened):
    """All that is needed to go on after this step in another process."""

    batch: int
    step: int
    state: bytes = transient(default=b"")


@dataclass(frozen=True, kw_only=True)
class Denoised(Happened):
    stage: str = "denoise"
    batch: int
    seconds: float
    latents: Any = transient(default=None)  # of the whole batch, as the engine holds them


@dataclass(frozen=True, kw_only=True)
class Preview(Happened):
    """A rough preview of one image's latents, as RGB8 rows."""

    stage: str = "denoise"
    batch: int
    index: int
    step: int
    width: int
    height: int
    pixels: bytes = transient(default=b"")


@dataclass(frozen=True, kw_only=True)
class Tile(Happened):
    """A model enlarged a part of an image. `tile` counts from 1 to `of`, over all images of the batch."""

    stage: str = "upscale"
    batch: int
    tile: int
    of: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Memory(Happened):
    """Measured peaks of a phase. Device figures are null on a CPU; host_peak is VmHWM where it can be read."""

    phase: str
    device_peak: int | None = None
    host_peak: int | None = None
    allocated_peak: int | None = None
    reserved_peak: int | None = None
    driver_peak: int | None = None
    pinned_peak: int | None = None


@dataclass(frozen=True, kw_only=True)
class Decoded(Happened):
    """A finished image. `setup` and `scheduler` (its config) are those it was actually drawn with."""

    stage: str = "decode"
    batch: int
    index: int
    job: Job
    width: int
    height: int
    seconds: float
    pixels: bytes = transient(default=b"")
    setup: Setup | None = None  # null: the plan's
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    retried: str | None = None  # why it was decoded again, if it was


@dataclass(frozen=True, kw_only=True)
class Enlarged(Happened):
    """A finished image of `sdcli upscale`: rows of `mode`, RGB or RGBA, with 8 bits a channel."""

    stage: str = "upscale"
    index: int
    width: int
    height: int
    seconds: float
    tile: int = 0  # as in the setup it was made with
    mode: str = "RGB"
    pixels: bytes = transient(default=b"")
    profile: bytes = transient(default=b"")  # of its colours


@dataclass(frozen=True, kw_only=True)
class Saved(Happened):
    batch: int
    index: int
    status: str  # saved | suspect
    file: str  # relative to the output folder
    path: str  # absolute
    format: str
    bytes: int
    width: int
    height: int
    pixel_sha256: str
    file_sha256: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Degraded(Happened):
    """A fallback was taken: what was given up, where, and whether it changes pixels."""

    batch: int
    phase: str
    step: int | None
    before: Mapping[str, str] = renamed("from")
    after: Mapping[str, str] = renamed("to")
    because: str
    changes_pixels: bool


@dataclass(frozen=True, kw_only=True)
class Warned(Happened):
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Failed(Happened):
    """An image could not be drawn. `error` as in errors.SdcliError.to_json()."""

    batch: int
    index: int
    error: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Interrupted(Happened):
    signal: str  # interrupted | terminated
    kept: int = 0


@dataclass(frozen=True, kw_only=True)
class Done(Happened):
    environment: Mapping[str, Any] = field(default_factory=dict)


Event = (
    Planned | Queued | Timed | Loaded | Encoded | EncodedImage | Step | KeptStep | Denoised | Preview | Tile | Memory
    | Decoded | Enlarged | Saved | Degraded | Warned | Failed | Interrupted | Done
)  # fmt: skip
KINDS: dict[str, type] = {cls.__name__.lower(): cls for cls in Event.__args__}


def to_json(event: Event, whole: bool = False) -> dict[str, Any]:
    """As recorded; `whole`: with paths and pixels, for another sdcli process."""
    return {"event": type(event).__name__.lower(), **schema.to_json(event, whole)}


def from_json(data: Mapping[str, Any], whole: bool = False) -> Event:
    cls = KINDS.get(str(data.get("event")))
    if cls is None:
        raise BadFile(f"unknown event {data.get('event')!r}")
    event: Event = schema.from_json(cls, data, whole=whole)
    return event


def write(event: Event, stream: IO[bytes]) -> None:
    """For another sdcli process: a line of JSON, then the bytes of an image or of a kept step. Latents are not sent."""
    data = to_json(event, whole=True)
    data.pop("latents", None)
    data.pop("profile", None)
    content = data.pop(_bytes_of(data), b"")
    stream.write(json.dumps(data | {"bytes_after": len(content)}).encode() + b"\n" + content)


def read(stream: IO[bytes]) -> Event | None:
    """The next event that `write` wrote; None at the end."""
    line = stream.readline()
    return received(json.loads(line), stream) if line else None


def received(data: Mapping[str, Any], stream: IO[bytes]) -> Event:
    """The event whose line `write` wrote, with the bytes that follow it."""
    content = stream.read(data["bytes_after"])
    return from_json({**data, _bytes_of(data): content} if content else data, whole=True)


def _bytes_of(data: Mapping[str, Any]) -> str:
    """The field that is not in the line, but follows it."""
    return "state" if data["event"] == "keptstep" else "pixels"
