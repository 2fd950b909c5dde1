"""Memory runs out at every heavy call, at every fallback, with every sampler: the image is drawn anyway, or exit 4.

The real engine draws on the CPU under plans made for a GPU, so that every placement has its fallback. Failures are the
exceptions that torch, cuDNN and cuBLAS raise, out of the modules' own calls.
"""

from __future__ import annotations

import functools
import gc
import itertools
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from scripts import make_checkpoint  # noqa: E402
from sdcli.draw import local, quiet, schedulers  # noqa: E402
from sdcli.errors import OutOfMemory  # noqa: E402
from sdcli.events import Decoded, Degraded, Step  # noqa: E402
from sdcli.machine.hardware import Hardware  # noqa: E402
from sdcli.models import resolve  # noqa: E402
from sdcli.plan.fallbacks import after_out_of_memory  # noqa: E402
from sdcli.plan.footprint import footprint  # noqa: E402
from sdcli.plan.plan import Fallback, Plan, Setup  # noqa: E402
from sdcli.plan.planner import make_plan  # noqa: E402
from sdcli.plan.stages import Shape  # noqa: E402
from sdcli.plan.techniques import TECHNIQUES  # noqa: E402
from sdcli.request.request import Request  # noqa: E402
from sdcli.request.samplers import SAMPLERS  # noqa: E402
from sdcli.sizes import GIB  # noqa: E402

NAME = "out_of_memory"
CLAIM = (
    "Memory runs out at every heavy call (encoders, every UNet call before and after scheduler.step, VAE) of tiny SD "
    "(× every sampler; × every fallback for each; × every fallback and placement for one) and SDXL (× every fallback; "
    "× every sampler and every placement at each kind of call). Each time the right fallback, nothing in memory at the "
    "retry, no step twice, identical pixels where the fallback moves none; or exit 4."
)

FAMILIES = ("sd15", "sdxl")
NAMES = tuple(sampler.name for sampler in SAMPLERS)
STEPS = 3
PLACEMENTS = ("", "resident", "drop-encoders", "model-offload", "group-offload", "disk")  # "": the planner's choice
PHASE_OF = {
    "load": "load", "text_encoder": "encode", "text_encoder_2": "encode", "before unet": "denoise",
    "after unet": "denoise", "after scheduler.step": "denoise", "vae": "decode",
}  # fmt: skip
LOADS_LATE = ("drop-encoders", "disk")  # the UNet comes when its turn comes
GPU = Hardware(
    device="cuda:0", name="a GPU", source="os", total=8 * GIB, free=8 * GIB, ram_total=64 * GIB, ram_free=64 * GIB,
    threads=1, capability="8.6", dtypes={"fp32": "probed", "bf16": "probed", "fp16": "probed"},
)  # fmt: skip


def _really(size: int = 1 << 50) -> None:
    torch.empty(size, dtype=torch.uint8, device="cpu")


def _raising(error: Callable[[], BaseException]) -> Callable[[], None]:
    def fail() -> None:
        raise error()

    return fail


