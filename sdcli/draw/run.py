"""One run: batches go through the stages their plan counted, and a rung lower when memory runs out."""

from __future__ import annotations

import shlex
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdcli.draw import decode, denoise, preview, schedulers
from sdcli.draw.denoise import Halfway
from sdcli.draw.exhausted import exhausted
from sdcli.draw.oom import first_line, is_out_of_memory
from sdcli.draw.session import Session
from sdcli.errors import ImagesFailed, OutOfMemory
from sdcli.events import Decoded, Degraded, Denoised, Encoded, Event, Failed, Preview, Step
from sdcli.models.families import find
from sdcli.models.vae import scale
from sdcli.plan.batches import Batch, windows_of
from sdcli.plan.ladder import after_out_of_memory
from sdcli.plan.plan import Plan, Rung, Setup
from sdcli.plan.stages import Stage, parts_of, previews_after, stages, walk
from sdcli.plan.techniques import TECHNIQUES, placement
from sdcli.request.request import Job
from sdcli.terminal import show

T = TypeVar("T")
Work = Generator[Event, None, T]


@dataclass
class Drawing:
    """One batch on its way. `at` is where to go on after a UNet call that failed."""

    number: int
    jobs: Sequence[Job]
    scheduler: Any
    generators: list[torch.Generator]
    at: Halfway | None = None
    pending: deque[tuple[int, Any, Any]] = field(default_factory=deque)  # steps launched, not yet timed
    latents: Tensor | None = None
    setup: Setup | None = None  # under which they were denoised

    @property
    def step(self) -> int:
        return self.at.step if self.at else 0


