"""A model in place, and the pictures drawn with it: batches in, events out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdcli.draw import decode, denoise, preview, schedulers
from sdcli.draw.denoise import Halfway
from sdcli.draw.exhausted import exhausted
from sdcli.draw.meter import Meter
from sdcli.draw.oom import first_line, is_out_of_memory
from sdcli.draw.place import Placed
from sdcli.draw.prompts import Prompts
from sdcli.errors import ImagesFailed, OutOfMemory
from sdcli.events import Decoded, Degraded, Denoised, Encoded, Event, Failed, Preview, Step
from sdcli.models.families import find
from sdcli.plan.ladder import after_out_of_memory
from sdcli.plan.plan import Plan, Rung, Setup
from sdcli.plan.techniques import TECHNIQUES
from sdcli.request.request import Job

Batch = tuple[int, tuple[Job, ...]]
T = TypeVar("T")
Work = Generator[Event, None, T]


@dataclass
class Drawing:
    """One batch on its way through the UNet. `at` is where to go on after a call that failed."""

    number: int
    jobs: Sequence[Job]
    scheduler: Any
    generators: list[torch.Generator]
    frames: frozenset[int]  # after which steps a picture of the way is wanted
    at: Halfway | None = None
    pending: deque[tuple[int, Any, Any]] = field(default_factory=deque)  # steps launched, not yet timed

    @property
    def step(self) -> int:
        return self.at.step if self.at else 0


class Studio:
    """Draws under the plan's setup, and a rung lower when memory runs out."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.placed = Placed(plan.model, plan.setup)
        self.prompts = Prompts(plan.model, plan.setup.adapters)
        self.meter = Meter(self.placed.device)
        self._used = {plan.setup}

    def close(self) -> None:
        """Gives all memory back; what was drawn has left as events."""
        self.prompts.keep(())
        self.placed.drop_all()

    def load(self) -> Iterator[Event]:
        """What stays is loaded at once; where parts make room for each other, when their turn comes."""
        if self.placed.setup.placement not in ("drop-encoders", "disk"):
            yield from self._surviving(0, "load", self._all)

    def draw(self, batches: Sequence[Batch]) -> Iterator[Event]:
        """The prompts of all these batches are encoded first, so that the encoders can leave."""
        wanted = {number: self.prompts.wanted(jobs) for number, jobs in batches}
        self.prompts.keep(key for keys in wanted.values() for key in keys)
        for number, jobs in batches:
            missing = self.prompts.missing(wanted[number])
            seconds = 0.0
            if missing:
                seconds = yield from self._surviving(number, "encode", lambda: self._encode(missing))  # noqa: B023
            yield Encoded(batch=number, tokens=tuple(map(self.prompts.tokens, jobs)), seconds=seconds)
        for number, jobs in batches:
            drawing = self._begun(number, jobs)
            latents = yield from self._surviving(number, "denoise", lambda: self._denoise(drawing), drawing)  # noqa: B023
            yield from self._decode(drawing, latents)

    def _begun(self, number: int, jobs: Sequence[Job]) -> Drawing:
        asked = self.plan.request
        calls = jobs[0].unet_calls
        every = range(asked.preview_every, calls + 1, asked.preview_every) if asked.preview_every > 0 else ()
        return Drawing(
            number=number, jobs=jobs, scheduler=schedulers.make(jobs[0].sampler, self.plan.model.scheduler),
            generators=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
            frames=preview.frames(calls, asked.filmstrip) | frozenset(every),
        )  # fmt: skip

    # --- the phases. Each can be begun again after a failure.

    def _all(self) -> Work[None]:
        yield from self._ready(*self.placed.encoders, "unet", "vae")

    def _ready(self, *names: str) -> Work[None]:
        loaded = False
        for event in self.placed.ready(*names):
            loaded = True
            yield event
        if loaded:
            yield self.meter.read("load")

    def _encode(self, keys: Sequence[Any]) -> Work[float]:
        if not self.placed.one_at_a_time:
            yield from self._ready(*self.placed.encoders)
        seconds = yield from self.prompts.encode(self.placed, keys)
        yield self.meter.read("encode")
        return seconds

    def _denoise(self, drawing: Drawing) -> Work[Tensor]:
        yield from self._ready("unet", *(() if self.placed.one_at_a_time else ("vae",)))
        placed, started = self.placed, time.perf_counter()
        conditioning = self.prompts.conditioning(drawing.jobs, placed, alone=self.plan.request.batch_invariant)
        drawing.at = self._start(drawing)
        with placed.use("unet") as unet:
            before = self.meter.mark()
            for halfway in denoise.denoise(unet, drawing.scheduler, conditioning, drawing.at, drawing.generators):
                drawing.at = halfway
                after = self.meter.mark()
                drawing.pending.append((halfway.step, before, after))
                before = after
                yield from self._timed(drawing, self.meter.lag)
                yield from self._previews(drawing)
            yield from self._timed(drawing, 0)
        self.meter.wait()
        yield Denoised(batch=drawing.number, seconds=time.perf_counter() - started, latents=drawing.at.latents)
        yield self.meter.read("denoise")
        return drawing.at.latents

    def _start(self, drawing: Drawing) -> Halfway:
        if drawing.at is not None:
            return drawing.at
        first, components = drawing.jobs[0], self.plan.model.components
        for job, generator in zip(drawing.jobs, drawing.generators, strict=True):
            generator.manual_seed(job.seed)  # noise may have been drawn before memory ran out
        drawing.scheduler.set_timesteps(first.steps, device=self.placed.device)
        pixels = 2 ** (len(components["vae"].config["block_out_channels"]) - 1)  # a latent's edge
        return denoise.begin(
            drawing.scheduler, drawing.generators,
            shape=(int(components["unet"].config["in_channels"]), first.height // pixels, first.width // pixels),
            dtype=self.placed.dtype, device=self.placed.device, batch=drawing.number,
        )  # fmt: skip

    def _timed(self, drawing: Drawing, running: int) -> Iterator[Event]:
        """Steps that are surely over; on a card the newest may still be `running`."""
        while len(drawing.pending) > running:
            step, before, after = drawing.pending.popleft()
            seconds = self.meter.between(before, after)
            now, peak = self.meter.now()
            yield Step(
                batch=drawing.number, step=step, of=drawing.jobs[0].unet_calls, seconds=seconds,
                device_bytes=now, device_peak=peak,
            )  # fmt: skip

    def _previews(self, drawing: Drawing) -> Iterator[Event]:
        if drawing.at is None or drawing.step not in drawing.frames:
            return
        model = self.plan.model
        for job, latents in zip(drawing.jobs, drawing.at.latents, strict=True):
            width, height, pixels = preview.preview(latents, model.preview or find(model.family).colours)
            yield Preview(
                batch=drawing.number, index=job.index, step=drawing.step, width=width, height=height, pixels=pixels
            )

    def _decode(self, drawing: Drawing, latents: Tensor) -> Iterator[Event]:
        scheduler = schedulers.settings(drawing.scheduler)
        for position, job in enumerate(drawing.jobs):
            one = latents[position : position + 1]
            try:
                picture, seconds = yield from self._surviving(drawing.number, "decode", lambda: self._picture(one))  # noqa: B023
            except decode.NotFinite as error:
                yield Failed(batch=drawing.number, index=job.index, error=_not_finite(job, error).to_json())
                continue
            yield Decoded(
                batch=drawing.number, index=job.index, job=job, width=picture.width, height=picture.height,
                seconds=seconds, pixels=picture.pixels, scheduler=scheduler, retried=picture.retried,
            )  # fmt: skip
        yield self.meter.read("decode")

    def _picture(self, latents: Tensor) -> Work[tuple[decode.Picture, float]]:
        yield from self._ready("vae")
        started = time.perf_counter()
        with self.placed.use("vae") as vae:
            picture = decode.decode(vae, latents)
        return picture, time.perf_counter() - started

    # --- running out of memory

    def _surviving(
        self, number: int, phase: str, work: Callable[[], Work[T]], drawing: Drawing | None = None
    ) -> Work[T]:
        """`work`, begun again on a smaller rung whenever memory runs out in it."""
        while True:
            try:
                return (yield from work())
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                because = first_line(error)
            # Only here, after the except block, has the failed call's memory no holder any more.
            yield self._step_down(number, phase, drawing.step if drawing else None, because)

    def _step_down(self, number: int, phase: str, step: int | None, because: str) -> Degraded:
        before = self.placed.setup
        rung = next((rung for rung in self._rungs(number, phase) if rung.setup not in self._used), None)
        self.placed.drop_all()
        if rung is None:
            raise self._gave_up(before, phase, step, because)
        self._used.add(rung.setup)
        self.placed = Placed(self.plan.model, rung.setup)
        self.meter = Meter(self.placed.device)
        return Degraded(
            batch=number, phase=phase, step=step, before=_differing(before, rung.setup),
            after=_differing(rung.setup, before), because=because, changes_pixels=rung.changes_pixels,
        )  # fmt: skip

    def _rungs(self, number: int, phase: str) -> tuple[Rung, ...]:
        if not self.plan.request.fallback:
            return ()
        if number < len(self.plan.batches):
            return after_out_of_memory(self.plan, number, self.placed.setup, phase)
        return self.plan.ladder

    def _gave_up(self, setup: Setup, phase: str, step: int | None, because: str) -> OutOfMemory:
        where = {"load": "while loading", "encode": "encoding the prompt", "decode": "decoding the picture"}.get(
            phase, f"in step {(step or 0) + 1}"
        )
        return exhausted(self.plan, where, because, setup=setup, phase=phase, step=step)


def _differing(setup: Setup, other: Setup) -> dict[str, str]:
    return {t.slot: t.of(setup) for t in TECHNIQUES if t.of(setup) != t.of(other)}


def _not_finite(job: Job, error: decode.NotFinite) -> ImagesFailed:
    return ImagesFailed(
        f"image {job.index + 1}: {error}", done="it was not written", hint='sdcli generate "a cat" --dtype fp32'
    )
