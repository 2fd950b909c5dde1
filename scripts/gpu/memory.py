"""Device memory: every choice that decides about it, then what the planner chooses under caps, each drawn in a process
of its own, predicted beside measured. The chief ones are also drawn on a pretend GPU, to see how far off its count is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

from scripts.gpu.lab import Ended, Lab, Piece, Row
from scripts.measure_memory import GIB, GOAL, MIB, gib, setup_text
from sdcli.errors import DoesNotFit

STEPS, COUNTED_STEPS = 8, 3  # three: as many as a sampler remembers, and one
COUNTED_SECONDS = 60.0
SHAPES = (("sdxl", 1024), ("sd15", 512), ("sd15", 768))
CHIEF = (("sd15", 512), ("sdxl", 1024))
CAPS = (2, 3, 4, 6, 8, 12, 24)  # GiB
STREAMED = 1.25  # times the slower of computing and moving
PHASES = ("load", "encode", "denoise", "decode")
DRAWN = (0, 5)  # random weights may draw one flat colour: suspect, but drawn


@dataclass(frozen=True)
class Case:
    """One run: pinned choices, or a cap under which the planner decides."""

    family: str
    side: int
    pins: tuple[str, ...] = ()
    cap: int | None = None  # GiB
    counted: bool = False  # on a pretend GPU too

    @property
    def shape(self) -> str:
        return f"{self.family}-{self.side}"

    @property
    def name(self) -> str:
        """`sdxl-1024 model-offload fp8 tile-512`, `sd15-768 under 4 GiB`"""
        if self.cap is not None:
            return f"{self.shape} under {self.cap} GiB"
        return " ".join([self.shape, *[pin.split("=")[1] for pin in self.pins]])

    def words(self, lab: Lab, steps: int = STEPS) -> tuple[str, ...]:
        # a graph has memory of its own, and whether it pays depends on the steps, of which fewer are counted
        pinned = self.pins if self.cap is not None else (*self.pins, "execution=eager")
        side, pins = lab.side(self.side), [word for pin in pinned for word in ("--pin", pin)]
        return (
            "sdcli", "generate", "a cat", "-m", str(lab.model(self.family)), "--size", f"{side}x{side}",
            "-s", str(steps), "--seed", "1", "--device", "cuda", "--json", "--no-show", "--no-fallback", *pins,
            *(("--max-vram", f"{self.cap}GiB") if self.cap is not None else ()),
        )  # fmt: skip


def cases() -> tuple[Case, ...]:
    """The most important ones first."""
    counted = [Case(*shape, pins, counted=True) for shape in CHIEF for pins in chief(shape[1])]
    names = {case.name for case in counted}
    rest: list[Case] = []
    for shape in SHAPES:
        rest += [Case(*shape, pins) for pins in (*chief(shape[1]), *others(shape[1]))]
        rest += [Case(*shape, cap=cap) for cap in CAPS]
    return (*counted, *[case for case in rest if case.name not in names])


def chief(side: int) -> tuple[tuple[str, ...], ...]:
    resident = "placement=resident"
    return (
        *[(f"placement={place}",) for place in ("resident", "drop-encoders", "model-offload", "group-offload")],
        (resident, _tiles(side)), (resident, "dtype=bf16"), (resident, "storage=fp8"),
    )  # fmt: skip


def others(side: int) -> tuple[tuple[str, ...], ...]:
    return (
        ("placement=disk",),
        ("placement=resident", "guidance=in-turn"),
        ("placement=group-offload", _tiles(side)),
        ("placement=model-offload", "storage=fp8", _tiles(side)),
        ("placement=drop-encoders", "vae=cpu", "vae-dtype=fp32"),
    )


def _tiles(side: int) -> str:
    """Of a size that splits the image."""
    return f"vae=tile-{512 if side > 512 else 256}"


GOALS = {  # the most reserved, in GiB
    "sdxl-1024 resident": 8.9,
    "sdxl-1024 model-offload": 5.4,
    "sdxl-1024 model-offload fp8 tile-512": 3.3,
    "sdxl-1024 group-offload tile-512": 1.6,
    "sd15-512 resident": 2.6,
    "sd15-512 group-offload": 0.9,
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one case took. Bytes, by phase too: predicted, the most the allocator had reserved, and the same counted on
    the pretend GPU."""

    name: str
    exit: int = 0
    refused: bool = False  # the plan says that it does not fit
    setup: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    predicted: int | None = None
    predicted_phases: dict[str, int] = field(default_factory=dict)
    reserved: int | None = None
    reserved_phases: dict[str, int | None] = field(default_factory=dict)
    allocated: int | None = None
    driver: int | None = None  # taken on the whole GPU, other programs and the context included
    host_predicted: int | None = None
    host: int | None = None
    imports: int | None = None  # what the process used before any weights
    step_seconds: tuple[float, ...] = ()
    unet_bytes: int | None = None
    degraded: int = 0
    message: str = ""
    counted_phases: dict[str, int | None] = field(default_factory=dict)
    counted_allocated: int | None = None
    uncounted: str = ""  # why it was not

    @property
    def error(self) -> float | None:
        if self.predicted is None or not self.reserved:
            return None
        return (self.predicted - self.reserved) / self.reserved

    @property
    def step(self) -> float | None:
        """The median without the first one, which warms up."""
        return median(self.step_seconds[1:]) if len(self.step_seconds) > 1 else None


