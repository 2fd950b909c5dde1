"""Device memory on an NVIDIA GPU, predicted beside measured: every choice once, then what is chosen under caps.

    python -m scripts.gpu_matrix --out FOLDER [--weights FOLDER] [--only TEXT …] [--limit-seconds 540] [--from FILE]
    python -m scripts.gpu_matrix --check docs/benchmarks/gpu-NAME.json
    python -m scripts.gpu_matrix --out FOLDER --dry

About 50 runs, each a process of its own, with random full-size weights that are made where it runs. Every finished run
is a line of FOLDER/gpu-matrix.jsonl, so that the same command continues where the last one stopped (--from takes the
lines of an earlier folder along). The table and the record are FOLDER/gpu-NAME.md and .json; `--check` holds today's
forecast against a record. --dry needs no GPU: forecasts for one that is not there, tiny models drawn on the CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from scripts.measure_memory import GIB, GOAL, ROOT, environment, gib, setup_text, weights

SCHEMA = "sdcli.gpu-matrix/1"
LINES = "gpu-matrix.jsonl"
STEPS = 8
SHAPES = (("sd15", 512), ("sd15", 768), ("sdxl", 1024))
CAPS = (2, 3, 4, 6, 8, 12, 24)  # GiB
STREAMED = 1.25  # times the slower of computing and moving
DRY_GPU = "cuda:80GiB,ram:64GiB"
PHASES = ("load", "encode", "denoise", "decode")
ON_A_CPU = {"placement": ("resident", "drop-encoders", "disk"), "vae": ("whole", "tile-512", "tile-256")}


@dataclass(frozen=True)
class Case:
    """One run: pinned choices, or a cap under which the planner decides."""

    family: str
    side: int
    pins: tuple[str, ...] = ()
    cap: int | None = None  # GiB

    @property
    def shape(self) -> str:
        return f"{self.family}-{self.side}"

    @property
    def name(self) -> str:
        """`sdxl-1024 model-offload fp8 tile-512`, `sd15-768 under 4 GiB`"""
        if self.cap is not None:
            return f"{self.shape} under {self.cap} GiB"
        return " ".join([self.shape, *[pin.split("=")[1] for pin in self.pins]])

    @property
    def typed(self) -> dict[str, Any]:
        """What a person would type, by the names of the options."""
        limit = {"max_vram": f"{self.cap}GiB"} if self.cap is not None else {}
        size = f"{self.side}x{self.side}"
        return {"words": ("a cat",), "size": size, "steps": str(STEPS), "seeds": "1", "pins": list(self.pins), **limit}


def cases() -> tuple[Case, ...]:
    pinned_cases = [Case(family, side, pins) for family, side in SHAPES for pins in pinned(side)]
    return (*pinned_cases, *[Case(family, side, cap=cap) for family, side in SHAPES for cap in CAPS])


def pinned(side: int) -> tuple[tuple[str, ...], ...]:
    """Every choice that decides about memory, once; tiles of a size that splits the image."""
    tiles = f"vae=tile-{512 if side > 512 else 256}"
    places = ("resident", "drop-encoders", "model-offload", "group-offload", "disk")
    return (
        *[(f"placement={place}",) for place in places],
        ("placement=resident", "guidance=in-turn"),
        ("placement=group-offload", tiles),
        ("placement=resident", "storage=fp8"),
        ("placement=model-offload", "storage=fp8", tiles),
        ("placement=drop-encoders", "vae=cpu", "vae-dtype=fp32"),
    )


@dataclass(frozen=True)
class Goal:
    case: str
    most: float  # GiB


GOALS = (
    Goal("sdxl-1024 resident", 8.9),
    Goal("sdxl-1024 model-offload", 5.4),
    Goal("sdxl-1024 model-offload fp8 tile-512", 3.3),
    Goal("sdxl-1024 group-offload tile-512", 1.6),
    Goal("sd15-512 resident", 2.6),
    Goal("sd15-512 group-offload", 0.9),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one case took. Bytes, by phase too: predicted, and the most the allocator had reserved (null: dry)."""

    name: str
    exit: int  # 4: refused, nothing fits
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
    seconds: float = 0.0
    degraded: int = 0
    message: str = ""

    @property
    def error(self) -> float | None:
        if self.predicted is None or not self.reserved:
            return None
        return (self.predicted - self.reserved) / self.reserved

    @property
    def step(self) -> float | None:
        """The median without the first one, which warms up."""
        return median(self.step_seconds[1:]) if len(self.step_seconds) > 1 else None


