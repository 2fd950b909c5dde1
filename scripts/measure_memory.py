#!/usr/bin/env python3
"""Host memory on the CPU, predicted beside measured (VmHWM), for full-size SD1.5 and SDXL with random weights.

    python scripts/measure_memory.py FOLDER [--only sdxl-1024] [--again] [--dry] [--write docs/benchmarks/memory-cpu.md]

FOLDER gets the weights (2.1 and 6.9 GB, reused next time) and a line for every case that was measured, so that
the same command continues where it was stopped; --again measures again. Every case is one `sdcli generate` of two steps
in its own process. Peaks do not depend on how busy the machine is; --dry uses tiny models and only shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MIB, GIB = 1 << 20, 1 << 30
GOAL = 0.10  # of the measured peak
PHASES = ("load", "encode", "denoise", "decode")


@dataclass(frozen=True)
class Case:
    """One run. `flags` are added to the command; none means: as the planner decides."""

    family: str
    side: int
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.family}-{self.side}" + "".join(f" {flag}" for flag in self.flags)


CASES = (
    Case("sd15", 512),
    Case("sd15", 768),
    Case("sdxl", 768),
    Case("sdxl", 1024),
    Case("sd15", 512, ("--dtype", "fp32")),
    Case("sd15", 768, ("--dtype", "fp32")),
    Case("sd15", 512, ("--pin", "placement=disk")),
    Case("sdxl", 1024, ("--pin", "placement=disk")),
    Case("sdxl", 1024, ("--pin", "vae=tile-512")),
    Case("sd15", 512, ("--compile", "on")),
    Case("sd15", 512, ("--pin", "execution=openvino")),
    Case("sdxl", 1024, ("--pin", "execution=openvino")),
)


@dataclass(frozen=True)
class Row:
    """What one case took, in bytes. `imports` is what the process used before any weights."""

    case: Case
    setup: dict[str, Any]
    predicted: int
    measured: int
    imports: int
    imports_predicted: int
    phases: dict[str, tuple[int, int | None]]  # predicted with the imports read live, measured
    date: str = ""

    @property
    def live(self) -> int:
        """The forecast with what importing really took in place of the constant."""
        return self.predicted - self.imports_predicted + self.imports

    @property
    def error(self) -> float:
        return (self.live - self.measured) / self.measured

    @property
    def holds(self) -> bool:
        return abs(self.error) <= GOAL


def weights(folder: Path, family: str, dry: bool, seconds: float | None = None) -> Path:
    """The model's folder, written if it is not there yet."""
    target = folder / f"{'tiny' if dry else 'full'}-{family}"
    if not (target / "model_index.json").exists():  # written last
        command = [sys.executable, str(ROOT / "scripts" / "make_checkpoint.py"), family, str(target)]
        command += ["--tiny"] if dry else []
        subprocess.run(command, check=True, env=environment(), stdout=subprocess.PIPE, timeout=seconds)
    return target


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **more}


def measured(case: Case, folder: Path, dry: bool = False) -> Row:
    """One run in its own process, with nothing remembered from earlier ones."""
    model = weights(folder, case.family, dry)
    side = 64 if dry else case.side
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable, "-P", "-m", "sdcli", "generate", "a cat", "-m", str(model), "--size", f"{side}x{side}",
            "-s", "2", "--seed", "1", "--device", "cpu", "--json", "--no-show", *case.flags,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=home, env=environment(SDCLI_HOME=home), capture_output=True, text=True)
    if done.returncode not in (0, 5):  # random weights may draw one flat colour: suspect, but drawn
        raise SystemExit(f"{case.name}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return row(case, json.loads(done.stdout))


def row(case: Case, report: dict[str, Any]) -> Row:
    from sdcli.plan.calibration import IMPORTS

    memory, plan = report["memory"], report["plan"]
    imports = memory["measured"]["host_before_load"]
    peaks = {phase["name"]: phase["host_peak"] for phase in report["phases"]}
    return Row(
        case=case,
        setup=plan["setup"],
        predicted=memory["predicted"]["host_peak"],
        measured=memory["measured"]["host_peak"],
        imports=imports,
        imports_predicted=IMPORTS,
        phases={
            phase["name"]: (phase["host"] - IMPORTS + imports, peaks.get(phase["name"]))
            for phase in plan["footprint"]["phases"]
        },
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )


# What was measured before, with these versions: a line for each case, the last one counts; the forecast is today's


def lines(folder: Path, dry: bool) -> Path:
    return folder / f"memory-cpu{'-dry' if dry else ''}.jsonl"


def store(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"with": circumstances(), "row": asdict(row)}) + "\n")


def stored(path: Path) -> dict[Case, Row]:
    rows: dict[Case, Row] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # torn by an interruption
        if line["with"] == circumstances():
            data = line["row"]
            case = Case(**{**data["case"], "flags": tuple(data["case"]["flags"])})
            phases = {name: (pair[0], pair[1]) for name, pair in data["phases"].items()}
            rows[case] = Row(**{**data, "case": case, "phases": phases})
    return rows