def pieces() -> tuple[list[Piece], list[Piece]]:
    """Those that are counted too, and the others."""
    made = [(case, Piece(case.name, 30, partial(_found, case))) for case in cases()]
    return [piece for case, piece in made if case.counted], [piece for case, piece in made if not case.counted]


def _found(case: Case, lab: Lab) -> dict[str, Any]:
    return asdict(run(case, lab))


def results(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Result]:
    known = [found[case.name] for case in cases() if case.name in found]
    return {one["name"]: Result(**{**one, "step_seconds": tuple(one["step_seconds"])}) for one in known}


# --- one case


def run(case: Case, lab: Lab) -> Result:
    words, few = case.words(lab), case.words(lab, COUNTED_STEPS)
    if not case.counted:
        return drawn(case, lab.run(*words))
    with ThreadPoolExecutor(1) as beside:
        counting = beside.submit(lab.run, *few, counting=True, longest=COUNTED_SECONDS)
        return with_count(drawn(case, lab.run(*words)), drawn(case, counting.result()))


def drawn(case: Case, ended: Ended) -> Result:
    if ended.exit not in DRAWN:
        refused = ended.error.get("type") == DoesNotFit.__name__
        return Result(name=case.name, exit=ended.exit, refused=refused, message=ended.error["message"])
    return result(case.name, json.loads(ended.out))


def result(name: str, report: Mapping[str, Any]) -> Result:
    taken = report["memory"]["measured"]
    phases = {phase["name"]: phase["device_peak"] for phase in report["phases"]}
    return replace(
        planned(name, report["plan"]),
        reserved=taken["reserved_peak"], reserved_phases={name: phases.get(name) for name in PHASES},
        allocated=taken["allocated_peak"], driver=taken["driver_peak"], host=taken["host_peak"],
        imports=taken["host_before_load"], step_seconds=tuple(report["batches"][0]["step_seconds"]),
        degraded=len(report["degraded"]),
    )  # fmt: skip


def planned(name: str, plan: Mapping[str, Any]) -> Result:
    unet = plan["model"]["components"]["unet"]
    wide = 1 if plan["setup"]["storage"] == "fp8" else 4 if plan["setup"]["dtype"] == "fp32" else 2
    return Result(
        name=name, setup=plan["setup"], hardware=plan["hardware"], predicted=plan["footprint"]["device_peak"],
        predicted_phases={phase["name"]: phase["device"] for phase in plan["footprint"]["phases"]},
        host_predicted=plan["footprint"]["host_peak"], unet_bytes=unet["parameters"] * wide,
    )  # fmt: skip


def with_count(real: Result, count: Result) -> Result:
    if real.message or count.message:
        return replace(real, uncounted=count.message)
    if count.setup != real.setup:
        return replace(real, uncounted=f"drawn otherwise: {setup_text(count.setup)}")
    return replace(real, counted_phases=count.reserved_phases, counted_allocated=count.allocated)


# --- what came of it


def verdicts(results: Mapping[str, Result], rate: float | None) -> list[Row]:
    rows: list[Row] = []
    for name, most in GOALS.items():
        peak = results[name].reserved if name in results else None
        holds = None if peak is None else peak <= most * GIB
        rows.append((name, "not run" if peak is None else f"{gib(peak)} GiB", f"≤ {most} GiB", holds))
    rows += [streaming(results, f"{family}-{side}", rate) for family, side in SHAPES]
    measured = [one for one in results.values() if one.error is not None]
    near = sum(abs(one.error or 0.0) <= GOAL for one in measured)
    seen = f"{near} of {len(measured)} runs" if measured else "not run"
    rows.append(("predicted against reserved", seen, "all within 10 %", near == len(measured) if measured else None))
    return [*rows, obeyed(measured)]


