"""Turns step times into figures you can trust; standard library only, so that any script can use this file alone.

A step's time varies from step to step, from image to image and from process to process. Steps of one process are not
independent, so intervals and comparisons count processes; nothing measured is ever dropped.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import mul

Image = Sequence[float]  # seconds of its steps, without the first
Process = Sequence[Image]

CONFIDENCE = 0.95
# Measuring until an interval is narrow stops too often where it is narrow by luck. Intervals of extended measurements
# are computed with this confidence instead: simulated, 94-95 % of them hold the true median.
EXTENDED = 0.97
HALF_WIDTH = 0.01  # of the median: measuring ends here
LEAST_PROCESSES, LEAST_STEPS, LEAST_IMAGES = 5, 20, 5
AGREEMENT, AGREEING = 0.02, 3  # warm-up ends once three image medians lie within 2 % of each other
OUTLIER = 3.5  # modified z, as Iglewicz and Hoaglin recommend
LEAST_RANKS = 6  # the extremes of fewer values hold their median less than 95 % of the time: too few for an interval
FEW_SPREAD = 0.1  # how far off the median of fewer steps may be: a guess
# What two processes of the same work may differ by. It stands in only where a single process cannot show it.
ASSUMED_SPREAD = 0.02


@dataclass(frozen=True, kw_only=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Seconds. `interval` says what the 95 % interval of the median counts: processes; images or steps of one."""

    n: int
    processes: int
    median: float
    low: float
    high: float
    interval: str
    p10: float
    p90: float
    p99: float
    mad: float
    min: float
    max: float
    outliers: int
    unstable: bool
    unstable_because: tuple[str, ...] = ()

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the median."""
        return (self.high - self.low) / 2 / self.median if self.median else math.inf


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Ratio(Estimate):
    """Candidate / baseline seconds. `verdict` is faster, slower or cannot-tell; reference where nothing is compared."""

    verdict: str
    assumed: bool = False  # a side had one process: ASSUMED_SPREAD stands for what it cannot show


def steady(steps: Sequence[float]) -> tuple[float, ...]:
    """An image's steps without its first, which also pays for what follows the prompt; a lone step stays."""
    return tuple(steps[1:]) if len(steps) > 1 else tuple(steps)


def by_process(images: Iterable[tuple[int, Sequence[float]]]) -> list[list[tuple[float, ...]]]:
    """Images, each with the number of its process, in the form used below: without first steps."""
    processes: dict[int, list[tuple[float, ...]]] = {}
    for number, steps in images:
        if steps:
            processes.setdefault(number, []).append(steady(steps))
    return list(processes.values())


def summarise(processes: Sequence[Process], planned: int | None = None) -> Summary | None:
    """Every figure of one configuration; None if nothing was measured. `planned`: see `interval`."""
    measured = _with_steps(processes)
    steps = [step for process in measured for image in process for step in image]
    if not steps:
        return None
    ordered = sorted(steps)
    middle = quantile(ordered, 0.5)
    bounds, unit = interval(measured, planned)
    because = instability(measured)
    return Summary(
        n=len(steps), processes=len(measured), median=middle,
        low=min(bounds.low, middle), high=max(bounds.high, middle),
        interval=unit, p10=quantile(ordered, 0.1), p90=quantile(ordered, 0.9), p99=quantile(ordered, 0.99),
        mad=deviation(ordered), min=ordered[0], max=ordered[-1], outliers=sum(outliers(ordered)),
        unstable=bool(because), unstable_because=because,
    )  # fmt: skip


def _with_steps(processes: Sequence[Process]) -> list[list[Image]]:
    """Without images that have none, and processes that have no such image."""
    measured = ([image for image in process if image] for process in processes)
    return [process for process in measured if process]


# --- order


def quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two neighbours, in proportion; `ordered` is sorted and not empty."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def deviation(values: Iterable[float]) -> float:
    """The median absolute deviation from the median."""
    values = list(values)
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def outliers(values: Sequence[float]) -> list[bool]:
    """Which values lie far from the rest. They are flagged, never dropped."""
    middle, mad = statistics.median(values), deviation(values)
    if mad == 0:
        return [False] * len(values)
    return [0.6745 * abs(value - middle) / mad > OUTLIER for value in values]


# --- the interval of the median


def interval(processes: Sequence[Process], planned: int | None = None) -> tuple[Interval, str]:
    """95 % interval of the median step, and what it counts. One process says nothing about the next one: then it
    counts images, or with fewer than three even steps, and holds within that process alone.

    `planned` units are measured in any case; further ones are added until the interval is narrow.
    """
    units, unit = _units(processes)
    if unit == "steps":
        return of_ranks(sorted(step for image in processes[0] for step in image)), unit
    least = planned or (LEAST_PROCESSES if unit == "processes" else LEAST_IMAGES)
    return of_means(units, EXTENDED if len(units) > least else CONFIDENCE), unit


def _units(processes: Sequence[Process]) -> tuple[list[float], str]:
    if len(processes) > 1:
        return [centre(process) for process in processes], "processes"
    images = [statistics.median(image) for image in processes[0]]
    return images, "images" if len(images) > 2 else "steps"


def centre(process: Process) -> float:
    return statistics.median([step for image in process for step in image])


