"""The statistics against step times whose truth is known, being made here: 300 seeded runs of each kind, and 2,000 in
`scripts/prove bench_statistics`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from statistics import NormalDist

import pytest

from sdcli.bench import statistics
from sdcli.bench.statistics import Process

RUNS = 300
STEPS = 20
OUTLIERS = 0.03
# process sd, step sd: up to what the promises hold for
SPREADS = ((0.0, 0.01), (0.005, 0.03), (0.01, 0.005), (0.01, 0.03))


def image(draw: random.Random, level: float, spread: float, outliers: float = 0.0) -> list[float]:
    """Steps around `level`; a share of them takes 20 to 200 % longer."""
    steps = [level * (1 + draw.gauss(0, spread)) for _ in range(STEPS)]
    return [step * draw.uniform(1.2, 3) if outliers and draw.random() < outliers else step for step in steps]


def process(
    draw: random.Random, between: float, spread: float, outliers: float = 0.0, level: float = 1.0
) -> list[list[float]]:
    return [image(draw, level * (1 + draw.gauss(0, between)), spread, outliers)]


def true_median(spread: float, outliers: float) -> float:
    """Outliers lie above all else, so the median is a higher quantile of the rest."""
    return 1 + spread * NormalDist().inv_cdf(0.5 / (1 - outliers))


def share(runs: Iterator[bool]) -> float:
    results = list(runs)
    return sum(results) / len(results)


# --- the interval


@pytest.mark.parametrize("outliers", (0.0, OUTLIERS))
@pytest.mark.parametrize(("between", "spread"), SPREADS)
def test_95_of_100_intervals_of_five_processes_hold_the_true_median(
    between: float, spread: float, outliers: float
) -> None:
    draw, truth = random.Random(1), true_median(spread, outliers)

    def holds() -> bool:
        bounds, unit = statistics.interval([process(draw, between, spread, outliers) for _ in range(5)])
        return unit == "processes" and bounds.low <= truth <= bounds.high

    assert 0.93 <= share(holds() for _ in range(RUNS)) <= 0.97


@pytest.mark.parametrize("outliers", (0.0, OUTLIERS))
@pytest.mark.parametrize(("between", "spread"), SPREADS)
def test_intervals_keep_their_promise_under_the_stop_rule(between: float, spread: float, outliers: float) -> None:
    """Processes are added until the interval is narrow: the ways it was narrow by luck are the danger."""
    draw, truth = random.Random(2), true_median(spread, outliers)

    def holds() -> bool:
        processes = [process(draw, between, spread, outliers) for _ in range(5)]
        while not statistics.enough(processes):
            processes.append(process(draw, between, spread, outliers))
        bounds, _ = statistics.interval(processes)
        assert (bounds.high - bounds.low) / 2 <= 0.0101 * (bounds.high + bounds.low) / 2
        return bounds.low <= truth <= bounds.high

    assert share(holds() for _ in range(RUNS)) >= 0.93


@pytest.mark.parametrize("outliers", (0.0, OUTLIERS))
@pytest.mark.parametrize("spread", (0.01, 0.03))
def test_within_one_process_images_are_counted_and_the_promise_is_kept(spread: float, outliers: float) -> None:
    draw, truth = random.Random(3), true_median(spread, outliers)

    def holds() -> bool:
        one = [image(draw, 1.0, spread, outliers) for _ in range(5)]
        while not statistics.enough([one]):
            one.append(image(draw, 1.0, spread, outliers))
        bounds, unit = statistics.interval([one])
        return unit == "images" and bounds.low <= truth <= bounds.high

    assert share(holds() for _ in range(RUNS)) >= 0.93


def test_the_interval_of_a_few_steps_of_one_image_is_the_one_of_the_binomial() -> None:
    bounds, unit = statistics.interval([[[float(n) for n in range(1, 21)]]])
    assert unit == "steps"
    assert (bounds.low, bounds.high) == (6.0, 15.0)  # tables: the 6th and 15th of 20 hold the median in 95.9 %
    assert statistics.of_ranks([1.0, 2.0, 3.0]).low == 1.0


# --- comparing


@pytest.mark.parametrize(("between", "spread"), SPREADS)
def test_equal_work_is_called_different_at_most_7_times_in_100(between: float, spread: float) -> None:
    draw = random.Random(4)

    def alarm() -> bool:
        sides = [[process(draw, between, spread) for _ in range(5)] for _ in range(2)]
        return statistics.compare(*sides).verdict != "cannot-tell"

    assert 0.02 < share(alarm() for _ in range(RUNS)) <= 0.07


@pytest.mark.parametrize("outliers", (0.0, OUTLIERS))
def test_5_per_cent_slower_is_found_9_times_in_10_at_the_widest_spread(outliers: float) -> None:
    draw = random.Random(5)

    def found() -> bool:
        before = [process(draw, 0.01, 0.03, outliers) for _ in range(5)]
        after = [process(draw, 0.01, 0.03, outliers, level=1.05) for _ in range(5)]
        return statistics.compare(before, after).verdict == "slower"

    assert share(found() for _ in range(RUNS)) >= 0.90


def test_the_interval_of_a_ratio_holds_the_true_one() -> None:
    draw = random.Random(6)

    def holds() -> bool:
        before = [process(draw, 0.01, 0.02) for _ in range(5)]
        ratio = statistics.compare(before, [process(draw, 0.005, 0.01, level=0.8) for _ in range(8)])
        return ratio.low <= 0.8 <= ratio.high

    assert 0.93 <= share(holds() for _ in range(RUNS)) <= 0.97


def test_single_processes_are_not_taken_for_witnesses_of_the_next_ones() -> None:
    draw = random.Random(7)

    def alarm() -> bool:
        before, after = ([[image(draw, 1 + draw.gauss(0, 0.02), 0.01) for _ in range(6)]] for _ in range(2))
        ratio = statistics.compare([before[0]], [after[0]])
        assert ratio.assumed
        return ratio.verdict != "cannot-tell"

    assert share(alarm() for _ in range(RUNS)) <= 0.07
    few = statistics.compare([[[1.0]]], [[[1.1, 1.1]]])
    assert (few.verdict, few.assumed) == ("cannot-tell", True)
    twice = statistics.compare([[[1.0] * 20]], [[[2.0] * 20]])
    assert (twice.value, twice.verdict) == (pytest.approx(2.0), "slower")


# --- what is not steady


def drifting(draw: random.Random) -> list[Process]:
    """10 % slower from the first step of each process to its last, as a GPU that gets warm."""
    return [[[(1 + 0.1 * n / STEPS) * (1 + draw.gauss(0, 0.02)) for n in range(STEPS)]] for _ in range(5)]


def drifting_slowly(draw: random.Random) -> list[Process]:
    """6 % slower over all processes, as a machine that gets warm."""
    return [process(draw, 0, 0.01, level=1 + 0.06 * number / 4) for number in range(5)]


def bimodal(draw: random.Random) -> list[Process]:
    """Four steps in ten take 8 % longer."""
    return [[[1.08 if draw.random() < 0.4 else 1.0 for _ in range(STEPS)]] for _ in range(5)]


def bimodal_and_noisy(draw: random.Random) -> list[Process]:
    return [[[step * (1 + draw.gauss(0, 0.01)) for step in image]] for (image,) in bimodal(draw)]


def autocorrelated(draw: random.Random) -> list[Process]:
    """Each step's noise keeps 0.75 of its predecessor's."""

    def steps() -> Iterator[float]:
        noise = draw.gauss(0, 0.02)
        for _ in range(STEPS):
            yield 1 + noise
            noise = 0.75 * noise + draw.gauss(0, 0.02 * math.sqrt(1 - 0.75**2))

    return [[list(steps())] for _ in range(5)]


@pytest.mark.parametrize(
    ("make", "name"),
    (
        (drifting, "drift"), (drifting_slowly, "drift"), (bimodal, "two speeds"), (bimodal_and_noisy, "two speeds"),
        (autocorrelated, "autocorrelation"),
    ),
)  # fmt: skip
def test_what_is_not_steady_is_called_so_and_by_its_name(
    make: Callable[[random.Random], list[Process]], name: str
) -> None:
    draw = random.Random(8)
    assert share(name in statistics.instability(make(draw)) for _ in range(RUNS)) >= 0.95


@pytest.mark.parametrize("outliers", (0.0, OUTLIERS))
@pytest.mark.parametrize(("between", "spread"), SPREADS)
def test_noise_is_hardly_ever_called_unsteady(between: float, spread: float, outliers: float) -> None:
    draw = random.Random(9)
    processes = ([process(draw, between, spread, outliers) for _ in range(5)] for _ in range(RUNS))
    assert share(bool(statistics.instability(one)) for one in processes) <= 0.05


# --- the summary


def test_outliers_are_counted_and_kept() -> None:
    steps = [100.0 + n % 5 for n in range(99)]
    summary = statistics.summarise([[[*steps, 300.0]]])
    assert summary is not None
    assert (summary.n, summary.outliers, summary.max, summary.median) == (100, 1, 300.0, 102.0)
    assert summary.mad == 1.0 and not summary.unstable
    assert (summary.p10, summary.p90) == (100.0, 104.0) and summary.p99 > 104.0
    assert summary.low <= summary.median <= summary.high


def test_the_first_step_stands_apart_and_a_lone_one_stays() -> None:
    assert statistics.steady([9.0, 1.0, 2.0]) == (1.0, 2.0)
    assert statistics.steady([9.0]) == (9.0,)
    assert statistics.summarise([[[]]]) is None


def test_warm_up_ends_when_three_images_agree() -> None:
    assert not statistics.warmed_up([1.0, 1.0])
    assert not statistics.warmed_up([1.5, 1.0, 1.0])
    assert statistics.warmed_up([1.5, 1.015, 1.0, 1.01])


def test_five_identical_processes_need_no_sixth() -> None:
    one = [[1.0 + 0.001 * (n % 3) for n in range(STEPS)]]
    assert not statistics.enough([one] * 4)
    assert statistics.enough([one] * 5)
    assert not statistics.enough([one] * 5, planned=8)


def test_students_t_is_the_one_of_the_tables() -> None:
    expected = {1: 12.706, 2: 4.303, 4: 2.776, 8: 2.306, 30: 2.042, math.inf: 1.960}
    assert {freedom: round(statistics.student(freedom), 3) for freedom in expected} == expected
    assert statistics.student(10, 0.99) == pytest.approx(3.169, abs=5e-4)


def test_an_interval_of_thousands_of_steps_is_counted_as_one_of_few() -> None:
    few, many = of_ranks_of(101), of_ranks_of(5001)
    assert (few.low, few.high) == (40, 60)  # from tables of the sign test
    assert 2430 - 2 <= many.low <= 2430 + 2 and many.low + many.high == 5000


def of_ranks_of(count: int) -> statistics.Interval:
    return statistics.of_ranks([float(number) for number in range(count)])
