"""bench's figures against step times whose truth is known, because they are made here."""

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
    makers = _makers()
    rows: list[Row] = []
    for between, spread in makers.SPREADS:
        for outliers in (0.0, makers.OUTLIERS):
            rows += _intervals(makers, between, spread, outliers)
    for spread in (0.01, 0.03):
        for outliers in (0.0, makers.OUTLIERS):
            share = _share(makers, _within_one(makers, random.Random(3), spread, outliers))
            what = f"one process until ±1 %, steps {spread:.1%}{_with(outliers)}: interval holds the truth"
            rows.append((what, f"{share:.1%}", "at least 93 %", share >= 0.93))
    for between, spread in makers.SPREADS:
        for outliers in (0.0, makers.OUTLIERS):
            rows += _comparisons(makers, between, spread, outliers)
    rows += _unsteady(makers)
    return rows


def _makers() -> ModuleType:
    """The everyday test of the same claims makes the same step times."""
    path = ROOT / "tests" / "bench" / "test_bench_statistics.py"
    specification = importlib.util.spec_from_file_location("made_step_times", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _share(makers: ModuleType, one: Callable[[], bool]) -> float:
    return float(makers.share(one() for _ in range(RUNS)))


def _with(outliers: float) -> str:
    return ", outliers" if outliers else ""


def _intervals(makers: ModuleType, between: float, spread: float, outliers: float) -> Iterator[Row]:
    draw, truth = random.Random(1), makers.true_median(spread, outliers)
    what = f"processes {between:.1%}, steps {spread:.1%}{_with(outliers)}: interval holds the truth"

    def processes(count: int) -> list[statistics.Process]:
        return [makers.process(draw, between, spread, outliers) for _ in range(count)]

    def fixed() -> bool:
        bounds, _ = statistics.interval(processes(5))
        return bool(bounds.low <= truth <= bounds.high)

    def stopped() -> bool:
        measured = processes(5)
        while not statistics.enough(measured):
            measured += processes(1)
        bounds, _ = statistics.interval(measured)
        return bool(bounds.low <= truth <= bounds.high)

    share = _share(makers, fixed)
    yield f"{what}, 5 processes", f"{share:.1%}", "93 to 97 %", 0.93 <= share <= 0.97
    share = _share(makers, stopped)
    yield f"{what}, until ±1 %", f"{share:.1%}", "at least 93 %", share >= 0.93


def _within_one(makers: ModuleType, draw: random.Random, spread: float, outliers: float) -> Callable[[], bool]:
    truth = makers.true_median(spread, outliers)

    def holds() -> bool:
        one = [makers.image(draw, 1.0, spread, outliers) for _ in range(5)]
        while not statistics.enough([one]):
            one.append(makers.image(draw, 1.0, spread, outliers))
        bounds, _ = statistics.interval([one])
        return bool(bounds.low <= truth <= bounds.high)

    return holds


def _comparisons(makers: ModuleType, between: float, spread: float, outliers: float) -> Iterator[Row]:
    draw = random.Random(4)
    what = f"compare, processes {between:.1%}, steps {spread:.1%}{_with(outliers)}"

    def verdict(level: float) -> str:
        before = [makers.process(draw, between, spread, outliers) for _ in range(5)]
        after = [makers.process(draw, between, spread, outliers, level=level) for _ in range(5)]
        return statistics.compare(before, after).verdict

    alarms = _share(makers, lambda: verdict(1.0) != "cannot-tell")
    yield f"{what}: equal work called different", f"{alarms:.1%}", "at most 7 %", alarms <= 0.07
    detected = _share(makers, lambda: verdict(1.05) == "slower")
    yield f"{what}: 5 % slower found", f"{detected:.1%}", "at least 90 %", detected >= 0.90


def _unsteady(makers: ModuleType) -> Iterator[Row]:
    kinds = (
        ("a drift of 10 % within each process", makers.drifting, "drift"),
        ("a drift of 6 % from process to process", makers.drifting_slowly, "drift"),
        ("two speeds, 8 % apart", makers.bimodal, "two speeds"),
        ("two speeds, 8 % apart, with noise", makers.bimodal_and_noisy, "two speeds"),
        ("steps that keep 75 % of their predecessor's noise", makers.autocorrelated, "autocorrelation"),
    )
    for what, make, name in kinds:
        draw = random.Random(8)
        detected = _share(makers, lambda: name in statistics.instability(make(draw)))  # noqa: B023
        yield f"{what}: called unstable, for that reason", f"{detected:.1%}", "at least 95 %", detected >= 0.95
    for between, spread in makers.SPREADS:
        for outliers in (0.0, makers.OUTLIERS):
            draw = random.Random(9)
            wrong = _share(
                makers,
                lambda: bool(
                    statistics.instability([makers.process(draw, between, spread, outliers) for _ in range(5)])  # noqa: B023
                ),
            )
            what = f"plain noise, processes {between:.1%}, steps {spread:.1%}{_with(outliers)}: called unstable"
            yield what, f"{wrong:.1%}", "at most 5 %", wrong <= 0.05
