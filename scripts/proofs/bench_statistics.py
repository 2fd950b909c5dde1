"""bench's figures against step times whose truth is known, being made here."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from sdcli.bench import statistics  # noqa: E402

NAME = "bench_statistics"
CLAIM = (
    "On 2,000 made-up measurements of each kind (5 processes of 20 steps; outliers: 3 % of steps take 20-200 % "
    "longer) bench's 95 % intervals hold the true median, its comparisons rarely raise a false alarm and find a true "
    "5 %, and what is not steady is called so. Spreads are standard deviations between processes and of steps."
)
RUNS = 2000  # of each kind; the test makes do with fewer
Row = tuple[str, str, str, bool]


def main() -> list[Row]:
    made = _makers()
    rows: list[Row] = []
    for between, spread in made.SPREADS:
        for outliers in (0.0, made.OUTLIERS):
            rows += _intervals(made, between, spread, outliers)
    for spread in (0.01, 0.03):
        for outliers in (0.0, made.OUTLIERS):
            held = _share(made, _within_one(made, random.Random(3), spread, outliers))
            what = f"one process until ±1 %, steps {spread:.1%}{_with(outliers)}: interval holds the truth"
            rows.append((what, f"{held:.1%}", "at least 93 %", held >= 0.93))
    for between, spread in made.SPREADS:
        for outliers in (0.0, made.OUTLIERS):
            rows += _comparisons(made, between, spread, outliers)
    rows += _unsteady(made)
    return rows


def _makers() -> ModuleType:
    """The everyday test of the same claims makes the same step times."""
    path = ROOT / "tests" / "bench" / "test_bench_statistics.py"
    specification = importlib.util.spec_from_file_location("made_step_times", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _share(made: ModuleType, one: Callable[[], bool]) -> float:
    return float(made.share(one() for _ in range(RUNS)))


def _with(outliers: float) -> str:
    return ", outliers" if outliers else ""


def _intervals(made: ModuleType, between: float, spread: float, outliers: float) -> Iterator[Row]:
    draw, truth = random.Random(1), made.true_median(spread, outliers)
    what = f"processes {between:.1%}, steps {spread:.1%}{_with(outliers)}: interval holds the truth"

    def processes(count: int) -> list[statistics.Process]:
        return [made.process(draw, between, spread, outliers) for _ in range(count)]

    def fixed() -> bool:
        found, _ = statistics.interval(processes(5))
        return bool(found.low <= truth <= found.high)

    def stopped() -> bool:
        known = processes(5)
        while not statistics.enough(known):
            known += processes(1)
        found, _ = statistics.interval(known)
        return bool(found.low <= truth <= found.high)

    held = _share(made, fixed)
    yield f"{what}, 5 processes", f"{held:.1%}", "93 to 97 %", 0.93 <= held <= 0.97
    held = _share(made, stopped)
    yield f"{what}, until ±1 %", f"{held:.1%}", "at least 93 %", held >= 0.93


def _within_one(made: ModuleType, draw: random.Random, spread: float, outliers: float) -> Callable[[], bool]:
    truth = made.true_median(spread, outliers)

    def holds() -> bool:
        one = [made.image(draw, 1.0, spread, outliers) for _ in range(5)]
        while not statistics.enough([one]):
            one.append(made.image(draw, 1.0, spread, outliers))
        found, _ = statistics.interval([one])
        return bool(found.low <= truth <= found.high)

    return holds


def _comparisons(made: ModuleType, between: float, spread: float, outliers: float) -> Iterator[Row]:
    draw = random.Random(4)
    what = f"compare, processes {between:.1%}, steps {spread:.1%}{_with(outliers)}"

    def verdict(level: float) -> str:
        before = [made.process(draw, between, spread, outliers) for _ in range(5)]
        after = [made.process(draw, between, spread, outliers, level=level) for _ in range(5)]
        return statistics.compare(before, after).verdict

    alarms = _share(made, lambda: verdict(1.0) != "cannot-tell")
    yield f"{what}: equal work called different", f"{alarms:.1%}", "at most 7 %", alarms <= 0.07
    found = _share(made, lambda: verdict(1.05) == "slower")
    yield f"{what}: 5 % slower found", f"{found:.1%}", "at least 90 %", found >= 0.90


def _unsteady(made: ModuleType) -> Iterator[Row]:
    kinds = (
        ("a drift of 10 % within each process", made.drifting, "drift"),
        ("a drift of 6 % from process to process", made.drifting_slowly, "drift"),
        ("two speeds, 8 % apart", made.bimodal, "two speeds"),
        ("two speeds, 8 % apart, with noise", made.bimodal_and_noisy, "two speeds"),
        ("steps that keep 75 % of their predecessor's noise", made.autocorrelated, "autocorrelation"),
    )
    for what, make, name in kinds:
        draw = random.Random(8)
        found = _share(made, lambda: name in statistics.instability(make(draw)))  # noqa: B023
        yield f"{what}: called unstable, for that reason", f"{found:.1%}", "at least 95 %", found >= 0.95
    for between, spread in made.SPREADS:
        for outliers in (0.0, made.OUTLIERS):
            draw = random.Random(9)
            wrong = _share(
                made,
                lambda: bool(
                    statistics.instability([made.process(draw, between, spread, outliers) for _ in range(5)])  # noqa: B023
                ),
            )
            what = f"plain noise, processes {between:.1%}, steps {spread:.1%}{_with(outliers)}: called unstable"
            yield what, f"{wrong:.1%}", "at most 5 %", wrong <= 0.05
