"""An engine without torch: the same events in the same order, in milliseconds; each image is a gradient of its seed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sdcli.events import (
    Decoded,
    Denoised,
    Done,
    Encoded,
    EncodedImage,
    Event,
    Loaded,
    Memory,
    Preview,
    Step,
    Tile,
    Timed,
)
from sdcli.machine.hardware import Hardware
from sdcli.plan.batches import Batch, windows_of
from sdcli.plan.footprint import COMPILE
from sdcli.plan.plan import Plan
from sdcli.plan.stages import Stage, parts_of, pass_of, previewed, stages, walk
from sdcli.plan.techniques import placement
from sdcli.request import tokenizer
from sdcli.request.request import Job


class Engine:
    """Like draw/local.py's, but loads nothing."""

    def run(
        self, plan: Plan, batches: Iterable[Batch] | None = None, kept: Mapping[int, bytes] | None = None
    ) -> Iterator[Event]:
        """`batches` as (number, jobs), read as they come; the plan's if not given."""
        yield from Run(plan).events(batches)

    def without_own(self, hardware: Hardware) -> Hardware:
        return hardware

    def close(self) -> None:
        pass

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(plan: Plan, batches: Iterable[Batch] | None = None) -> Iterator[Event]:
    yield from Engine().run(plan, batches)


class Run:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._loaded: tuple[str, ...] = ()
        self._texts: set[tuple[str, str]] = set()  # by stage; encoded, and needed by this window

    def events(self, batches: Iterable[Batch] | None) -> Iterator[Event]:
        plan, alone = self.plan, self.plan.request.batch_invariant
        yield Timed(phase="import", seconds=0.0)
        yield self._peak("import")
        if plan.jobs:
            first = stages(plan.model, plan.jobs[:1])
            parts = placement.loaded(plan.setup.placement, first, first[0], first[0].parts[0])
            if set(parts) == set(parts_of(first)):
                yield from self._load(parts)
        for window in windows_of(plan.numbered() if batches is None else batches):
            needed = {text for _, jobs in window for text in _texts(jobs)}
            self._texts = {each for each in self._texts if each[1] in needed}
            for number, jobs, stage in walk(plan.model, window, alone=alone):
                for part in stage.parts if self._needed(stage, jobs) else ():
                    every = stages(plan.model, jobs, alone=alone)
                    yield from self._load(placement.loaded(plan.setup.placement, every, stage, part))
                draw = {
                    "text": self._encode, "reference": self._encode_image, "pixels": self._encode_image,
                    "unet": self._denoise, "enlarge": self._upscale, "image": self._decode,
                }[stage.work]  # fmt: skip
                yield from draw(number, jobs, stage)
                yield self._peak(stage.name)
        yield Done(environment={"engine": "fake"})

    def _needed(self, stage: Stage, jobs: Sequence[Job]) -> bool:
        return stage.work != "text" or not _read(stage, jobs) <= self._texts

    def _load(self, parts: Sequence[str]) -> Iterator[Event]:
        missing = [part for part in parts if part not in self._loaded]
        self._loaded = tuple(parts)
        for part in missing:
            yield Loaded(component=part, bytes=self.plan.model.components[part].stored_bytes, seconds=0.0)
        if missing:
            yield self._peak("load")

    def _encode(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        self._texts |= _read(stage, jobs)
        chunks = {
            job.prompt: tokenizer.chunks(job.prompt, job.emphasis, folder=self.plan.model.vocabulary) for job in jobs
        }
        yield Encoded(
            stage=stage.name, batch=number, seconds=0.0, chunks=max(map(len, chunks.values())),
            tokens=tuple(sum(map(len, chunks[job.prompt])) for job in jobs),
        )  # fmt: skip

    def _encode_image(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        yield EncodedImage(stage=stage.name, batch=number, seconds=0.0)

    def _upscale(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        if len(stage.parts) > 1:
            yield Tile(stage=stage.name, batch=number, tile=1, of=1, seconds=0.0)
        yield EncodedImage(stage=stage.name, batch=number, seconds=0.0)

    def _denoise(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        if self.plan.setup.execution == "compile" and number == 0:
            yield Timed(phase=COMPILE, seconds=0.0)
            yield self._peak(COMPILE)
        started, calls = time.perf_counter(), pass_of(jobs[0], stage).unet_calls
        after = previewed(self.plan.request, jobs[0], stage)
        for step in range(1, calls + 1):
            before = time.perf_counter()
            yield Step(
                stage=stage.name, batch=number, step=step, of=calls, seconds=time.perf_counter() - before
            )  # fmt: skip
            for job in jobs if step in after else ():
                pixels = _gradient(job.seed, 16, 16)
                yield Preview(
                    stage=stage.name, batch=number, index=job.index, step=step, width=16, height=16, pixels=pixels
                )
        yield Denoised(stage=stage.name, batch=number, seconds=time.perf_counter() - started)

    def _decode(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        for job in jobs:
            before = time.perf_counter()
            width, height = job.size
            pixels = _gradient(job.seed, width, height)
            yield Decoded(
                stage=stage.name, batch=number, index=job.index, job=job, width=width, height=height,
                seconds=time.perf_counter() - before, pixels=pixels, setup=self.plan.setup,
                scheduler=dict(self.plan.model.scheduler),
            )  # fmt: skip

    def _peak(self, phase: str) -> Memory:
        """The predicted peak in place of a measured one, as nothing is loaded."""
        predicted = next((p for p in self.plan.footprint.phases if p.name == phase), None)
        device = predicted.device if predicted and self.plan.hardware.kind != "cpu" else None
        return Memory(phase=phase, device_peak=device, host_peak=predicted.host if predicted else None)


def _texts(jobs: Sequence[Job]) -> set[str]:
    return {text for job in jobs for text in (job.prompt, job.negative_prompt)}


def _read(stage: Stage, jobs: Sequence[Job]) -> set[tuple[str, str]]:
    return {(stage.name, text) for text in _texts(jobs)}


def _gradient(seed: int, width: int, height: int) -> bytes:
    """Two colours of the seed, blended along a direction of the seed: cheap, and different for every seed."""
    mixed = (seed * 0x9E3779B97F4A7C15 + 0x7F4A7C15) & (2**64 - 1)
    first, last = mixed & 0xFFFFFF, (mixed >> 24) & 0xFFFFFF
    angle = (mixed >> 48) / 65536 * math.tau
    across, down = abs(math.cos(angle)), abs(math.sin(angle))
    scale = max(1.0, across * width + down * height)
    rows: list[bytes] = []
    ramp = [_blend(first, last, position / 255) for position in range(256)]
    for y in range(height):
        rows.append(b"".join(ramp[int((across * x + down * y) / scale * 255)] for x in range(width)))
    return b"".join(rows)


def _blend(first: int, last: int, share: float) -> bytes:
    channels = (16, 8, 0)
    return bytes(round((first >> c & 255) * (1 - share) + (last >> c & 255) * share) for c in channels)
