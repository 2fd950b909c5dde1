"""The engine: a plan in, events out, drawn by torch on this machine. Nothing heavy is imported before it runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sdcli.events import Done, Event, Timed
from sdcli.machine.environment import environment
from sdcli.plan.plan import Plan
from sdcli.request.request import Job

WINDOW = 64  # batches whose prompts are encoded together where the encoders leave afterwards

Batches = Iterable[tuple[int, tuple[Job, ...]]]


def run(plan: Plan, batches: Batches | None = None) -> Iterator[Event]:
    """`batches` as (number, jobs), the plan's own if not given; a list is looked ahead into, an iterator is not.

    Closing the generator, or an interrupt raised in it, gives all memory back; what was yielded is the caller's.
    """
    started = time.perf_counter()
    studio = _studio(plan)
    try:
        yield Timed(phase="import", seconds=time.perf_counter() - started)
        yield studio.meter.read("import")
        yield from studio.load()
        own = [(number, plan.batch(number)) for number in range(len(plan.batches))]
        for window in _windows(own if batches is None else batches):
            yield from studio.draw(window)
        yield Done(environment=environment(plan.hardware) | {"threads": plan.setup.threads, "isa": plan.setup.isa})
    finally:
        studio.close()


def _studio(plan: Plan) -> Any:
    from sdcli.draw import quiet

    quiet.hush()
    import torch

    from sdcli.draw.studio import Studio

    torch.set_num_threads(plan.setup.threads)
    return Studio(plan)


def _windows(batches: Batches) -> Iterator[Sequence[tuple[int, tuple[Job, ...]]]]:
    if isinstance(batches, Sequence):
        for first in range(0, len(batches), WINDOW):
            yield batches[first : first + WINDOW]
    else:
        for batch in batches:
            yield [batch]


def best_rate(plan: Plan) -> float:
    """The most operations a second this device reaches in the plan's dtype, tried now for a second or two."""
    from sdcli.draw import rate

    return rate.best(plan.setup.dtype, plan.setup.device)


def busy() -> Any:
    """A block whose `seconds` are those a card's kernels ran within it."""
    from sdcli.draw import rate

    return rate.Busy()
