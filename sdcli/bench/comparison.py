"""Two results compared: faster, slower or cannot tell, as `sdcli.bench-compare/1`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sdcli.bench import statistics
from sdcli.bench.result import ANOTHER, BenchResult, Case, Work
from sdcli.bench.screen import ratio_text
from sdcli.bench.statistics import Estimate
from sdcli.errors import BadFile, Usage
from sdcli.terminal import show

THRESHOLD = 0.03
ADVICE = "sdcli bench compare --run sdcli --run OTHER/sdcli"


@dataclass(frozen=True, kw_only=True)
class ComparedCase:
    """Candidate / baseline seconds of what both measured."""

    name: str
    ratio: Estimate
    verdict: str  # faster | slower | cannot-tell
    assumed: bool  # see statistics.Ratio


@dataclass(frozen=True, kw_only=True)
class Comparison:
    schema: str = "sdcli.bench-compare/1"
    verdict: str
    threshold: float
    failed: bool
    rows: tuple[ComparedCase, ...]
    contended: bool
    error: Mapping[str, Any] | None = None


def comparison(baseline: BenchResult, candidate: BenchResult, threshold: float, here: bool = False) -> Comparison:
    """Ratios of what both measured. Refuses different work or machines; `here`: both are from this machine."""
    _refuse_other_work(baseline.work, candidate.work, _same_work(baseline.work) if here else ADVICE)
    if not here:
        _refuse_other_machine(baseline, candidate)
    rows = tuple(_compared(name, one, other) for name, one, other in _pairs(baseline, candidate))
    if not rows:
        raise BadFile("the two results have no measured configuration in common", hint=ANOTHER)
    verdicts = [row.verdict for row in rows]
    return Comparison(
        verdict=next((verdict for verdict in ("slower", "cannot-tell") if verdict in verdicts), "faster"),
        threshold=threshold,
        failed=any(row.verdict == "slower" and row.ratio.value > 1 + threshold for row in rows),
        rows=rows,
        contended=baseline.contended or candidate.contended,
    )


def _compared(name: str, one: Case, other: Case) -> ComparedCase:
    ratio = statistics.compare(one.processes(), other.processes())
    estimate = Estimate(value=ratio.value, low=ratio.low, high=ratio.high)
    return ComparedCase(name=name, ratio=estimate, verdict=ratio.verdict, assumed=ratio.assumed)


def _pairs(baseline: BenchResult, candidate: BenchResult) -> list[tuple[str, Case, Case]]:
    """By name; two single configurations are compared whatever their names."""
    ours = [case for case in baseline.configurations if case.processes()]
    theirs = {case.name: case for case in candidate.configurations if case.processes()}
    if len(ours) == 1 and len(theirs) == 1:
        (other,) = theirs.values()
        return [(other.name, ours[0], other)]
    return [(case.name, case, theirs[case.name]) for case in ours if case.name in theirs]


def _same_work(work: Work) -> str:
    """The command with the work spelled out for both programs, since their defaults may differ."""
    size, sampler = f"{work.width}x{work.height}", show(work.sampler, 40)
    return f'{ADVICE} -s {work.steps} -g {work.guidance} --size {size} --sampler "{sampler}"'


def _refuse_other_work(baseline: Work, candidate: Work, advice: str) -> None:
    if baseline.key == candidate.key:
        return
    both = [(field.name, getattr(baseline, field.name), getattr(candidate, field.name)) for field in fields(Work)]
    unlike = [(name, one, other) for name, one, other in both if name != "key" and one != other]
    listed = "; ".join(f"{name} {show(one, 60)} against {show(other, 60)}" for name, one, other in unlike[:3])
    raise Usage(
        f"the two results measured different work ({listed or 'another prompt'}) and cannot be compared", hint=advice
    )


def _refuse_other_machine(baseline: BenchResult, candidate: BenchResult) -> None:
    if baseline.environment["machine"] == candidate.environment["machine"]:
        return
    one, other = (show(str(result.environment.get("device")), 40) for result in (baseline, candidate))
    machines = f"{one} and {other}" if one != other else f"two machines with {one}"
    raise Usage(f"the two results come from {machines}; measure both on one machine", hint=ADVICE)


def merged(results: Sequence[BenchResult]) -> BenchResult:
    """Several single-process results of the same work as one result with that many processes."""
    first = results[0]
    cases = []
    for index, case in enumerate(first.configurations):
        runs = [
            replace(run, process=number)
            for number, result in enumerate(results)
            for run in result.configurations[index].runs
        ]
        cases.append(replace(case, runs=tuple(runs)))
    contended = any(result.contended for result in results)
    return replace(first, configurations=tuple(cases), contended=contended)


def lines(compared: Comparison) -> list[str]:
    words = {"faster": "faster", "slower": "slower", "cannot-tell": "cannot tell"}
    out = []
    for row in compared.rows:
        assumed = "; one process on a side, so a spread of 2 % between processes is assumed" if row.assumed else ""
        out.append(f"{show(row.name, 40)}: {ratio_text(row.ratio)} {words[row.verdict]}{assumed}")
    if compared.contended:
        out.append("the machine was busy with other programs: see `reasons` in the results")
    return out
