"""The engine: a plan goes in, events come out, torch draws on this machine. Heavy imports wait until it runs."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdcli.draw.exhausted import exhausted
from sdcli.draw.oom import first_line, is_out_of_memory
from sdcli.errors import Bug, DeviceUnusable
from sdcli.events import Done, Event, Timed
from sdcli.machine import memory, packages, processor
from sdcli.machine.environment import environment
from sdcli.machine.hardware import Hardware, Probe, Trial
from sdcli.plan.batches import Batch
from sdcli.plan.calibration import context
from sdcli.plan.legality import legal
from sdcli.plan.plan import Plan
from sdcli.plan.processes import Division
from sdcli.plan.upscaling import UpscalePlan
from sdcli.plan.workload import Workload
from sdcli.terminal import show


class Engine:
    """Draws plans one after another. What is loaded stays while model and setup do; `close` frees it and restores the
    process's settings."""

    def __init__(self) -> None:
        self._session: Any = None
        self._undo = contextlib.ExitStack()
        self._started = False

    def run(
        self, plan: Plan, batches: Iterable[Batch] | None = None, kept: Mapping[int, bytes] | None = None
    ) -> Iterator[Event]:
        """`batches` are the plan's if not given; a list is looked ahead into, an iterator is not.

        Closing the generator keeps what is loaded; a failure, or an interrupt raised in it, frees all memory. What was
        yielded belongs to the caller.
        """
        try:
            yield from self._run(plan, batches, kept or {})
        except GeneratorExit:
            raise
        except BaseException as error:
            self._release()
            # there is no fallback for imports and the start of a device
            if not isinstance(error, Exception) or not is_out_of_memory(error):
                raise
            raise exhausted(plan, "while starting", first_line(error)) from error

    def close(self) -> None:
        self._release()
        self._undo.close()
        self._started = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def without_own(self, hardware: Hardware) -> Hardware:
        """The hardware as the next plan should see it: this engine's memory is freed before that plan loads."""
        if self._session is None:
            return hardware
        host = memory.resident() or 0
        device = host if hardware.kind == "cpu" else self._session.meter.reserved() + context(hardware.backend)
        return replace(
            hardware,
            free=min(hardware.total, hardware.free + device),
            ram_free=min(hardware.ram_total, hardware.ram_free + host),
        )

    def _run(self, plan: Plan, batches: Iterable[Batch] | None, kept: Mapping[int, bytes]) -> Iterator[Event]:
        reason = legal(plan.setup, plan.hardware, plan.model)
        if reason is not None:
            raise Bug(f"the plan's setup is not legal: {reason}")
        started = time.perf_counter()
        run = self._ready(plan, kept)
        yield Timed(phase="import", seconds=time.perf_counter() - started)
        yield self._session.meter.read("import")
        yield from run.load()
        yield from run.draw(plan.numbered() if batches is None else batches)
        yield Done(environment=_surroundings(plan))

    def _ready(self, plan: Plan, kept: Mapping[int, bytes]) -> Any:
        """Prepares the libraries, the device and a session for this plan."""
        if self._session is not None and not self._session.serves(plan):
            self._release()
        if not self._started:
            with settled(plan.setup.threads):
                with contextlib.suppress(RuntimeError, MemoryError):  # no memory for a thread: do without it
                    threading.Thread(target=_read_ahead, args=(plan,), daemon=True).start()
                # stdout is for results: a library that fails to import may print there
                with _fewer_collections(self._undo), contextlib.redirect_stdout(io.StringIO()):
                    self._import(plan)
            self._started = True
        import torch

        from sdcli.draw.run import Run
        from sdcli.draw.session import Session

        _set_threads(plan.setup.threads, torch)
        _keep_within(plan)
        if self._session is None:
            self._session = Session(plan.model, plan.setup)
        return Run(self._session, plan, kept)

    def _import(self, plan: Plan) -> None:
        from sdcli.draw import quiet

        self._undo.enter_context(quiet.libraries_silenced())
        import torch

        from sdcli.draw import devices, load

        self._undo.callback(torch.set_num_threads, torch.get_num_threads())
        if plan.hardware.uuid is not None:
            _refuse_another_gpu(plan.hardware, torch)
        self._undo.callback(devices.functions(plan.setup.device).keep_within, 1.0)
        _start_threads(plan.setup.threads, torch)
        for name in load.MODULES.keys() & plan.model.components.keys():
            load.kind_of(name)  # here, so that its time counts as importing, not loading
        if plan.setup.execution == "openvino":
            from sdcli.draw import graphs

            graphs.openvino()

    def _release(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


def run(plan: Plan, batches: Iterable[Batch] | None = None) -> Iterator[Event]:
    """Draws one plan with a new engine: closing the generator frees all memory too."""
    with Engine() as engine:
        yield from engine.run(plan, batches)


def enlarge(plan: UpscalePlan) -> Iterator[Event]:
    """Images enlarged by a model of their own. Closing the generator frees all memory."""
    started = time.perf_counter()
    with settled(plan.setup.threads):
        import torch

        from sdcli.draw import devices, enlarging
    with contextlib.ExitStack() as undo:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        if plan.hardware.uuid is not None:
            _refuse_another_gpu(plan.hardware, torch)
        device = devices.functions(plan.setup.device)
        undo.callback(device.keep_within, 1.0)
        _start_threads(plan.setup.threads, torch)
        device.keep_within(share_of(plan.max_vram, device.total(), context(plan.hardware.backend)))
        yield Timed(phase="import", seconds=time.perf_counter() - started)
        yield from enlarging.run(plan)
        yield Done(environment=environment(plan.hardware) | {"threads": plan.setup.threads, "isa": plan.setup.isa})


def probe(device: str, threads: int) -> Probe:
    """Which dtypes this device computes correctly and fast: takes at most a second after torch's import."""
    with settled(threads):
        from sdcli.draw import probe

    return probe.probe(device, threads)


def side_by_side(work: Workload, dtype: str, divisions: Sequence[Division]) -> Mapping[Division, float]:
    """UNet calls a second of each division of this CPU's threads among processes."""
    from sdcli.draw import side_by_side

    return side_by_side.calls(work, dtype, divisions)


def tried(plan: Plan, work: Workload, dtype: str, sides: int = 1) -> Trial:
    """How long this CPU takes for a model's layers in each of the ways there are: at most two seconds after torch's
    import. `plan` is what is to be drawn; `sides` of guidance are in the work."""
    threads, fast = plan.hardware.threads, plan.hardware.fast_threads
    try:
        with settled(threads):
            import torch

        from sdcli.draw import trial

        with contextlib.ExitStack() as undo:
            undo.callback(torch.set_num_threads, torch.get_num_threads())
            _start_threads(threads, torch)
            return trial.tried(work, dtype, (threads, fast) if fast else (), sides)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        because = first_line(error)
    # only here, after the except block, does nothing hold the failed import's memory any more
    raise exhausted(plan, "while starting", because)


def _surroundings(plan: Plan) -> dict[str, Any]:
    found = environment(plan.hardware) | {"threads": plan.setup.threads, "isa": plan.setup.isa}
    if plan.setup.execution == "openvino":
        found |= {version.name: version.version for version in packages.versions(("openvino",))}
    return found


# How often a thread looks before it sleeps until the others are done. With OpenMP's own, ten times as many, a step
# takes twice the fair share or more once other programs want the cores: what waits keeps off a core what it waits for.
# Measured on two cores: these lose nothing alone; 0 loses 8 % with SD 1.5 and half with the built-in model, but is
# best beside others.
SPINS = 30_000
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@contextlib.contextmanager
def settled(threads: int) -> Iterator[None]:
    """Within, torch is imported: its OpenMP reads from the environment, this once, how its threads wait. A user's own
    settings stand; programs that are started later look for themselves."""
    if "torch" in sys.modules or any(name in os.environ for name in _WAITING):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = str(0 if processor.busy(threads) else SPINS)
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def _read_ahead(plan: Plan) -> None:
    """Has the system read the weight files into its cache while libraries are imported.

    Optional: if it fails, loading reads the files anyway.
    """
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:  # not Linux
        return
    for file in dict.fromkeys(file for part in plan.model.components.values() for file in part.files):
        with contextlib.suppress(OSError, MemoryError), open(file, "rb") as stream:
            advise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


@contextlib.contextmanager
def _fewer_collections(undo: contextlib.ExitStack) -> Iterator[None]:
    """Libraries create 400,000 permanent objects. Searching them for garbage takes a tenth of the imports' time, and
    more whenever memory is freed."""
    if "diffusers" in sys.modules:  # objects that exist by now are the caller's
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
    """OpenMP ends the whole process if it cannot start a thread, so Python's threads try first; OpenMP's, started right
    after, take over their stacks."""
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(count - 1)]
    try:
        for thread in threads:
            thread.start()
    finally:
        done.set()
    for thread in threads:
        thread.join()
    _set_threads(count, torch)
    torch.zeros(count << 16).add_(1)