FAILURES: dict[str, Callable[[], None]] = {
    "torch on CUDA": _raising(lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    "torch on a CPU": _really,
    "cuDNN": _raising(lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    "cuBLAS": _raising(
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    ),
    "MPS": _raising(lambda: RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB).")),
    "Python": _raising(MemoryError),
}


@dataclass(frozen=True)
class Case:
    """`times` attempts in a row fail at `point`, in the `call`th call of its kind."""

    family: str
    sampler: str = "Euler"
    placement: str = ""
    point: str = "before unet"
    call: int = 1
    times: int = 1
    failure: str = "torch on CUDA"
    fallback: bool = True


class Failing:
    """Fails as the case says, and keeps weak references to what the failed call had in memory."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.calls = 0
        self.failed = 0
        self.references: list[weakref.ref[Any]] = []

    def __call__(self, *things: Any) -> None:
        self.calls += 1
        if self.calls < self.case.call or self.failed == self.case.times:
            return
        self.failed += 1
        work = torch.ones(1000)  # what the call itself had made before it failed
        self.references += [weakref.ref(thing) for thing in (work, *things)]
        FAILURES[self.case.failure]()

    def alive(self) -> int:
        return sum(reference() is not None for reference in self.references)


@contextmanager
def failing(case: Case, plan: Plan) -> Iterator[Failing]:
    """torch's own hooks and the library's own functions; nothing of ours is replaced."""
    failure = Failing(case)
    kinds = {
        "text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection",
        "before unet": "UNet2DConditionModel", "after unet": "UNet2DConditionModel", "vae": "Decoder",
    }  # fmt: skip
    with ExitStack() as stack:
        if case.point == "load":
            stack.enter_context(_failing_memory(failure, plan))
        elif case.point == "after scheduler.step":
            stack.enter_context(_failing_scheduler(failure, case, plan))
        else:
            hooks = torch.nn.modules.module
            kind = kinds[case.point]

            def hook(module: Any, *_: Any) -> None:
                if type(module).__name__ == kind:
                    failure(module, next(module.parameters()))

            after = case.point == "after unet"
            register = hooks.register_module_forward_hook if after else hooks.register_module_forward_pre_hook
            stack.callback(register(hook).remove)
        yield failure


@contextmanager
def _failing_memory(failure: Failing, plan: Plan) -> Iterator[None]:
    """The UNet's last convolution finds no room: by then most of it is loaded."""
    config = plan.model.components["unet"].config
    last, real = (config["out_channels"], config["block_out_channels"][0], 3, 3), torch.empty

    def empty(*shape: Any, **given: Any) -> Any:
        sizes = tuple(shape[0]) if shape and isinstance(shape[0], (tuple, torch.Size)) else shape
        if sizes == last and torch.get_default_device().type != "meta":
            failure()
        return real(*shape, **given)

    with mock.patch.object(torch, "empty", empty):
        yield


@contextmanager
def _failing_scheduler(failure: Failing, case: Case, plan: Plan) -> Iterator[None]:
    """The step is taken, then memory runs out: the scheduler has moved on and must be set back."""
    kind = type(schedulers.make(case.sampler, plan.model.scheduler))
    real = kind.step

    @functools.wraps(real)
    def step(self: Any, *args: Any, **given: Any) -> Any:
        result = real(self, *args, **given)
        failure(result[0])
        return result

    with mock.patch.object(kind, "step", step):
        yield


# --- plans, and what must come of them


class Bench:
    """Tiny models, the images they draw undisturbed, and the cases judged."""

    def __init__(self, root: Path) -> None:
        self._silenced = quiet.libraries_silenced()
        self._silenced.__enter__()  # for as long as this process lives
        torch.set_num_threads(1)
        self.folders = {name: make_checkpoint.write_folder(root / name, name, tiny=True) for name in FAMILIES}
        self._images: dict[tuple[Any, ...], list[bytes]] = {}
        for family in FAMILIES:
            self.images(self.plan(family, "Euler"))
        gc.collect()
        gc.freeze()  # the libraries' million objects would be looked through at every fallback

    @functools.cache  # noqa: B019
    def plan(self, family: str, sampler: str, placement: str = "") -> Plan:
        """Of a GPU, its setups then moved to the CPU: two images."""
        pins = {"dtype": "fp32", "execution": "eager"} | ({"placement": placement} if placement else {})
        request = Request(
            prompts=("a cat",), seeds=(7, 8), steps=STEPS, guidance=5.0, width=64, height=64, sampler=sampler,
            num_images=2, pins=pins,
        )  # fmt: skip
        return on_the_cpu(make_plan(request, resolve.at(self.folders[family]), GPU, {}))

    def images(self, plan: Plan) -> list[bytes]:
        asked = plan.request
        key = (plan.model.path, plan.setup, asked.sampler, asked.seeds, asked.width)
        if key not in self._images:
            drawn = [event.pixels for event in local.run(plan) if isinstance(event, Decoded)]
            self._images[key] = drawn
        return self._images[key]

    def fallbacks(self, case: Case) -> list[Fallback]:
        """What the plan falls back to, one failure after the other."""
        plan = self.plan(case.family, case.sampler, case.placement)
        taken: list[Fallback] = []
        current = plan.setup
        if not case.fallback:
            return []
        while True:
            used = [plan.setup, *(fallback.setup for fallback in taken)]
            fallbacks = after_out_of_memory(plan, 0, current, phase_of(case, *used))
            following = next((fallback for fallback in fallbacks if fallback.setup not in used), None)
            if following is None:
                return taken
            taken.append(following)
            current = following.setup

    def wrong(self, case: Case) -> list[str]:
        """Everything that is not as it should be; empty where all holds."""
        plan = self.plan(case.family, case.sampler, case.placement)
        expected, fallbacks = self.images(plan), self.fallbacks(case)[: case.times]
        if not case.fallback:
            plan = replace(plan, request=replace(plan.request, fallback=False))
        seen: list[Any] = []
        mistakes: list[str] = []
        error: Exception | None = None
        with failing(case, plan) as failure:
            try:
                for event in local.run(plan):
                    seen.append(event)
                    if isinstance(event, Degraded) and failure.alive():
                        mistakes.append(f"{failure.alive()} things of the failed attempt in memory at the retry")
            except Exception as caught:
                error = caught
        if not failure.failed:
            return ["nothing failed"]
        mistakes += _fell(plan, [event for event in seen if isinstance(event, Degraded)], fallbacks, case)
        drawn = {event.index: event.pixels for event in seen if isinstance(event, Decoded)}
        for batch in (0, 1):  # none left out, none drawn a second time
            steps = [event.step for event in seen if isinstance(event, Step) and event.batch == batch]
            if steps != list(range(1, len(steps) + 1)) or (error is None and len(steps) != plan.jobs[0].unet_calls):
                mistakes.append(f"batch {batch}: steps {steps}")
        if len(fallbacks) < case.times:
            finished = _finished_before(plan, case)
            mistakes += _ended(error, case)
            if [drawn.get(index) for index in range(finished)] != expected[:finished] or len(drawn) != finished:
                mistakes.append(f"{finished} images were finished, {len(drawn)} came")
        elif error is not None:
            mistakes.append(f"{type(error).__name__}: {error}")
        else:
            mistakes += self._drawn(plan, drawn, expected, fallbacks, case)
        return mistakes

    def _drawn(
        self, plan: Plan, drawn: dict[int, bytes], expected: list[bytes], fallbacks: list[Fallback], case: Case
    ) -> list[str]:
        if sorted(drawn) != [0, 1]:
            return [f"images {sorted(drawn)}"]
        if not any(fallback.changes_pixels for fallback in fallbacks):
            return [] if [drawn[0], drawn[1]] == expected else ["pixels moved, but no fallback moves any"]
        if case.point == "vae":  # decoded as if it had been planned so
            smaller = self.images(replace(plan, setup=fallbacks[-1].setup))
            return [] if [drawn[0], drawn[1]] == smaller else ["not what the fallback draws"]
        return []


def phase_of(case: Case, *setups: Setup) -> str:
    """Where the next failure is met, after these setups in turn."""
    late = case.point == "load" and any(setup.placement in LOADS_LATE for setup in setups)
    return "denoise" if late else PHASE_OF[case.point]


def on_the_cpu(plan: Plan) -> Plan:
    """The same plan with every setup's device replaced by the one that is here."""

    def here(setup: Setup) -> Setup:
        return replace(setup, device="cpu")

    fallbacks = tuple(replace(fallback, setup=here(fallback.setup)) for fallback in plan.fallbacks)
    return replace(plan, setup=here(plan.setup), fallbacks=fallbacks)


def _fell(plan: Plan, events: list[Degraded], fallbacks: list[Fallback], case: Case) -> list[str]:
    """Each fallback once, as the plan has it, and each smaller than the one before."""
    mistakes: list[str] = []
    setups = [plan.setup, *(fallback.setup for fallback in fallbacks)]
    if len(events) != len(fallbacks):
        return [f"{len(events)} fallbacks taken, not {len(fallbacks)}"]
    for number, (event, fallback, before) in enumerate(zip(events, fallbacks, setups, strict=False)):
        phase = phase_of(case, *setups[: number + 1])
        moved = {t.slot: t.of(fallback.setup) for t in TECHNIQUES if t.of(fallback.setup) != t.of(before)}
        if dict(event.after) != moved or event.phase != phase or event.changes_pixels != fallback.changes_pixels:
            mistakes.append(f"{event.phase}: {dict(event.after)}, not {moved}")
        if _needs(plan, fallback.setup, phase) >= _needs(plan, before, phase):
            mistakes.append(f"{dict(event.after)} needs no less")
    return mistakes


def _needs(plan: Plan, setup: Setup, phase: str) -> int:
    shape = Shape(width=64, height=64)
    rows = footprint(plan.model, shape, setup, plan.hardware).phases
    return next(row.device for row in rows if row.name == phase)


def _finished_before(plan: Plan, case: Case) -> int:
    """Images done when the failing call comes."""
    each = {"denoise": plan.jobs[0].unet_calls, "decode": 1}.get(phase_of(case, plan.setup), case.call)
    return (case.call - 1) // each


def _ended(error: Exception | None, case: Case) -> list[str]:
    if not isinstance(error, OutOfMemory):
        return [f"ended with {type(error).__name__}: {error}"]
    mistakes = [] if error.code == 4 and error.hint else ["no exit 4 with a way out"]
    figures = " needed" in error.message and " free now" in error.message
    if not (figures and error.details.get("need") and error.details.get("free")):
        mistakes.append(f"no numbers: {error.message}")
    if not case.fallback and "--no-fallback" not in error.message:
        mistakes.append("--no-fallback is not named")
    return mistakes


# --- which cases


def points(family: str, sampler: str) -> list[tuple[str, int]]:
    """(point, call): every heavy call of the first image, and those of the second."""
    calls = next(one for one in SAMPLERS if one.name == sampler).unet_calls(STEPS)
    steps = range(1, 2 * calls + 1)
    encoders = ("text_encoder", "text_encoder_2") if family == "sdxl" else ("text_encoder",)
    return [
        ("load", 1),
        *[(name, 1) for name in encoders],
        *product(("before unet", "after unet", "after scheduler.step"), steps),
        ("vae", 1),
        ("vae", 2),
    ]


def everything(bench: Bench) -> Iterator[Case]:
    """On SD every call and every fallback with every sampler, and every call with every fallback and placement.

    SDXL differs only in its encoders and its conditioning: every call with every fallback, and every sampler and every
    placement with every kind of call.
    """
    for sampler in NAMES:
        for point, call in points("sd15", sampler):
            yield Case("sd15", sampler, "", point, call)
        for point in _kinds("sd15"):
            yield from _depths(bench, Case("sd15", sampler, "", point), beyond=1)
            yield Case("sd15", sampler, "", point, fallback=False)
    for placement, (point, call) in product(PLACEMENTS[1:], points("sd15", "DPM++ 2M SDE")):
        yield from _depths(bench, Case("sd15", "DPM++ 2M SDE", placement, point, call))
    for point, call in points("sdxl", "Euler"):
        yield from _depths(bench, Case("sdxl", "Euler", "", point, call))
    for sampler, point in product(NAMES, ("before unet", "after unet", "after scheduler.step")):
        yield Case("sdxl", sampler, "", point, 2)
    for point in _kinds("sdxl"):
        yield Case("sdxl", point=point, fallback=False)
        for placement in PLACEMENTS[1:]:
            yield Case("sdxl", "DPM++ 2M SDE", placement, point)


def covering(bench: Bench) -> Iterator[Case]:
    """Every kind of call to its last fallback (SDXL) and beyond (SD), every sampler and placement, not all with all."""
    for number, family in enumerate(FAMILIES):
        for point in _kinds(family):
            depth = len(bench.fallbacks(Case(family, point=point)))
            yield Case(family, point=point, times=max(1, depth + 1 - number))
        for sampler in NAMES[number :: len(FAMILIES)]:
            yield Case(family, sampler, "", ("before unet", "after unet", "after scheduler.step")[len(sampler) % 3], 2)
        for placement in PLACEMENTS[2 + number :: len(FAMILIES)]:
            yield Case(family, "DPM++ 2M SDE", placement, "before unet", STEPS + 1)
        yield Case(family, point="vae", call=2, fallback=False)


def _kinds(family: str) -> list[str]:
    return list(dict.fromkeys(point for point, _ in points(family, "Euler")))


def _depths(bench: Bench, first: Case, beyond: int = 0) -> Iterator[Case]:
    """The same call failing again and again, until no fallback is left."""
    for times in range(1 + beyond, len(bench.fallbacks(first)) + 2):
        yield replace(first, times=times)


def in_turn(cases: Iterable[Case]) -> Iterator[Case]:
    """Each failing in another part of the stack than the one before."""
    return (replace(case, failure=failure) for case, failure in zip(cases, itertools.cycle(FAILURES), strict=False))


def main() -> list[tuple[str, str, str, bool]]:
    rows: list[tuple[str, str, str, bool]] = []
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root))
        counts: dict[str, list[int]] = {}
        first: dict[str, str] = {}
        for case in in_turn(everything(bench)):
            count = counts.setdefault(case.point, [0, 0])
            count[0] += 1
            wrong = bench.wrong(case)
            if wrong:
                count[1] += 1
                first.setdefault(case.point, f"; first {case}: {wrong[0]}")
    for point, (tried, wrong_count) in counts.items():
        seen = f"{tried - wrong_count} of {tried}{first.get(point, '')}"
        rows.append((point, seen, "all", wrong_count == 0))
    return rows
