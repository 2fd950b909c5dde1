"""An engine without torch: the same events in milliseconds, and a gradient made from each seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator

from sdcli.events import Decoded, Denoised, Done, Encoded, Event, Loaded, Memory, Preview, Step, Timed
from sdcli.plan.plan import Plan
from sdcli.request.request import Job


def run(
    plan: Plan,
    batches: Iterable[tuple[int, tuple[Job, ...]]] | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> Iterator[Event]:
    """Every event a real run has. `batches` as (number, jobs), read as they come; the plan's own if not given."""
    yield Timed(phase="import", seconds=0.0)
    for name, component in plan.model.components.items():
        yield Loaded(component=name, bytes=component.stored_bytes, seconds=0.0)
    yield _peak("load", plan)
    own = ((number, plan.batch(number)) for number in range(len(plan.batches)))
    for number, jobs in batches if batches is not None else own:
        yield from _draw(plan, number, jobs, count_tokens or _count_words)
    yield Done(environment={"engine": "fake"})


def _draw(plan: Plan, number: int, jobs: tuple[Job, ...], count_tokens: Callable[[str], int]) -> Iterator[Event]:
    yield Encoded(batch=number, tokens=tuple(count_tokens(job.prompt) for job in jobs), seconds=0.0)
    yield _peak("encode", plan)
    started = time.perf_counter()
    calls = jobs[0].unet_calls
    for step in range(1, calls + 1):
        before = time.perf_counter()
        yield Step(batch=number, step=step, of=calls, seconds=time.perf_counter() - before)
        every = plan.request.preview_every or (1 if plan.request.filmstrip else 0)
        if every and step % every == 0:
            for job in jobs:
                pixels = _gradient(job.seed, 16, 16)
                yield Preview(batch=number, index=job.index, step=step, width=16, height=16, pixels=pixels)
    yield Denoised(batch=number, seconds=time.perf_counter() - started)
    yield _peak("denoise", plan)
    for job in jobs:
        before = time.perf_counter()
        pixels = _gradient(job.seed, job.width, job.height)
        yield Decoded(
            batch=number, index=job.index, job=job, width=job.width, height=job.height,
            seconds=time.perf_counter() - before, pixels=pixels, scheduler=dict(plan.model.scheduler),
        )  # fmt: skip
    yield _peak("decode", plan)


def _peak(phase: str, plan: Plan) -> Memory:
    """The prediction stands for the measurement, as nothing was really loaded."""
    predicted = next((p for p in plan.footprint.phases if p.name == phase), None)
    device = predicted.device if predicted and plan.hardware.kind != "cpu" else None
    return Memory(phase=phase, device_peak=device, host_peak=predicted.host if predicted else None)


def _count_words(prompt: str) -> int:
    return len(prompt.split())


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
