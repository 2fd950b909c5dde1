"""The engine: a plan in, events out, drawn by torch on this machine. Nothing heavy is imported before it runs."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sdcli.draw.exhausted import exhausted
from sdcli.draw.oom import first_line, is_out_of_memory
from sdcli.events import Done, Event, Timed
from sdcli.machine.environment import environment
from sdcli.machine.state import Probe
from sdcli.plan.calibration import CUDA_CONTEXT
from sdcli.plan.plan import Plan
from sdcli.request.request import Job

WINDOW = 64  # batches whose prompts are encoded together where the encoders leave afterwards

Batches = Iterable[tuple[int, tuple[Job, ...]]]


def run(plan: Plan, batches: Batches | None = None) -> Iterator[Event]:
    """`batches` as (number, jobs), the plan's own if not given; a list is looked ahead into, an iterator is not.

    Closing the generator, or an interrupt raised in it, gives all memory back; what was yielded is the caller's.
    """
    try:
        yield from _run(plan, batches)
    except Exception as error:  # where no way down exists: imports, the start of a device
        if not is_out_of_memory(error):
            raise
        raise exhausted(plan, "while starting", first_line(error)) from error


def probe(device: str, threads: int) -> Probe:
    """Which number types this device computes rightly and fast: at most a second, torch's import apart."""
    from sdcli.draw import probe

    return probe.probe(device, threads)


def _run(plan: Plan, batches: Batches | None) -> Iterator[Event]:
    started = time.perf_counter()
    with contextlib.suppress(RuntimeError, MemoryError):  # no room for a thread: then without it
        threading.Thread(target=_read_ahead, args=(plan,), daemon=True).start()
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


def _read_ahead(plan: Plan) -> None:
    """Has the system fetch the weights' files into its cache while libraries are imported; they count as nobody's.

    A help, not a must: whatever stops it, loading reads the files all the same.
    """
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:  # not Linux
        return
    for file in dict.fromkeys(file for part in plan.model.components.values() for file in part.files):
        with contextlib.suppress(OSError, MemoryError), open(file, "rb") as stream:
            advise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _studio(plan: Plan) -> Any:
    with _seldom_collecting():
        from sdcli.draw import quiet

        quiet.hush()
        import torch

        from sdcli.draw import load
        from sdcli.draw.studio import Studio

        _start_threads(plan.setup.threads, torch)
        _keep_within(plan, torch)
        for name in load.CLASSES.keys() & plan.model.components.keys():
            load.kind_of(name)  # here, so that what importing takes is told apart from what loading takes
    return Studio(plan)


@contextlib.contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Libraries leave 400,000 objects that stay for good. Searching them for garbage again and again takes a tenth of
    the imports' time, and once more whenever memory is given back."""
    if "diffusers" in sys.modules:  # what is here by now is the caller's
        yield
        return
    before = gc.get_threshold()
    gc.set_threshold(50_000, 1000, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.freeze()


def _start_threads(count: int, torch: Any) -> None:
    """OpenMP ends the whole process where it finds no room for a thread, so Python's threads try it first; OpenMP's,
    started at once, then take over their stacks."""
    go = threading.Event()
    tried = [threading.Thread(target=go.wait, daemon=True) for _ in range(count - 1)]
    try:
        for thread in tried:
            thread.start()
    finally:
        go.set()
    for thread in tried:
        thread.join()
    torch.set_num_threads(count)
    torch.zeros(count << 16).add_(1)


def _keep_within(plan: Plan, torch: Any) -> None:
    """--max-vram holds for what is allocated too: beyond it torch reports out of memory, and the ladder goes on."""
    device = torch.device(plan.setup.device)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(share_of(plan.request.max_vram, total), device)


def share_of(limit: int | None, total: int) -> float:
    """Of a card's memory, for torch's allocator: the limit without what the context takes outside of it."""
    if limit is None or total <= 0:
        return 1.0
    return min(1.0, max(0, limit - CUDA_CONTEXT) / total)


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