def of_means(units: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's interval: medians of many steps each are close to normal, however skewed the steps are."""
    middle, error = statistics.fmean(units), statistics.stdev(units) / math.sqrt(len(units))
    reach = student(len(units) - 1, confidence) * error
    return Interval(low=middle - reach, high=middle + reach)


def of_ranks(ordered: Sequence[float]) -> Interval:
    """The two order statistics that a fair coin would put around the median; the extremes where there are few."""
    count = len(ordered)
    below, tail = 0, _coin_flips(count, 0)
    while below < count // 2 and tail + _coin_flips(count, below + 1) <= (1 - CONFIDENCE) / 2:
        below += 1
        tail += _coin_flips(count, below)
    return Interval(low=ordered[below], high=ordered[count - 1 - below])


def _coin_flips(count: int, heads: int) -> float:
    """Chance of so many heads; by logarithms, since a thousand steps have more orders than a float can count."""
    orders = math.lgamma(count + 1) - math.lgamma(heads + 1) - math.lgamma(count - heads + 1)
    return math.exp(orders - count * math.log(2))


# --- when to begin and when to end


def warmed_up(medians: Sequence[float]) -> bool:
    """Whether the newest three image medians agree within 2 %."""
    newest = medians[-AGREEING:]
    return len(newest) == AGREEING and max(newest) - min(newest) <= AGREEMENT * min(newest)


def enough(processes: Sequence[Process], planned: int = LEAST_PROCESSES) -> bool:
    """The stop rule: what was planned is measured, and the interval is within ±1 %. Of one process the units are
    its images; a configuration planned for several is not judged by its first."""
    measured = _with_steps(processes)
    if not measured:
        return False
    units, unit = _units(measured)
    if unit == "steps" or len(units) < planned or sum(map(len, (i for p in measured for i in p))) < LEAST_STEPS:
        return False
    bounds, _ = interval(measured, planned)
    return (bounds.high - bounds.low) / 2 <= HALF_WIDTH * statistics.fmean(units)


# --- two sets of processes


def compare(baseline: Sequence[Process], candidate: Sequence[Process]) -> Ratio:
    """The ratio of their medians by Welch's test on the logarithms of process medians."""
    sides = [_logarithms(baseline), _logarithms(candidate)]
    assumed = any(len(side) < 2 for side in sides)
    variances = [
        statistics.variance(side) / len(side) if len(side) > 1 else _assumed(processes)
        for side, processes in zip(sides, (baseline, candidate), strict=True)
    ]
    middle = statistics.fmean(sides[1]) - statistics.fmean(sides[0])
    reach = student(_freedom(sides, variances)) * math.sqrt(sum(variances))
    low, high = math.exp(middle - reach), math.exp(middle + reach)
    verdict = "slower" if low > 1 else "faster" if high < 1 else "cannot-tell"
    return Ratio(value=math.exp(middle), low=low, high=high, verdict=verdict, assumed=assumed)


def _assumed(processes: Sequence[Process]) -> float:
    """The variance of a lone process's logarithm: what is seen within it, and what is not seen between processes."""
    measured = [process for process in processes if any(process)]
    bounds, unit = interval(measured)
    if unit == "steps" and sum(map(len, measured[0])) < LEAST_RANKS:
        return FEW_SPREAD**2 + ASSUMED_SPREAD**2
    low, high = max(bounds.low, 1e-12), max(bounds.high, 1e-12)
    within = math.log(high / low) / 2 / student(math.inf)
    return float(within**2 + ASSUMED_SPREAD**2)


def _logarithms(processes: Sequence[Process]) -> list[float]:
    return [math.log(max(centre(process), 1e-12)) for process in processes if any(process)]


def _freedom(sides: Sequence[Sequence[float]], variances: Sequence[float]) -> float:
    """Welch and Satterthwaite's degrees of freedom; an assumed spread counts as known."""
    parts = sum(variance**2 / (len(side) - 1) for side, variance in zip(sides, variances, strict=True) if len(side) > 1)
    return sum(variances) ** 2 / parts if parts else math.inf


# --- whether one figure can describe the steps at all


def instability(processes: Sequence[Process]) -> tuple[str, ...]:
    """Why a single figure would mislead: drift, two speeds, or steps that follow their predecessors."""
    flat = [[step for image in process for step in image] for process in processes]
    flat = [steps for steps in flat if len(steps) >= 8]
    if not flat:
        return ()
    checks: tuple[tuple[str, Callable[[list[list[float]]], bool]], ...] = (
        ("drift", drifts), ("two speeds", bimodal), ("autocorrelation", autocorrelated),
    )  # fmt: skip
    return tuple(name for name, check in checks if check(flat))


_SURE = 3.3  # standard errors: chance does this once in a thousand runs


_APART = 3.4  # standard deviations of either group; the halves of a normal distribution lie 2.65 apart


def drifts(processes: Sequence[Sequence[float]]) -> bool:
    """A trend within processes, or from process to process, that is sure and amounts to more than 1 %."""
    score, variance = 0.0, 0.0
    rises = []
    for steps in processes:
        ranks, count = _ranks(steps), len(steps)
        score += _correlation(ranks, range(count)) * (count - 1)
        variance += count - 1  # a rank correlation's variance is 1 / (n - 1)
        third = max(1, count // 3)
        rises.append(statistics.median(steps[-third:]) / statistics.median(steps[:third]) - 1)
    if abs(score) / math.sqrt(variance) > _SURE and abs(statistics.fmean(rises)) > 0.01:
        return True
    return len(processes) >= LEAST_PROCESSES and _trend([statistics.median(steps) for steps in processes])


def _trend(medians: Sequence[float]) -> bool:
    """A straight line through process medians, tested as sharply as the trend within processes."""
    count = len(medians)
    fit = _correlation(medians, range(count))
    if fit * fit >= 1:
        return medians[0] != medians[-1]
    steep = abs(fit) * math.sqrt((count - 2) / (1 - fit * fit))
    slope = fit * statistics.stdev(medians) / statistics.stdev(range(count)) * (count - 1)
    return steep > student(count - 2, 0.99) and abs(slope) > 0.01 * statistics.fmean(medians)


def bimodal(processes: Sequence[Sequence[float]]) -> bool:
    """Two speeds within processes, or two kinds of processes. These differ a little anyway: there it takes 3 %."""
    return (
        _two_groups(_aligned(processes, 0.25), 0.01)
        or _two_groups(_aligned(processes, 0.75), 0.01)
        or _two_groups([step for steps in processes for step in steps], 0.03)
    )


def _aligned(processes: Sequence[Sequence[float]], share: float) -> list[float]:
    """Steps relative to a quantile of their process: a median or mean may itself lie between two speeds."""
    levels = [quantile(sorted(steps), share) or 1e-12 for steps in processes]
    return [step / level for steps, level in zip(processes, levels, strict=True) for step in steps]


def _two_groups(steps: Sequence[float], least: float) -> bool:
    """Two groups, each a tenth of the steps at least, with a valley between them and `least` apart."""
    ordered = sorted(steps)
    spare = tenth = len(ordered) // 10
    while True:  # what is split off and is less than a tenth are outliers; all of them together are less than that too
        split = _best_split(ordered)
        if split is None:
            return False
        smaller = min(split, len(ordered) - split)
        if smaller >= max(4, tenth):
            break
        if smaller > spare:
            return False
        spare -= smaller
        ordered = ordered[smaller:] if split == smaller else ordered[:-smaller]
    left, right = ordered[:split], ordered[split:]
    apart = statistics.fmean(right) - statistics.fmean(left)
    spread = math.sqrt((statistics.pvariance(left) + statistics.pvariance(right)) / 2)
    return apart > _APART * spread and apart > least * ordered[len(ordered) // 2] and _valley(left, right)


def _best_split(ordered: Sequence[float]) -> int | None:
    """Where cutting in two leaves the least spread within (Otsu's threshold)."""
    total, count = math.fsum(ordered), len(ordered)
    best, split, running = 0.0, None, 0.0
    for number, value in enumerate(ordered[:-1], 1):
        running += value
        between = (running * count - total * number) ** 2 / (number * (count - number))
        if between > best:
            best, split = between, number
    return split


def _valley(left: Sequence[float], right: Sequence[float]) -> bool:
    """Fewer steps midway between the groups than half of what stands around either."""
    low, high = statistics.median(left), statistics.median(right)
    reach = (high - low) / 6
    around = [
        sum(1 for value in (*left, *right) if abs(value - middle) <= reach) for middle in (low, (low + high) / 2, high)
    ]
    return around[1] * 2 < min(around[0], around[2])


def autocorrelated(processes: Sequence[Sequence[float]]) -> bool:
    """Slow steps follow slow ones more than chance would have it."""
    score, total = 0.0, 0
    for steps in processes:
        ranks, count = _ranks(steps), len(steps)
        score += _correlation(ranks[:-1], ranks[1:]) * count + 1  # of noise it is expected at -1/n
        total += count
    return score / math.sqrt(total) > _SURE and score / total > 0.2


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks, so that a single slow step cannot pass for a trend; ties share theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    first = 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for index in order[first : last + 1]:
            ranks[index] = (first + last) / 2
        first = last + 1
    return ranks


def _correlation(left: Sequence[float], right: Sequence[float]) -> float:
    middle_left, middle_right = math.fsum(left) / len(left), math.fsum(right) / len(right)
    a = [value - middle_left for value in left]
    b = [value - middle_right for value in right]
    size = math.sqrt(sum(map(mul, a, a)) * sum(map(mul, b, b)))
    return sum(map(mul, a, b)) / size if size else 0.0


# --- Student's t


def student(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Its two-sided quantile."""
    if freedom == math.inf:
        return statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    return _student(math.floor(freedom * 20) / 20, confidence)  # rounded down: a little wider, and cached


@functools.lru_cache(maxsize=4096)
def _student(freedom: float, confidence: float) -> float:
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        if _within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, freedom: float) -> float:
    """The chance of lying within ±t: 1 - I(freedom / (freedom + t²); freedom/2, 1/2)."""
    x = freedom / (freedom + t * t)
    return 1 - _beta(x, freedom / 2, 0.5)


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function by its continued fraction (Lentz)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x > (a + 1) / (a + b + 2):
        return 1 - front * _fraction(1 - x, b, a) / b
    return front * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d or tiny)
    value = d
    for m in range(1, 300):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + step * d) or tiny)
            c = (1 + step / c) or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value