# One case


def run(case: Case, folder: Path, dry: bool) -> Result:
    """Draws it in a process of its own that remembers nothing; a dry one is planned for a GPU and drawn on the CPU."""
    started = time.perf_counter()
    planned = forecast(case) if dry else None
    if planned is not None and planned.exit:
        return planned
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            command(case, folder, dry), cwd=place, env=environment(SDCLI_HOME=place), capture_output=True, text=True,
            encoding="utf-8",
        )  # fmt: skip
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 5):  # random weights may draw one flat colour: suspect, but drawn
        return Result(name=case.name, exit=done.returncode, seconds=seconds, message=message(done.stdout, done.stderr))
    report = json.loads(done.stdout)
    if planned is None:
        return result(case, report, seconds)
    steps = tuple(report["batches"][0]["step_seconds"])
    return Result(**{**asdict(planned), "seconds": seconds, "step_seconds": steps})


def command(case: Case, folder: Path, dry: bool) -> list[str]:
    model = weights(folder, case.family, dry)
    size = "64x64" if dry else f"{case.side}x{case.side}"
    words = [sys.executable, "-P", "-m", "sdcli", "generate", "a cat", "-m", str(model), "--size", size]
    words += ["-s", "2" if dry else str(STEPS), "--seed", "1", "--json", "--no-show", "--no-fallback"]
    words += ["--device", "cpu" if dry else "cuda"]
    for pin in case.pins:
        slot, choice = pin.split("=")
        if not dry or choice in ON_A_CPU.get(slot, ("batched", "in-turn")):
            words += ["--pin", pin]
    if case.cap is not None:
        words += ["--max-ram" if dry else "--max-vram", f"{case.cap}GiB"]
    return words


def forecast(case: Case) -> Result:
    """What would be planned for a GPU that is not here, as `sdcli plan --as-if` does it."""
    from sdcli.cli.ask import plan_for

    typed = {**case.typed, "model": case.family, "as_if": DRY_GPU}
    return _planned(case, json.loads(_as_text(plan_for(typed, "plan").plan)))


def _as_text(plan: Any) -> str:
    from sdcli import schema

    return json.dumps(schema.to_json(plan))


def _planned(case: Case, plan: Mapping[str, Any]) -> Result:
    unet = plan["model"]["components"]["unet"]
    wide = 1 if plan["setup"]["storage"] == "fp8" else 4 if plan["setup"]["dtype"] == "fp32" else 2
    return Result(
        name=case.name, exit=0 if plan["fits"] else 4, setup=plan["setup"], hardware=plan["hardware"],
        predicted=plan["footprint"]["device_peak"], host_predicted=plan["footprint"]["host_peak"],
        predicted_phases={phase["name"]: phase["device"] for phase in plan["footprint"]["phases"]},
        unet_bytes=unet["parameters"] * wide,
    )  # fmt: skip


def result(case: Case, report: Mapping[str, Any], seconds: float) -> Result:
    taken = report["memory"]["measured"]
    phases = {phase["name"]: phase["device_peak"] for phase in report["phases"]}
    measured = {
        "reserved": taken["reserved_peak"],
        "reserved_phases": {name: phases.get(name) for name in PHASES},
        "allocated": taken["allocated_peak"],
        "driver": taken["driver_peak"],
        "host": taken["host_peak"],
        "imports": taken["host_before_load"],
        "step_seconds": tuple(report["batches"][0]["step_seconds"]),
        "degraded": len(report["degraded"]),
    }
    planned = _planned(case, {**report["plan"], "fits": True})
    return Result(**{**asdict(planned), **measured, "seconds": seconds})


