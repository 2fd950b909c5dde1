"""sdcli's step beside programs that keep the processor busy; writes docs/benchmarks/cpu-busy.md.

    python -m scripts.benchmark_busy [--model FOLDER …] [--steps N] [--rounds 5] [--policy NAME=VALUE …] [--output FILE]

A round is a fresh process of `sdcli generate` alone, then beside 1, 2 and 4 Python loops, for every model and policy.
A policy is an environment variable set for sdcli alone, as OMP_WAIT_POLICY=passive: a column of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from scripts.peers.process import Others, plain_environment, watched
from sdcli.bench import statistics
from sdcli.bench.surroundings import FOREIGN_SHARE, revision
from sdcli.machine import processor
from sdcli.machine.packages import versions

ROOT = Path(__file__).resolve().parents[1]
BUILTIN, STEPS, STEPS_OF_OTHERS = "builtin", 20, 6
COUNTS = (0, 1, 2, 4)
GOAL = 2.0  # times the fair share's time, at most
AS_IT_COMES = ""
LOOP = "while True: pass"


@dataclass(frozen=True)
class Case:
    model: str  # as -m takes it
    policy: str  # NAME=VALUE
    count: int  # busy programs


@dataclass(frozen=True)
class Run:
    steps: tuple[float, ...]
    threads: int
    others: float | None  # the share of the processor that went to neither sdcli nor the loops


def cases(models: Sequence[str], policies: Sequence[str]) -> list[Case]:
    return [Case(model, policy, count) for model in models for policy in (AS_IT_COMES, *policies) for count in COUNTS]


# --- measuring


@contextmanager
def busy(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-I", "-S", "-c", LOOP]) for _ in range(count)]
    try:
        yield
        if any(loop.poll() is not None for loop in loops):
            raise SystemExit("a busy program ended by itself")
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measured(case: Case, steps: int | None, home: Path) -> Run:
    steps = steps or (STEPS if case.model == BUILTIN else STEPS_OF_OTHERS)
    command = [
        sys.executable, "-P", "-m", "sdcli", "generate", "a cat", "-m", case.model, "-s", str(steps), "--seed", "1",
        "--device", "cpu", "--overwrite", "-o", str(home / "cat.png"), "--json",
    ]  # fmt: skip
    name, _, value = case.policy.partition("=")
    variables = plain_environment(SDCLI_HOME=str(home), **({name: value} if name else {}))
    others = Others()
    with busy(case.count):
        report = json.loads(watched(command, (0, 5), variables).line)
    seconds = statistics.steady(report["batches"][0]["step_seconds"])
    return Run(seconds, report["plan"]["setup"]["threads"], others.share())


# --- what came of it


def fair(threads: int, count: int, cores: int) -> float:
    """How many times as long a step takes when every thread gets an equal part of the cores."""
    return max(1.0, (threads + count) / cores)


def beside(runs: dict[Case, list[Run]], case: Case) -> statistics.Ratio:
    """The case's step to the one alone."""
    alone = runs[Case(case.model, case.policy, 0)]
    return statistics.compare([[run.steps] for run in alone], [[run.steps] for run in runs[case]])


def of_fair(runs: dict[Case, list[Run]], case: Case, cores: int) -> float:
    return beside(runs, case).value / fair(runs[case][0].threads, case.count, cores)


def missed(runs: dict[Case, list[Run]], cores: int) -> list[Case]:
    """Of those as they come: policies are there to be compared with."""
    judged = [case for case in runs if case.policy == AS_IT_COMES and case.count]
    return [case for case in judged if of_fair(runs, case, cores) > GOAL]


def table(runs: dict[Case, list[Run]], cores: int) -> list[str]:
    models, policies = (list(dict.fromkeys(part)) for part in zip(*((c.model, c.policy) for c in runs), strict=True))
    titles = [f"`{policy}`" if policy else "as it comes" for policy in policies]
    lines = [
        "| model | busy programs | fair share | " + " | ".join(titles) + " |",
        "| --- | ---: | ---: |" + " --- |" * len(policies),
    ]
    for model in models:
        for count in COUNTS:
            row = [Case(model, policy, count) for policy in policies]
            share = fair(runs[row[0]][0].threads, count, cores)
            cells = [_cell(runs, case, cores) for case in row]
            lines.append(f"| {Path(model).name} | {count} | ×{share:.2f} | {' | '.join(cells)} |")
    return lines


def _cell(runs: dict[Case, list[Run]], case: Case, cores: int) -> str:
    step = statistics.summarise([[run.steps] for run in runs[case]])
    assert step is not None
    seconds = f"{step.median:.{3 if step.median < 1 else 2}f} s"
    if not case.count:
        return seconds
    found = beside(runs, case)
    return f"{seconds}, ×{found.value:.2f} ({found.low:.2f}–{found.high:.2f}), {of_fair(runs, case, cores):.2f} of fair"


def page(runs: dict[Case, list[Run]], cores: int) -> str:
    chip = processor.read()
    packages = ", ".join(f"{one.name} {one.version}" for one in versions(("torch", "diffusers")))
    rounds = min(len(found) for found in runs.values())
    far = missed(runs, cores)
    judged = sum(case.policy == AS_IT_COMES and case.count > 0 for case in runs)
    shares = [run.others for found in runs.values() for run in found if run.others is not None]
    most = max(shares, default=0.0)
    lines = [
        "# A step on a CPU that others use too",
        "",
        "Written by `python -m scripts.benchmark_busy`; nothing is edited by hand. "
        f"{date.today().isoformat()}; {chip.name}, {cores} cores, {chip.isa}, {platform.system()}; Python "
        f"{platform.python_version()}, {packages}; sdcli at {revision() or 'an installed version'}. Rounds: {rounds}.",
        "",
        "The median step of `sdcli generate` beside so many endless Python loops; in brackets the 95 % interval of how "
        "many times as long it takes as alone. Were every thread given an equal part of the cores, it would take as "
        "many times as long as the column fair share says. "
        f"At most {GOAL:.0f} of fair as it comes: {judged - len(far)} of {judged}.",
        "",
        *table(runs, cores),
        "",
        f"Programs that are not part of this took at most {most:.0%} of the processor during a run.",
    ]
    if most > FOREIGN_SHARE:
        lines.append("**So these figures are not to be cited.**")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="beside the built-in one; repeatable")
    parser.add_argument("--steps", type=int, help=f"{STEPS} of the built-in model, {STEPS_OF_OTHERS} of others")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--policy", action="append", default=[], metavar="NAME=VALUE", help="repeatable")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "cpu-busy.md")
    asked = parser.parse_args(arguments)
    if bad := [policy for policy in asked.policy if "=" not in policy]:
        parser.error(f"--policy NAME=VALUE, not {bad[0]}")
    cores = len(processor.allowed_cores())
    runs: dict[Case, list[Run]] = {case: [] for case in cases([BUILTIN, *asked.model], asked.policy)}
    with tempfile.TemporaryDirectory(prefix="sdcli-busy-", ignore_cleanup_errors=True) as home:
        measured(next(iter(runs)), 1, Path(home))  # what is tried once on every machine, and remembered
        for number in range(asked.rounds):
            for case, found in runs.items():
                found.append(run := measured(case, asked.steps, Path(home)))
                print(f"round {number + 1}  {case}: {statistics.centre([run.steps]):.3f} s", file=sys.stderr)
    text = page(runs, cores)
    asked.output.write_text(text, encoding="utf-8")
    print(text)
    return 1 if missed(runs, cores) else 0


if __name__ == "__main__":
    sys.exit(main())
