"""The engine: a plan in, events out, drawn by torch on this machine. Nothing heavy is imported before it runs."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from sdcli.draw.exhausted import exhausted
from sdcli.draw.oom import first_line, is_out_of_memory
from sdcli.errors import Bug, DeviceUnusable
from sdcli.events import Done, Event, Timed
from sdcli.machine import memory
from sdcli.machine.environment import environment
from sdcli.machine.hardware import Hardware, Probe
from sdcli.plan.batches import Batch
from sdcli.plan.calibration import CUDA_CONTEXT
from sdcli.plan.legality import legal
from sdcli.plan.plan import Plan
from sdcli.terminal import show


class Engine:
    """Draws plans one after another. What is loaded stays while model and setup do; `close` gives it back, and leaves
    the process as it was."""

    def __init__(self) -> None:
        self._session: Any = None
        self._undo = contextlib.ExitStack()
        self._started = False

    def run(self, plan: Plan, batches: Iterable[Batch] | None = None) -> Iterator[Event]:
        """`batches` are the plan's own if not given; a list is looked ahead into, an iterator is not.

        Closing the generator keeps what is loaded; a failure, or an interrupt raised in it, gives all memory back. What
        was yielded is the caller's.
        """
        try:
            yield from self._run(plan, batches)
        except GeneratorExit:
            raise
        except BaseException as error:
            self._give_back()
            # where no way down exists: imports, the start of a device
            if not isinstance(error, Exception) or not is_out_of_memory(error):
                raise
            raise exhausted(plan, "while starting", first_line(error)) from error

    def close(self) -> None:
        self._give_back()
        self._undo.close()
        self._started = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def without_own(self, hardware: Hardware) -> Hardware:
        """The machine as the next plan should see it: what this engine holds is given back before that plan loads."""
        if self._session is None:
            return hardware
        host = memory.resident() or 0
        device = host if hardware.kind == "cpu" else self._session.meter.held() + _context(hardware)
        return replace(
            hardware,
            free=min(hardware.total, hardware.free + device),
            ram_free=min(hardware.ram_total, hardware.ram_free + host),
        )

    def _run(self, plan: Plan, batches: Iterable[Batch] | None) -> Iterator[Event]:
        reason = legal(plan.setup, plan.hardware, plan.model)
        if reason is not None:
            raise Bug(f"the plan's setup cannot be: {reason}")
        started = time.perf_counter()
        run = self._ready(plan)
        yield Timed(phase="import", seconds=time.perf_counter() - started)
        yield self._session.meter.read("import")
        yield from run.load()
        yield from run.draw(plan.numbered() if batches is None else batches)
        yield Done(environment=environment(plan.hardware) | {"threads": plan.setup.threads, "isa": plan.setup.isa})

    def _ready(self, plan: Plan) -> Any:
        """The libraries, the device and a session that serves this plan."""
        if self._session is not None and not self._session.serves(plan):
            self._give_back()
        if not self._started:
            with contextlib.suppress(RuntimeError, MemoryError):  # no room for a thread: then without it
                threading.Thread(target=_read_ahead, args=(plan,), daemon=True).start()
            # stdout is for results: a library that cannot be imported whole may print there
            with _seldom_collecting(self._undo), contextlib.redirect_stdout(io.StringIO()):
                self._import(plan)
            self._started = True
        import torch

        from sdcli.draw.run import Run
        from sdcli.draw.session import Session

        _set_threads(plan.setup.threads, torch)
        _keep_within(plan, torch)
        if self._session is None:
            self._session = Session(plan.model, plan.setup)
        return Run(self._session, plan)

    def _import(self, plan: Plan) -> None:
        from sdcli.draw import quiet

        self._undo.enter_context(quiet.hushed())
        import torch

        from sdcli.draw import load

        self._undo.callback(torch.set_num_threads, torch.get_num_threads())
        if plan.setup.device.startswith("cuda"):
            _refuse_another_card(plan.hardware, torch)
            self._undo.callback(torch.cuda.set_per_process_memory_fraction, 1.0, torch.device(plan.setup.device))
        _start_threads(plan.setup.threads, torch)
        for name in load.MODULES.keys() & plan.model.components.keys():
            load.kind_of(name)  # here, so that what importing takes is told apart from what loading takes

    def _give_back(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


def run(plan: Plan, batches: Iterable[Batch] | None = None) -> Iterator[Event]:
    """One plan by an engine of its own: closing the generator gives all memory back too."""
    with Engine() as engine:
        yield from engine.run(plan, batches)


def probe(device: str, threads: int) -> Probe:
    """Which number types this device computes rightly and fast: at most a second, torch's import apart."""
    from sdcli.draw import probe

    return probe.probe(device, threads)


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


@contextlib.contextmanager
def _seldom_collecting(undo: contextlib.ExitStack) -> Iterator[None]:
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
        undo.callback(gc.unfreeze)


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
    _set_threads(count, torch)
    torch.zeros(count << 16).add_(1)


def _set_threads(count: int, torch: Any) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def _refuse_another_card(hardware: Hardware, torch: Any) -> None:
    """CUDA's own order of unlike cards is a guess of ours; the plan's memory and rates are those of one of them."""
    found = str(getattr(torch.cuda.get_device_properties(hardware.device), "uuid", "") or "")
    if is_another_card(hardware.uuid, found):
        raise DeviceUnusable(
            f"{hardware.device} is not the {show(hardware.name, 60)} that the plan was made for: CUDA counts the cards "
            "in another order",
            hint="CUDA_DEVICE_ORDER=PCI_BUS_ID in front of the same command",
        )


def is_another_card(planned: str | None, found: str) -> bool:
    """By their UUIDs, as the driver's library and CUDA spell them. CUDA does not tell that of a slice of a card."""
    if not planned or not planned.startswith("GPU-") or not found:
        return False
    return planned.removeprefix("GPU-").casefold() != found.removeprefix("GPU-").casefold()


def _context(hardware: Hardware) -> int:
    return CUDA_CONTEXT if hardware.kind == "cuda" else 0


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


def best_rate(plan: Plan) -> float:
    """The most operations a second this device reaches in the plan's dtype, tried now for a second or two."""
    from sdcli.draw import rate

    return rate.best(plan.setup.dtype, plan.setup.device)


def busy() -> Any:
    """A block whose `seconds` are those a card's kernels ran within it."""
    from sdcli.draw import rate

    return rate.Busy()