def message(out: str, err: str) -> str:
    try:
        return str(json.loads(out)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return (err.strip().splitlines() or ["no message"])[-1][:300]


def bandwidth(dry: bool) -> float:
    """Bytes a second from page-locked memory to the GPU, the best of ten copies of 256 MiB, in its own process."""
    if dry:  # any number: nothing is judged by it
        source = bytes(64 << 20)
        started = time.perf_counter()
        bytearray(source)
        return len(source) / (time.perf_counter() - started)
    program = """
import time, torch
source = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=True)
target = torch.empty_like(source, device="cuda")
best = 0.0
for _ in range(10):
    torch.cuda.synchronize()
    started = time.perf_counter()
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    best = max(best, source.nbytes / (time.perf_counter() - started))
print(best)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


# Many cases, a line each


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the figures are from. Lines of one matrix are of one machine."""

    device: str
    total: int
    driver: str | None
    capability: str | None
    versions: dict[str, str]
    python: str
    dry: bool


def machine(dry: bool) -> Machine:
    from sdcli.machine import as_if, survey

    gpu = as_if.parse(DRY_GPU) if dry else survey.choose("cuda", survey.look())
    return Machine(
        device="dry" if dry else gpu.name, total=gpu.total, driver=gpu.driver, capability=gpu.capability,
        versions={name: metadata.version(name) for name in ("torch", "diffusers", "transformers")},
        python=platform.python_version(), dry=dry,
    )  # fmt: skip


@dataclass
class Lines:
    """The file that every finished run is written to at once."""

    path: Path
    machine: Machine
    rate: float | None = None
    date: str = ""
    results: dict[str, Result] = field(default_factory=dict)

    def read(self, path: Path) -> None:
        if not path.exists():
            return
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the line that an interruption tore
            if "machine" in line:
                if line["machine"] != json.loads(json.dumps(asdict(self.machine))):
                    raise SystemExit(f"{path} is of another machine or other versions: {line['machine']}")
                self.date = line["date"]
            elif "rate" in line:
                self.rate = line["rate"]
            else:
                self.results[line["case"]["name"]] = read_result(line["case"])

    def start(self) -> None:
        """Writes everything known; from here on lines are added."""
        self.date = self.date or time.strftime("%Y-%m-%d", time.gmtime())
        records: list[dict[str, Any]] = [{"machine": asdict(self.machine), "date": self.date}]
        records += [{"rate": self.rate}] if self.rate else []
        records += [{"case": asdict(one)} for one in self.results.values()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(line) + "\n" for line in records), encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_result(data: Mapping[str, Any]) -> Result:
    return Result(**{**data, "step_seconds": tuple(data["step_seconds"])})


def go(lines: Lines, chosen: Sequence[Case], folder: Path, limit: float) -> int:
    """Runs what is not there yet, as long as the time lasts; how many are left."""
    started = time.perf_counter()
    if lines.rate is None:
        lines.rate = bandwidth(lines.machine.dry)
        lines.add({"rate": lines.rate})
    left = [case for case in chosen if case.name not in lines.results]
    longest = 0.0
    while left and time.perf_counter() - started + 1.3 * longest < limit:
        case = left.pop(0)
        began = time.perf_counter()
        result = run(case, folder, lines.machine.dry)
        longest = max(longest, time.perf_counter() - began)
        lines.results[case.name] = result
        lines.add({"case": asdict(result)})
        print(progress_text(result), flush=True)
    return len(left)


def progress_text(result: Result) -> str:
    if result.exit:
        return f"{result.name}: exit {result.exit}, {result.message or 'does not fit'}"
    error = f", {result.error:+.1%}" if result.error is not None else ""
    return f"{result.name}: {gib(result.predicted)} predicted, {gib(result.reserved)} reserved{error}"


# What came of it


def verdicts(results: Mapping[str, Result], rate: float | None) -> list[tuple[str, str, str, bool | None]]:
    """(what, seen, goal, holds) of every goal; None where it was not run."""
    rows: list[tuple[str, str, str, bool | None]] = []
    for goal in GOALS:
        result = results.get(goal.case)
        peak = (result.reserved or result.predicted) if result is not None and not result.exit else None
        seen = "not run" if peak is None else gib(peak) + (" predicted" if result and result.reserved is None else "")
        rows.append((goal.case, seen, f"≤ {goal.most} GiB", None if peak is None else peak <= goal.most * GIB))
    for family, side in SHAPES:
        rows.append(streaming(results, f"{family}-{side}", rate))
    measured = [one for one in results.values() if one.error is not None]
    near = sum(abs(one.error or 0.0) <= GOAL for one in measured)
    seen = f"{near} of {len(measured)} runs" if measured else "not run"
    rows.append(("predicted against reserved", seen, "all within 10 %", near == len(measured) if measured else None))
    rows.append(obeyed(measured))
    return rows


def streaming(results: Mapping[str, Result], shape: str, rate: float | None) -> tuple[str, str, str, bool | None]:
    """A streamed step against the slower of computing it and moving the UNet once."""
    streamed, resident = results.get(f"{shape} group-offload"), results.get(f"{shape} resident")
    what = f"{shape}, a streamed step"
    measured = streamed is not None and streamed.reserved is not None
    if not measured or streamed is None or resident is None or not (streamed.step and resident.step and rate):
        return what, "not run", f"≤ {STREAMED} × max(resident, moving)", None
    moving = (streamed.unet_bytes or 0) / rate
    seen = f"{streamed.step * 1000:.0f} ms; resident {resident.step * 1000:.0f}, moving {moving * 1000:.0f}"
    most = STREAMED * max(resident.step, moving)
    return what, seen, f"≤ {most * 1000:.0f} ms", streamed.step <= most


def obeyed(measured: Iterable[Result]) -> tuple[str, str, str, bool | None]:
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


def text(lines: Lines) -> str:
    host, results = lines.machine, lines.results
    dry = "**Dry run: no GPU was used.** Forecasts for one that is not there; nothing is measured. " if host.dry else ""
    rows = [
        f"# Memory on a GPU: {'the dry run' if host.dry else host.device}",
        "",
        f"{dry}Peak of the device's memory that torch's allocator had reserved, with full-size random weights, {STEPS} "
        "steps and a decode, each in its own process; the CUDA context comes on top. Written by "
        "`python -m scripts.gpu_matrix`; nothing is edited by hand.",
        "",
        "| goal | seen | must be | |",
        "| --- | --- | --- | --- |",
    ]
    words = {True: "holds", False: "**fails**", None: "not run"}
    rows += [f"| {a} | {b} | {c} | {words[d]} |" for a, b, c, d in verdicts(results, lines.rate)]
    rows += [
        "",
        "| run | setup | predicted GiB | reserved GiB | difference | step ms | host predicted / measured GiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows += [_row(one) for one in results.values()]
    rows += ["", "By phase, predicted / reserved GiB:", "", f"| | {' | '.join(PHASES)} |", "| --- |" + " ---: |" * 4]
    rows += [f"| {one.name} | {_phases(one)} |" for one in results.values() if not one.exit]
    versions = ", ".join(f"{name} {number}" for name, number in host.versions.items())
    rate = f"{lines.rate / 1e9:.1f} GB/s from pinned memory to the GPU. " if lines.rate and not host.dry else ""
    rows += [
        "",
        f"{lines.date}, {host.device}, {gib(host.total)} GiB, capability {host.capability}, driver {host.driver}, "
        f"Python {host.python}, {versions}. {rate}{len(results)} of {len(cases())} runs.",
    ]
    return "\n".join(rows) + "\n"


def _row(one: Result) -> str:
    if one.exit:
        why = one.message or "does not fit"
        return f"| {one.name} | exit {one.exit}: {why.replace('|', '/')} | {gib(one.predicted)} | | | | |"
    error = f"{one.error:+.1%}" if one.error is not None else "–"
    step = f"{one.step * 1000:.0f}" if one.step and one.reserved else "–"
    host = f"{gib(one.host_predicted)} / {gib(one.host)}"
    peaks = f"{gib(one.predicted)} | {gib(one.reserved)}"
    return f"| {one.name} | {setup_text(one.setup)} | {peaks} | {error} | {step} | {host} |"


def _phases(one: Result) -> str:
    return " | ".join(f"{gib(one.predicted_phases.get(n))} / {gib(one.reserved_phases.get(n))}" for n in PHASES)


def record(lines: Lines) -> dict[str, Any]:
    """For tests and for calibration: every figure, with the machine, the versions and the day."""
    return {
        "schema": SCHEMA, "date": lines.date, "machine": asdict(lines.machine), "host_to_device": lines.rate,
        "results": [asdict(one) for one in lines.results.values()],
    }  # fmt: skip


def write(lines: Lines) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", lines.machine.device.lower()).strip("-")
    path = lines.path.parent / f"gpu-{slug}.md"
    path.write_text(text(lines), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(record(lines), indent=1) + "\n", encoding="utf-8")
    return path


# A record against today's forecast


def check(data: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """(run, predicted now, reserved then) of every measured run of a record."""
    return [
        (one.name, predicted_now(one), one.reserved)
        for one in map(read_result, data["results"])
        if one.reserved is not None
    ]


def predicted_now(one: Result) -> int:
    from sdcli import schema
    from sdcli.machine.hardware import Hardware
    from sdcli.models import resolve
    from sdcli.plan.footprint import footprint
    from sdcli.plan.plan import Setup
    from sdcli.plan.stages import Shape

    family, side = one.name.split()[0].split("-")
    model = resolve.resolve(family)
    shape = Shape(width=int(side), height=int(side))
    setup, hardware = schema.from_json(Setup, one.setup), schema.from_json(Hardware, one.hardware)
    return footprint(model, shape, setup, hardware).device_peak


def checked(path: Path) -> int:
    rows = check(json.loads(path.read_text(encoding="utf-8")))
    far = 0
    for name, predicted, reserved in rows:
        error = (predicted - reserved) / reserved
        far += abs(error) > GOAL
        print(f"{name}: {gib(predicted)} predicted now, {gib(reserved)} reserved then, {error:+.1%}")
    print(f"{len(rows) - far} of {len(rows)} within 10 %")
    return 1 if far or not rows else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="where lines and tables go")
    parser.add_argument("--weights", type=Path, help="where the models are, or will be (9 GB)")
    parser.add_argument("--only", action="append", help="runs with this in their name; repeatable")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="begin no run that would end later")
    parser.add_argument("--from", dest="earlier", type=Path, help="take these lines along")
    parser.add_argument("--list", action="store_true", help="the runs' names")
    parser.add_argument("--check", type=Path, help="a record to hold the forecast against")
    parser.add_argument("--dry", action="store_true", help="no GPU: forecasts, and tiny models on the CPU")
    asked = parser.parse_args(arguments)
    chosen = [case for case in cases() if not asked.only or any(part in case.name for part in asked.only)]
    if asked.list:
        print("\n".join(case.name for case in chosen))
        return 0
    if asked.check:
        return checked(asked.check)
    if not chosen:
        print("no run has that in its name; --list names them", file=sys.stderr)
        return 2
    lines = Lines(asked.out / LINES, machine(asked.dry))
    for path in (asked.earlier, lines.path):
        if path is not None:
            lines.read(path)
    lines.start()
    with tempfile.TemporaryDirectory() as temporary:
        left = go(lines, chosen, asked.weights or Path(temporary), asked.limit_seconds)
    path = write(lines)
    print(f"{path}: {len(lines.results)} runs" + (f", {left} left: the same command continues" if left else ""))
    failed = [row for row in verdicts(lines.results, lines.rate) if row[3] is False]
    for what, seen, goal, _ in failed:
        print(f"FAILS {what}: {seen}, {goal}")
    broken = [result.name for result in lines.results.values() if result.exit not in (0, 4)]
    return 1 if failed or broken else 0


if __name__ == "__main__":
    sys.exit(main())