def streaming(results: Mapping[str, Result], shape: str, rate: float | None) -> Row:
    """A streamed step against the slower of computing it and moving the UNet once."""
    streamed, resident = results.get(f"{shape} group-offload"), results.get(f"{shape} resident")
    what = f"{shape}, a streamed step"
    if streamed is None or resident is None or not (streamed.step and resident.step and rate):
        return what, "not run", f"≤ {STREAMED} × max(resident, moving)", None
    moving = (streamed.unet_bytes or 0) / rate
    seen = f"{streamed.step * 1000:.0f} ms; resident {resident.step * 1000:.0f}, moving {moving * 1000:.0f}"
    most = STREAMED * max(resident.step, moving)
    return what, seen, f"≤ {most * 1000:.0f} ms", streamed.step <= most


def obeyed(measured: Iterable[Result]) -> Row:
    """A cap holds for what the allocator reserved, with the context's share on top."""
    from sdcli.plan.calibration import CUDA_CONTEXT

    over = []
    capped = [one for one in measured if " under " in one.name]
    for one in capped:
        cap = int(one.name.split(" under ")[1].split()[0]) * GIB
        if (one.reserved or 0) > cap - CUDA_CONTEXT or one.degraded:
            over.append(one.name)
    if not capped:
        return "caps obeyed at the first try", "not run", "all", None
    return "caps obeyed at the first try", f"{len(capped) - len(over)} of {len(capped)}", "all", not over


def page(results: Mapping[str, Result]) -> list[str]:
    """Sections of the page."""
    return [
        "## Memory",
        "",
        f"Peak that torch's allocator had reserved, with random weights, {STEPS} steps and a decode, each in its own "
        f"process; the CUDA context comes on top. {len(results)} of {len(cases())} runs.",
        "",
        "| run | setup | predicted GiB | reserved GiB | difference | step ms | host predicted / measured GiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *map(_row, results.values()),
        "",
        "## The pretend GPU's count",
        "",
        "What `tests/pretend_gpu/` counts for the same run in MiB, and how far that is from the GPU's own figure: "
        "reserved by phase, and the most allocated.",
        "",
        f"| | {' | '.join(PHASES)} | allocated |",
        "| --- |" + " ---: |" * 5,
        *[_counted(one) for one in results.values() if one.uncounted or one.counted_phases],
        "",
    ]


def _counted(one: Result) -> str:
    if one.uncounted:
        return f"| {one.name} | not counted: {_cell(one.uncounted)} | | | | |"
    pairs = [(one.counted_phases[name], one.reserved_phases[name]) for name in PHASES]
    cells = [_difference(*pair) for pair in (*pairs, (one.counted_allocated, one.allocated))]
    return f"| {one.name} | {' | '.join(cells)} |"


def _difference(counted: int | None, real: int | None) -> str:
    if counted is None or real is None:
        return "–"
    share = f" ({(counted - real) / real:+.1%})" if real else ""
    return f"{counted / MIB:,.0f}: {(counted - real) / MIB:+,.0f}{share}"


def _row(one: Result) -> str:
    if one.exit:
        return f"| {one.name} | exit {one.exit}: {_cell(one.message)} | | | | | |"
    error = f"{one.error:+.1%}" if one.error is not None else "–"
    step = f"{one.step * 1000:.0f}" if one.step else "–"
    host = f"{gib(one.host_predicted)} / {gib(one.host)}"
    peaks = f"{gib(one.predicted)} | {gib(one.reserved)}"
    return f"| {one.name} | {setup_text(one.setup)} | {peaks} | {error} | {step} | {host} |"


def _cell(text: str) -> str:
    return text.replace("|", "/")


# --- a record against today's forecast


def check(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """(run, predicted now, reserved then) of every measured run of a record."""
    return [(one.name, predicted_now(one), one.reserved) for one in results(found).values() if one.reserved is not None]


def predicted_now(one: Result) -> int:
    from sdcli import schema
    from sdcli.machine.hardware import Hardware
    from sdcli.models import resolve
    from sdcli.plan.footprint import footprint
    from sdcli.plan.plan import Setup
    from sdcli.plan.stages import Shape

    family, side = one.name.split()[0].split("-")
    setup, hardware = schema.from_json(Setup, one.setup), schema.from_json(Hardware, one.hardware)
    shape = Shape(width=int(side), height=int(side))
    return footprint(resolve.resolve(family), shape, setup, hardware).device_peak
