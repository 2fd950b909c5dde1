"""One run: batches go through the stages their plan counted, and continue on a fallback when memory runs out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdcli.draw import control, decode, denoise, encode_image, kept_steps, noise, preview, schedulers, upscale
from sdcli.draw.captured import NotCaptured
from sdcli.draw.denoise import Conditioning, LoopState
from sdcli.draw.encode_image import Posterior
from sdcli.draw.exhausted import exhausted
from sdcli.draw.images import Started, StartKey, keys_of, lanczos, put_back
from sdcli.draw.oom import first_line, is_out_of_memory
from sdcli.draw.reference import Together
from sdcli.draw.regional import NotCompiled
from sdcli.draw.session import Session
from sdcli.draw.start import Begun, EncodedStart, begun, enlarged
from sdcli.errors import BadFile, ImagesFailed, OutOfMemory
from sdcli.events import (
    Decoded,
    Degraded,
    Denoised,
    Encoded,
    EncodedImage,
    Event,
    Failed,
    KeptStep,
    Preview,
    Step,
    Tile,
    Timed,
    Warned,
)
from sdcli.images import control as control_images
from sdcli.images.canvas import Canvas
from sdcli.models import upscaler_walk
from sdcli.models.families import find
from sdcli.models.model import net_kind
from sdcli.models.vae import scale
from sdcli.plan.batches import Batch, windows_of
from sdcli.plan.fallbacks import after_out_of_memory, changes_pixels
from sdcli.plan.footprint import COMPILE
from sdcli.plan.plan import Fallback, Plan, Setup
from sdcli.plan.stages import Stage, parts_of, pass_of, previewed, stages, walk
from sdcli.plan.techniques import TECHNIQUES, placement
from sdcli.plan.techniques.execution import layer_by_layer
from sdcli.request.request import Job, Pass
from sdcli.terminal import quoted, show

T = TypeVar("T")
Events = Generator[Event, None, T]

# What failed, and what does without.
_TOGETHER = {
    "compile": ("blocks could not be compiled", "--compile off"),
    "graph": ("work could not be captured", "--pin execution=eager"),
}


@dataclass
class BatchState:
    """A batch being drawn. `loop` is where to continue after a UNet call that failed."""

    number: int
    jobs: Sequence[Job]
    scheduler: Any
    generators: list[torch.Generator]
    makes: Pass
    started: Sequence[Started] = ()  # the images to start from
    smaller: Tensor | None = None  # the latents of the pass before
    handed: LoopState | None = None  # where the base ended, whose steps the refiner goes on with
    enlarged: list[Posterior] = field(default_factory=list)  # of the images before, enlarged
    begun: Begun | None = None  # what came of them
    timesteps: Tensor | None = None  # those taken, where they are not all of the scheduler's
    loop: LoopState | None = None
    pending: deque[tuple[int, Any, Any]] = field(default_factory=deque)  # steps launched, not yet timed
    latents: Tensor | None = None
    setup: Setup | None = None  # under which they were denoised

    @property
    def step(self) -> int:
        return self.loop.step if self.loop else 0

    @property
    def is_first(self) -> bool:
        """Whether this is the first pass, or the only one."""
        return self.handed is None and self.smaller is None

    @property
    def canvases(self) -> list[Canvas | None]:
        """What each image starts from, if anything."""
        return [one.canvas for one in self.started] or [None] * len(self.jobs)


class Run:
    """Draws one plan with a session. Every stage can be repeated after a failure."""

    def __init__(self, session: Session, plan: Plan, kept: Mapping[int, bytes]) -> None:
        self.session = session
        self.plan = plan
        self._kept = dict(kept)  # by batch; of its first pass
        self._stages: tuple[Stage, ...] = ()  # of the batch being drawn
        self._state: BatchState | None = None
        self._used = {plan.setup}

    def draw(self, batches: Iterable[Batch]) -> Iterator[Event]:
        for window in windows_of(batches):
            references = self.session.references
            for prompts in self.session.every_prompt:
                prompts.keep(key for _, jobs in window for key in prompts.needed(jobs))
            references.keep(one for _, jobs in window for one in references.needed(jobs))
            for number, jobs, stage in walk(self.plan.model, window, alone=self._alone):
                self._stages = stages(self.plan.model, jobs, alone=self._alone)
                draw = {
                    "text": self._encode, "reference": self._encode_references, "pixels": self._encode_image,
                    "unet": self._denoise, "enlarge": self._upscale, "image": self._decode,
                }[stage.work]  # fmt: skip
                yield from draw(number, jobs, stage)

    @property
    def _alone(self) -> bool:
        return self.plan.request.batch_invariant

    # --- loading

    def load(self) -> Iterator[Event]:
        """Loads everything now where all of it stays; where components make room for each other, or no job is known
        yet, each loads in turn."""
        if not self.plan.jobs:
            return
        self._stages = stages(self.plan.model, self.plan.jobs[:1], alone=self._alone)
        first = self._stages[0]
        if set(self._loaded(first, first.parts[0])) == set(parts_of(self._stages)):
            yield from self._surviving(0, "load", lambda: self._ready(first, first.parts[0]))

    def _loaded(self, stage: Stage, part: str) -> tuple[str, ...]:
        return placement.loaded(self.session.setup.placement, self._stages, stage, part)

    def _ready(self, stage: Stage, part: str) -> Events[None]:
        """Afterwards memory holds exactly what the plan counted for this moment."""
        loaded = False
        for event in self.session.components.ready(self._loaded(stage, part)):
            loaded = True
            yield event
        if loaded:
            yield self.session.meter.read("load")

    # --- prompts

    def _encode(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        prompts, seconds = self.session.prompts_of(stage), 0.0
        missing = prompts.missing(prompts.needed(jobs))
        if missing:
            seconds = yield from self._surviving(number, stage.name, lambda: self._texts(stage, missing))
        yield Encoded(
            stage=stage.name, batch=number, tokens=tuple(map(prompts.tokens, jobs)), seconds=seconds,
            chunks=prompts.chunks(jobs),
        )  # fmt: skip
        yield self.session.meter.read(stage.name)

    def _texts(self, stage: Stage, keys: Sequence[Any]) -> Events[float]:
        """Encoder by encoder, so that one can leave before the next loads. Returns the seconds, loading excluded."""
        prompts, columns, seconds = self.session.prompts_of(stage), [], 0.0
        for part in stage.parts:
            yield from self._ready(stage, part)
            started = time.perf_counter()
            columns.append(prompts.encode(self.session.components, part, keys))
            seconds += time.perf_counter() - started
        prompts.store(keys, columns)
        return seconds

    # --- images to draw like

    def _encode_references(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        references, seconds = self.session.references, 0.0
        missing = references.missing(references.needed(jobs))
        if missing:
            seconds = yield from self._surviving(number, stage.name, lambda: self._attended(stage, missing))
        yield EncodedImage(stage=stage.name, batch=number, seconds=seconds)

    def _attended(self, stage: Stage, needed: Sequence[Together]) -> Events[float]:
        """One model after the other, so that the first can leave before the second loads. Returns the seconds, loading
        excluded."""
        references, seconds = self.session.references, 0.0
        for part, work in zip(stage.parts, (references.encode, references.attend), strict=True):
            yield from self._ready(stage, part)
            started = time.perf_counter()
            work(self.session.components, part, needed)
            seconds += time.perf_counter() - started
            yield self.session.meter.read(stage.name)  # else what comes next would count it as loading
        return seconds

    # --- images into latents

    def _encode_image(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        images, seconds = self.session.images, 0.0
        keys = keys_of(self.plan.model, jobs)
        images.keep(keys)
        missing = images.missing(keys)
        if missing:
            seconds = yield from self._surviving(number, stage.name, lambda: self._posteriors(stage, missing))
        yield EncodedImage(stage=stage.name, batch=number, seconds=seconds)
        yield self.session.meter.read(stage.name)

    def _posteriors(self, stage: Stage, keys: Sequence[StartKey]) -> Events[float]:
        """Returns the seconds, loading excluded."""
        (part,) = stage.parts
        yield from self._ready(stage, part)
        started = time.perf_counter()
        self.session.images.encode(self.session.components, part, keys)
        return time.perf_counter() - started

    # --- noise into latents

    def _denoise(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        before = self._state
        base = before if stage.refines else None
        state = self._state = BatchState(
            number=number, jobs=jobs, scheduler=schedulers.make(jobs[0].sampler, self.plan.model.scheduler),
            generators=[noise.generator(job.rng, job.seed) for job in jobs], makes=pass_of(jobs[0], stage),
            started=self._started(jobs) if base is None else base.started,  # memory may have run out since
            smaller=before.latents if before is not None and base is None else None,
            enlarged=before.enlarged if before is not None else [], handed=None if base is None else base.loop,
        )  # fmt: skip
        yield from self._surviving(number, stage.name, lambda: self._steps(state, stage), state)

    def _started(self, jobs: Sequence[Job]) -> list[Started]:
        return [self.session.images.started(key) for key in keys_of(self.plan.model, jobs)]

    def _steps(self, state: BatchState, stage: Stage) -> Events[None]:
        (part,) = stage.parts
        yield from self._ready(stage, part)
        components, meter = self.session.components, self.session.meter
        size = state.makes.width, state.makes.height
        conditioning = self.session.prompts_of(stage).conditioning(state.jobs, components, size, alone=self._alone)
        state.loop = self._start(state, stage)
        yield from self._go_on(state)
        if state.begun is not None:
            conditioning = conditioning.starting(state.begun, components.device)
        if stage.references:
            conditioning = replace(conditioning, referred=self._referred(state, state.loop.latents))
        yield from self._compile(state, part, conditioning)
        started = time.perf_counter()
        with ExitStack() as stack:
            unet = stack.enter_context(components.use(part))
            nets = [stack.enter_context(components.use(name)) for name in stage.beside]
            controls = self._controls(state, dict(zip(stage.beside, nets, strict=True)))
            conditioning = conditioning.steered(controls, state.makes.unet_calls)
            before = meter.mark()
            for loop in denoise.denoise(
                unet, state.scheduler, conditioning, state.loop, state.generators, state.timesteps
            ):
                state.loop = loop
                after = meter.mark()
                state.pending.append((loop.step, before, after))
                before = after
                yield from self._timed(state, stage, meter.lag)
                if self.plan.request.keep_steps and state.is_first:
                    yield KeptStep(batch=state.number, step=loop.step, state=kept_steps.write(loop))
                yield from self._previews(state, stage)
            yield from self._timed(state, stage, 0)
        meter.wait()
        state.latents, state.setup = state.loop.latents, self.session.setup
        yield Denoised(
            stage=stage.name, batch=state.number, seconds=time.perf_counter() - started, latents=state.latents
        )
        yield meter.read(stage.name)

    def _go_on(self, state: BatchState) -> Iterator[Event]:
        """From the last step that another process kept of this batch."""
        assert state.loop is not None
        data = self._kept.pop(state.number, None) if state.is_first else None
        if data is None:
            return
        try:
            state.loop = kept_steps.read(data, state.loop, type(state.scheduler))
        except BadFile as error:
            yield Warned(code="kept-step", message=f"{error.message}; the image is drawn from its first step on")

    def _referred(self, state: BatchState, latents: Tensor) -> dict[str, dict[str, Any]]:
        height, width = latents.shape[-2:]
        return self.session.references.referred(
            state.jobs, (height, width), (state.makes.width, state.makes.height), state.canvases,
            self.session.components.device,
        )  # fmt: skip

    def _controls(self, state: BatchState, nets: Mapping[str, Any]) -> list[control.Steering]:
        """What steers a batch, in order. A ControlNet Union stands where its first image does, with all of them."""
        steering: dict[str | int, control.Steering] = {}
        guess = state.jobs[0].guess_mode
        for number, each in enumerate(state.jobs[0].controls):
            net, kind = nets[each.part], net_kind(each.part)
            images = self._control_images(state, number)
            about: dict[str, Any] = {"weight": each.weight, "start": each.start, "end": each.end}
            if kind == "t2i_adapter":
                rows = control.adapter_rows_of(images, net.config.in_channels)
                steering[number] = control.Adapted(net=net, image=rows, **about)
                continue
            about["image"] = control.rows_of(images)
            if kind == "controlnet_union":
                told = control.Told(shows=control_images.SHOWN[each.shows], **about)
                union = steering.get(each.part, control.United(net=net, told=(), guess=guess))
                assert isinstance(union, control.United)
                steering[each.part] = replace(union, told=(*union.told, told))
            else:
                steering[number] = control.Control(net=net, guess=guess, **about)
        return [*steering.values()]

    def _control_images(self, state: BatchState, number: int) -> list[Any]:
        """Of each image of the batch, what it is shown."""
        return [
            control_images.image_of(job.controls[number], state.makes.width, state.makes.height, canvas)
            for job, canvas in zip(state.jobs, state.canvases, strict=True)
        ]

    def _compile(self, state: BatchState, part: str, conditioning: Conditioning) -> Events[None]:
        """Before the first step, so that no step's time holds any of it."""
        components, meter, started = self.session.components, self.session.meter, time.perf_counter()
        if components.regions is None or state.loop is None:
            return
        latents, timestep = state.loop.latents, state.scheduler.timesteps[0].to(components.device)
        with components.use(part) as unet:
            anew = components.regions.compile(unet, conditioning, latents, timestep, self.session.setup.threads)
        meter.wait()
        if anew:
            yield Timed(phase=COMPILE, seconds=time.perf_counter() - started)
            yield meter.read(COMPILE)

    def _start(self, state: BatchState, stage: Stage) -> LoopState:
        if state.loop is not None:
            return state.loop
        components, vae = self.session.components, self.plan.model.components["vae"].config
        for job, generator in zip(state.jobs, state.generators, strict=True):
            generator.manual_seed(job.seed)  # it may have made noise before memory ran out
        self._set_steps(state)
        if state.handed is not None:
            return denoise.begin_after(state.handed, state.scheduler, state.generators, device=components.device)
        edge = scale(vae)
        shape = (int(vae.get("latent_channels", 4)), stage.shape.height // edge, stage.shape.width // edge)
        if state.started or state.smaller is not None:
            return self._start_from(state, vae, shape)
        return denoise.begin(
            state.scheduler, state.generators, shape=shape, dtype=components.dtype, device=components.device,
            batch=state.number,
        )  # fmt: skip

    def _set_steps(self, state: BatchState) -> None:
        makes = state.makes
        schedulers.set_steps(state.scheduler, makes.steps)
        if makes.left or state.handed is not None or state.smaller is not None or state.started:
            state.timesteps = schedulers.last_timesteps(state.scheduler, makes.steps, makes.taken, makes.left)

    def _start_from(self, state: BatchState, vae: Mapping[str, Any], shape: tuple[int, int, int]) -> LoopState:
        components, job = self.session.components, state.jobs[0]
        assert state.timesteps is not None
        starts = [one.start for one in state.jobs]
        dtype, generators = components.dtype, state.generators
        if state.smaller is not None and not state.enlarged:
            state.begun = enlarged(state.smaller, generators, shape=shape, dtype=dtype)
        else:
            encoded = [one.encoded for one in state.started] or [EncodedStart(one) for one in state.enlarged]
            sees_mask = self.plan.model.sees_mask
            state.begun = begun(starts, encoded, generators, vae, shape=shape, dtype=dtype, sees_mask=sees_mask)
        return denoise.begin_from(
            state.scheduler, state.timesteps, state.generators, state.begun,
            pure=job.start is not None and job.start.repaint is not None and job.start.strength == 1.0,
            device=components.device, batch=state.number,
        )  # fmt: skip

    def _timed(self, state: BatchState, stage: Stage, running: int) -> Iterator[Event]:
        """Steps that have finished; on a GPU the newest may still be `running`."""
        meter = self.session.meter
        while len(state.pending) > running:
            step, before, after = state.pending.popleft()
            seconds = meter.between(before, after)
            now, peak = meter.now()
            yield Step(
                stage=stage.name, batch=state.number, step=step, of=state.makes.unet_calls, seconds=seconds,
                device_bytes=now, device_peak=peak,
            )  # fmt: skip

    def _previews(self, state: BatchState, stage: Stage) -> Iterator[Event]:
        after = previewed(self.plan.request, state.jobs[0], stage)
        if state.loop is None or state.smaller is not None or state.step not in after:
            return
        colours = self.plan.model.preview or find(self.plan.model.family).colours
        for job, latents in zip(state.jobs, state.loop.latents, strict=True):
            width, height, pixels = preview.preview(latents, colours)
            yield Preview(
                stage=stage.name, batch=state.number, index=job.index, step=state.step, width=width, height=height,
                pixels=pixels,
            )  # fmt: skip

    # --- small images into larger latents

    def _upscale(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        seconds = yield from self._surviving(number, stage.name, lambda: self._larger(stage))
        yield EncodedImage(stage=stage.name, batch=number, seconds=seconds)
        yield self.session.meter.read(stage.name)

    def _larger(self, stage: Stage) -> Events[float]:
        """Image by image: decoded, enlarged, encoded. Returns the seconds, loading excluded."""
        (part, *models), state = stage.parts[:2], self._state
        assert state is not None and state.latents is not None
        yield from self._ready(stage, part)
        started, exact = time.perf_counter(), self.session.components.exact
        with self.session.components.use(part) as vae:
            images = [decode.decode(vae, latents, exact) for latents in torch.split(state.latents, 1)]
        seconds = time.perf_counter() - started
        for model in models:
            yield self.session.meter.read(stage.name)  # what follows may be loaded first
            seconds += yield from self._by_model(state, stage, model, images)
            yield self.session.meter.read(stage.name)
        yield from self._ready(stage, part)
        started = time.perf_counter()
        with self.session.components.encoder(part) as vae:
            pixels = [encode_image.pixels(lanczos(one, stage.shape.width, stage.shape.height)) for one in images]
            state.enlarged = [encode_image.encode(vae, one, exact) for one in pixels]
        return seconds + time.perf_counter() - started

    def _by_model(self, state: BatchState, stage: Stage, part: str, images: list[decode.RGBImage]) -> Events[float]:
        """The images, enlarged by a model in their place. Returns the seconds, loading excluded."""
        yield from self._ready(stage, part)
        components, size, seconds = self.session.components, (stage.shape.width, stage.shape.height), 0.0
        with components.use(part) as net:
            for number, image in enumerate(images):
                times = upscaler_walk.times(net.config, image.width, image.height, size)
                for made in upscale.enlarge(net, image, times=times, tile=components.setup.upscaler_tile):
                    if isinstance(made, decode.RGBImage):
                        images[number] = made
                        continue
                    done, seconds = number * made.of + made.tile, seconds + made.seconds
                    of = made.of * len(images)
                    yield Tile(stage=stage.name, batch=state.number, tile=done, of=of, seconds=made.seconds)
        return seconds

    # --- latents into pixels

    def _decode(self, number: int, jobs: Sequence[Job], stage: Stage) -> Iterator[Event]:
        state, self._state = self._state, None
        assert state is not None and state.latents is not None
        scheduler = schedulers.settings(state.scheduler)
        for position, job in enumerate(jobs):
            latents = state.latents[position : position + 1]
            try:
                image, seconds = yield from self._surviving(
                    number,
                    stage.name,
                    lambda: self._image(stage, latents),  # noqa: B023
                )
            except decode.NotFinite as error:
                yield Failed(batch=number, index=job.index, error=self._not_finite(job, error).to_json())
                continue
            if state.started:
                image = put_back(image, job.start, state.started[position].canvas)
            yield Decoded(
                stage=stage.name, batch=number, index=job.index, job=job, width=image.width, height=image.height,
                seconds=seconds, pixels=image.pixels, setup=self._drawn_under(state), scheduler=scheduler,
                retried=image.retried,
            )  # fmt: skip
        yield self.session.meter.read(stage.name)

    def _not_finite(self, job: Job, error: decode.NotFinite) -> ImagesFailed:
        model = show(quoted(self.plan.request.model or self.plan.model.name), 300)
        exact = self.session.components.setup.dtype == "fp32"  # then rounding is not the cause, the weights are
        hint = f"sdcli models check {model}" if exact else "the same command with --dtype fp32"
        return ImagesFailed(f"image {job.index + 1}: {error}", done="it was not written", hint=hint)

    def _image(self, stage: Stage, latents: Tensor) -> Events[tuple[decode.RGBImage, float]]:
        (part,) = stage.parts
        yield from self._ready(stage, part)
        started = time.perf_counter()
        with self.session.components.use(part) as vae:
            image = decode.decode(vae, latents, self.session.components.exact)
        return image, time.perf_counter() - started

    def _drawn_under(self, state: BatchState) -> Setup:
        """The current setup, except for what was already done when memory ran out in the decode."""
        current = self.session.setup
        return replace(current, guidance=state.setup.guidance) if state.setup is not None else current

    # --- running out of memory, and what cannot be compiled or captured

    def _surviving(
        self, number: int, phase: str, work: Callable[[], Events[T]], state: BatchState | None = None
    ) -> Events[T]:
        """`work`, repeated on the next fallback whenever memory runs out, or layer by layer if nothing else works."""
        while True:
            try:
                return (yield from work())
            except Exception as error:
                together = not is_out_of_memory(error) and isinstance(error, (NotCompiled, NotCaptured))
                if not together and not is_out_of_memory(error):
                    raise
                because = first_line(error)
            # Only here, after the except block, does nothing hold the failed call's memory any more.
            if together:
                yield self._layer_by_layer(number, because)
            else:
                yield self._fall_back(number, phase, state.step if state else None, because)

    def _fall_back(self, number: int, phase: str, step: int | None, because: str) -> Degraded:
        before = self.session.setup
        unused = (fallback for fallback in self._fallbacks(number, phase) if fallback.setup not in self._used)
        fallback = next(unused, None)
        self.session.components.drop_all()
        if fallback is None:
            raise self._exhausted(before, phase, step, because)
        return self._changed(number, phase, step, fallback.setup, because)

    def _layer_by_layer(self, number: int, because: str) -> Degraded:
        before = self.session.setup
        self.session.components.drop_all()
        if not self.plan.request.fallback:
            what, way = _TOGETHER[before.execution]
            raise ImagesFailed(f"the UNet's {what}: {because}", hint=f"the same command with {way}")
        return self._changed(number, before.execution, None, layer_by_layer(before), because)

    def _changed(self, number: int, phase: str, step: int | None, after: Setup, because: str) -> Degraded:
        before = self.session.setup
        self._used.add(after)
        self.session.change(after)
        return Degraded(
            batch=number, phase=phase, step=step, before=_differing(before, after), after=_differing(after, before),
            because=because, changes_pixels=changes_pixels(before, after),
        )  # fmt: skip

    def _fallbacks(self, number: int, phase: str) -> tuple[Fallback, ...]:
        if not self.plan.request.fallback:
            return ()
        if number < len(self.plan.batches):
            return after_out_of_memory(self.plan, number, self.session.setup, phase)
        return self.plan.fallbacks

    def _exhausted(self, setup: Setup, phase: str, step: int | None, because: str) -> OutOfMemory:
        where = {
            "load": "while loading",
            "encode": "encoding the prompt",
            "encode-reference": "encoding the reference image",
            "encode-refiner": "encoding the prompt",
            "encode-image": "encoding the image",
            "upscale": "enlarging the image",
            "decode": "decoding the image",
        }.get(phase, f"in step {(step or 0) + 1}")
        return exhausted(self.plan, where, because, setup=setup, phase=phase, step=step)


def _differing(setup: Setup, other: Setup) -> dict[str, str]:
    slots = {t.slot: t.of(setup) for t in TECHNIQUES if t.of(setup) != t.of(other)}
    if setup.upscaler_tile != other.upscaler_tile:
        slots["upscaler_tile"] = str(setup.upscaler_tile or "whole")
    return slots