def _set_threads(count: int, torch: Any) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def _refuse_another_gpu(hardware: Hardware, torch: Any) -> None:
    """CUDA's order of unlike GPUs is guessed, and the plan's memory and rates hold for one of them only."""
    uuid = str(getattr(torch.cuda.get_device_properties(hardware.device), "uuid", "") or "")
    if is_another_gpu(hardware.uuid, uuid):
        raise DeviceUnusable(
            f"{hardware.device} is not the {show(hardware.name, 60)} that the plan was made for: CUDA numbers the GPUs "
            "differently",
            hint="CUDA_DEVICE_ORDER=PCI_BUS_ID in front of the same command",
        )


def is_another_gpu(planned: str | None, actual: str) -> bool:
    """Compares UUIDs as NVML and CUDA spell them. CUDA does not report a MIG slice's own UUID."""
    if not planned or not planned.startswith("GPU-") or not actual:
        return False
    return planned.removeprefix("GPU-").casefold() != actual.removeprefix("GPU-").casefold()


def _keep_within(plan: Plan) -> None:
    """--max-vram caps torch's allocator too: beyond it torch reports out of memory, and the next fallback is tried."""
    from sdcli.draw import devices

    device = devices.functions(plan.setup.device)
    device.keep_within(share_of(plan.request.max_vram, device.total(), context(plan.hardware.backend)))


def share_of(limit: int | None, total: int, outside: int) -> float:
    """The allocator's share of a GPU's memory: the limit less the context, which is outside the allocator."""
    if limit is None or total <= 0:
        return 1.0
    return min(1.0, max(0, limit - outside) / total)


def sized(hardware: Hardware) -> Hardware:
    """With the name and the memory that only torch knows. Takes as long as torch's import."""
    from sdcli.draw import probe

    return probe.sized(hardware)


def best_rate(plan: Plan) -> float:
    """The most operations per second this device reaches in the plan's dtype, measured now in a second or two."""
    from sdcli.draw import rate

    return rate.best(plan.setup.dtype, plan.setup.device)


def busy() -> Any:
    """A context manager whose `seconds` are how long a GPU's kernels ran within it."""
    from sdcli.draw import rate

    return rate.Busy()