def forecast_now(row: Row, folder: Path, dry: bool) -> Row:
    from sdcli import schema
    from sdcli.machine import survey
    from sdcli.models import resolve
    from sdcli.plan.calibration import IMPORTS
    from sdcli.plan.footprint import footprint
    from sdcli.plan.plan import Setup
    from sdcli.plan.stages import Shape

    side = 64 if dry else row.case.side
    model, setup = resolve.at(weights(folder, row.case.family, dry)), schema.from_json(Setup, row.setup)
    forecast = footprint(model, Shape(width=side, height=side), setup, survey.choose("cpu", survey.look()))
    phases = {
        phase.name: (phase.host - IMPORTS + row.imports, row.phases.get(phase.name, (0, None))[1])
        for phase in forecast.phases
    }
    return replace(row, predicted=forecast.host_peak, imports_predicted=IMPORTS, phases=phases)


def text(rows: Sequence[Row]) -> str:
    within = sum(row.holds for row in rows)
    lines = [
        "# Memory on the CPU: predicted and measured",
        "",
        "Peak resident memory (VmHWM) of `sdcli generate` with full-size random weights, two steps and a decode, each "
        "in its own process. Written by `scripts/measure_memory.py`; nothing is edited by hand. The forecast takes "
        "what importing torch and diffusers really took on this machine (read live); the difference is relative to "
        "the measured peak.",
        "",
        "| model and size | setup | predicted GiB | measured GiB | difference | ≤ 10 % |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {row.case.name} | {setup_text(row.setup)} | {gib(row.live)} | {gib(row.measured)} | {row.error:+.1%} | "
        f"{'holds' if row.holds else '**fails**'} |"
        for row in rows
    ]
    lines += ["", "By phase, predicted / measured GiB:", "", f"| | {' | '.join(PHASES)} |", "| --- |" + " ---: |" * 4]
    for row in rows:
        pairs = [row.phases.get(name, (0, None)) for name in PHASES]
        cells = [f"{gib(a)} / {gib(b)}" for a, b in pairs]
        lines.append(f"| {row.case.name} | {' | '.join(cells)} |")
    imports = sorted(row.imports for row in rows)
    assumed = rows[0].imports_predicted
    lines += [
        "",
        f"Imports: {imports[0] / MIB:.0f} to {imports[-1] / MIB:.0f} MiB measured, {assumed / MIB:.0f} MiB in a plan, "
        "which is made before anything is imported.",
        "",
        f"{within} of {len(rows)} within 10 %. {' and '.join(sorted({row.date for row in rows}))}, {circumstances()}",
    ]
    missing = [case.name for case in CASES if case not in {row.case for row in rows}]
    if missing:
        lines += ["", f"Not measured yet: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n"


def setup_text(setup: dict[str, Any]) -> str:
    usual = {"storage": "same", "guidance": "batched", "vae": "whole", "vae_dtype": "same", "execution": "eager"}
    slots = ("dtype", "storage", "placement", "attention", "guidance", "vae", "vae_dtype", "execution")
    return ", ".join(str(setup[slot]) for slot in slots if setup[slot] != usual.get(slot))


def gib(count: int | None) -> str:
    return "–" if count is None else f"{count / GIB:.2f}"


def circumstances() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers"))
    from sdcli.machine import processor

    chip = processor.read()
    return (
        f"{chip.name}, {chip.isa}, Python {platform.python_version()}, {versions}, "
        f"{platform.system()} {platform.machine()}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the weights are, or will be")
    parser.add_argument("--only", action="append", help="a case by name; repeatable")
    parser.add_argument("--again", action="store_true", help="measure also what was measured before")
    parser.add_argument("--dry", action="store_true", help="tiny models at 64×64: shows that it runs, no figures")
    parser.add_argument("--write", type=Path, help="the table's file")
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    cases = [case for case in CASES if not asked.only or case.name in asked.only]
    if not cases:
        print("no such case; use one of: " + "; ".join(case.name for case in CASES), file=sys.stderr)
        return 2
    asked.folder.mkdir(parents=True, exist_ok=True)
    path = lines(asked.folder, asked.dry)
    by_case = {case: forecast_now(row, asked.folder, asked.dry) for case, row in stored(path).items()}
    for case in cases:
        if case in by_case and not asked.again:
            continue
        by_case[case] = last = measured(case, asked.folder, asked.dry)
        store(path, last)
        print(f"{case.name}: {gib(last.live)} predicted, {gib(last.measured)} measured, {last.error:+.1%}", flush=True)
    rows = [by_case[case] for case in CASES if case in by_case]
    table = text(rows)
    if asked.write:
        asked.write.parent.mkdir(parents=True, exist_ok=True)
        asked.write.write_text(table, encoding="utf-8")
    print(table)
    return 0 if asked.dry or all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