class Run:
    """What one plan asks of a session. Every stage can be begun again after a failure."""

    def __init__(self, session: Session, plan: Plan) -> None:
        self.session = session
        self.plan = plan
        self._stages: tuple[Stage, ...] = ()  # of the batch being drawn
        self._drawing: Drawing | None = None
        self._used = {plan.setup}

    def draw(self, batches: Iterable[Batch]) -> Iterator[Event]:
        for window in windows_of(batches):
            prompts = self.session.prompts
            prompts.keep(key for _, jobs in window for key in prompts.wanted(jobs))
            for number, jobs, stage in walk(self.plan.model, window, alone=self._alone):
                self._stages = stages(self.plan.model, jobs, alone=self._alone)
                yield from {"text": self._encode, "unet": self._denoise, "image": self._decode}[stage.work](
                    number, jobs, stage
                )

    @property
    def _alone(self) -> bool:
        return self.plan.request.batch_invariant

    # --- loading

    def load(self) -> Iterator[Event]:
        """What stays is loaded at once; where parts make room for each other, when their turn comes."""
        self._stages = stages(self.plan.model, self.plan.jobs[:1], alone=self._alone)
        first = self._stages[0]
        if set(self._held(first, first.parts[0])) == set(parts_of(self._stages)):
            yield from self._surviving(0, "load", lambda: self._ready(first, first.parts[0]))

    def _held(self, stage: Stage, part: str) -> tuple[str, ...]:
        return placement.held(self.session.setup.placement, self._stages, stage, part)

    def _ready(self, stage: Stage, part: str) -> Work[None]:
        """Just what the plan counted for this moment is in memory afterwards."""
        loaded = False
        for event in self.session.placed.ready(self._held(stage, part)):
            loaded = True
            yield event
        if loaded:
            yield self.session.meter.read("load")

    # --- prompts

    def _encode(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        prompts, seconds = self.session.prompts, 0.0
        missing = prompts.missing(prompts.wanted(jobs))
        if missing:
            seconds = yield from self._surviving(number, stage.name, lambda: self._texts(stage, missing))
        yield Encoded(
            stage=stage.name, batch=number, tokens=tuple(map(prompts.tokens, jobs)), seconds=seconds,
            chunks=prompts.chunks(jobs),
        )  # fmt: skip
        yield self.session.meter.read(stage.name)

    def _texts(self, stage: Stage, keys: Sequence[Any]) -> Work[float]:
        """Encoder by encoder, so that one can leave before the next comes; the seconds without loading."""
        columns, seconds = [], 0.0
        for part in stage.parts:
            yield from self._ready(stage, part)
            started = time.perf_counter()
            columns.append(self.session.prompts.encode(self.session.placed, part, keys))
            seconds += time.perf_counter() - started
        self.session.prompts.take(keys, columns)
        return seconds

    # --- noise into latents

    def _denoise(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        drawing = self._drawing = Drawing(
            number=number, jobs=jobs, scheduler=schedulers.make(jobs[0].sampler, self.plan.model.scheduler),
            generators=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
        )  # fmt: skip
        yield from self._surviving(number, stage.name, lambda: self._steps(drawing, stage), drawing)

    def _steps(self, drawing: Drawing, stage: Stage) -> Work[None]:
        (part,) = stage.parts
        yield from self._ready(stage, part)
        placed, meter, started = self.session.placed, self.session.meter, time.perf_counter()
        conditioning = self.session.prompts.conditioning(drawing.jobs, placed, alone=self._alone)
        drawing.at = self._start(drawing, stage)
        with placed.use(part) as unet:
            before = meter.mark()
            for halfway in denoise.denoise(unet, drawing.scheduler, conditioning, drawing.at, drawing.generators):
                drawing.at = halfway
                after = meter.mark()
                drawing.pending.append((halfway.step, before, after))
                before = after
                yield from self._timed(drawing, stage, meter.lag)
                yield from self._previews(drawing, stage)
            yield from self._timed(drawing, stage, 0)
        meter.wait()
        drawing.latents, drawing.setup = drawing.at.latents, self.session.setup
        yield Denoised(
            stage=stage.name, batch=drawing.number, seconds=time.perf_counter() - started, latents=drawing.latents
        )
        yield meter.read(stage.name)

    def _start(self, drawing: Drawing, stage: Stage) -> Halfway:
        if drawing.at is not None:
            return drawing.at
        placed, vae = self.session.placed, self.plan.model.components["vae"].config
        for job, generator in zip(drawing.jobs, drawing.generators, strict=True):
            generator.manual_seed(job.seed)  # noise may have been drawn before memory ran out
        schedulers.set_steps(drawing.scheduler, drawing.jobs[0].steps, placed.device)
        edge = scale(vae)
        return denoise.begin(
            drawing.scheduler, drawing.generators,
            shape=(int(vae.get("latent_channels", 4)), stage.shape.height // edge, stage.shape.width // edge),
            dtype=placed.dtype, device=placed.device, batch=drawing.number,
        )  # fmt: skip

    def _timed(self, drawing: Drawing, stage: Stage, running: int) -> Iterator[Event]:
        """Steps that are surely over; on a card the newest may still be `running`."""
        meter = self.session.meter
        while len(drawing.pending) > running:
            step, before, after = drawing.pending.popleft()
            seconds = meter.between(before, after)
            now, peak = meter.now()
            yield Step(
                stage=stage.name, batch=drawing.number, step=step, of=drawing.jobs[0].unet_calls, seconds=seconds,
                device_bytes=now, device_peak=peak,
            )  # fmt: skip

    def _previews(self, drawing: Drawing, stage: Stage) -> Iterator[Event]:
        wanted = previews_after(self.plan.request, drawing.jobs[0].unet_calls)
        if drawing.at is None or drawing.step not in wanted:
            return
        colours = self.plan.model.preview or find(self.plan.model.family).colours
        for job, latents in zip(drawing.jobs, drawing.at.latents, strict=True):
            width, height, pixels = preview.preview(latents, colours)
            yield Preview(
                stage=stage.name, batch=drawing.number, index=job.index, step=drawing.step, width=width, height=height,
                pixels=pixels,
            )  # fmt: skip

    # --- latents into pixels

    def _decode(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        drawing, self._drawing = self._drawing, None
        assert drawing is not None and drawing.latents is not None
        scheduler = schedulers.settings(drawing.scheduler)
        for position, job in enumerate(jobs):
            one = drawing.latents[position : position + 1]
            try:
                picture, seconds = yield from self._surviving(number, stage.name, lambda: self._picture(stage, one))  # noqa: B023
            except decode.NotFinite as error:
                yield Failed(batch=number, index=job.index, error=self._not_finite(job, error).to_json())
                continue
            yield Decoded(
                stage=stage.name, batch=number, index=job.index, job=job, width=picture.width, height=picture.height,
                seconds=seconds, pixels=picture.pixels, setup=self._drawn_under(drawing), scheduler=scheduler,
                retried=picture.retried,
            )  # fmt: skip
        yield self.session.meter.read(stage.name)

    def _not_finite(self, job: Job, error: decode.NotFinite) -> ImagesFailed:
        model = show(shlex.quote(self.plan.request.model or self.plan.model.name), 300)
        exact = self.session.placed.setup.dtype == "fp32"  # then no rounding did it, but the weights
        hint = f"sdcli models check {model}" if exact else "the same command with --dtype fp32"
        return ImagesFailed(f"image {job.index + 1}: {error}", done="it was not written", hint=hint)

    def _picture(self, stage: Stage, latents: Tensor) -> Work[tuple[decode.Picture, float]]:
        (part,) = stage.parts
        yield from self._ready(stage, part)
        started = time.perf_counter()
        with self.session.placed.use(part) as vae:
            picture = decode.decode(vae, latents)
        return picture, time.perf_counter() - started

    def _drawn_under(self, drawing: Drawing) -> Setup:
        """The setup now, but for what was decided before memory ran out in the decode."""
        now = self.session.setup
        return replace(now, guidance=drawing.setup.guidance) if drawing.setup is not None else now

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
        before = self.session.setup
        rung = next((rung for rung in self._rungs(number, phase) if rung.setup not in self._used), None)
        self.session.placed.drop_all()
        if rung is None:
            raise self._gave_up(before, phase, step, because)
        self._used.add(rung.setup)
        self.session.change(rung.setup)
        return Degraded(
            batch=number, phase=phase, step=step, before=_differing(before, rung.setup),
            after=_differing(rung.setup, before), because=because, changes_pixels=rung.changes_pixels,
        )  # fmt: skip

    def _rungs(self, number: int, phase: str) -> tuple[Rung, ...]:
        if not self.plan.request.fallback:
            return ()
        if number < len(self.plan.batches):
            return after_out_of_memory(self.plan, number, self.session.setup, phase)
        return self.plan.ladder

    def _gave_up(self, setup: Setup, phase: str, step: int | None, because: str) -> OutOfMemory:
        where = {"load": "while loading", "encode": "encoding the prompt", "decode": "decoding the picture"}.get(
            phase, f"in step {(step or 0) + 1}"
        )
        return exhausted(self.plan, where, because, setup=setup, phase=phase, step=step)


def _differing(setup: Setup, other: Setup) -> dict[str, str]:
    return {t.slot: t.of(setup) for t in TECHNIQUES if t.of(setup) != t.of(other)}
