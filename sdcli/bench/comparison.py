"""Two results held against each other: faster, slower or cannot tell, as `sdcli.bench-compare/1`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcli import schema
from sdcli.bench import result as results
from sdcli.bench import statistics
from sdcli.bench.result import Result
from sdcli.bench.screen import ratio_text
from sdcli.errors import BadFile, Usage
from sdcli.terminal import show

THRESHOLD = 0.03
ADVICE = "sdcli bench compare --run sdcli --run OTHER/sdcli"
_SAID = {"width": "size", "height": "size"}


def comparison(baseline: Result, candidate: Result, threshold: float, here: bool = False) -> Result:
    """Ratios of what both measured. Other work is refused, and another machine; `here`: measured on this one."""
    _refuse_other_work(baseline, candidate, _same_work(baseline["work"]) if here else ADVICE)
    if not here:
        _refuse_other_machine(baseline, candidate)
    rows = [_row(name, one, other) for name, one, other in _pairs(baseline, candidate)]
    if not rows:
        raise BadFile(
            "the two results have no measured configuration in common", hint="sdcli bench --quick --save new.json"
        )
    failed = any(row["verdict"] == "slower" and row["ratio"]["value"] > 1 + threshold for row in rows)
    verdicts = [row["verdict"] for row in rows]
    verdict = "slower" if "slower" in verdicts else "cannot-tell" if "cannot-tell" in verdicts else "faster"
    return {
        "schema": "sdcli.bench-compare/1",
        "verdict": verdict,
        "threshold": threshold,
        "failed": failed,
        "rows": rows,
        "contended": bool(baseline["contended"] or candidate["contended"]),
    }


def _row(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Result:
    found = schema.to_json(statistics.compare(results.processes(one), results.processes(other)))
    return {
        "name": name,
        "ratio": {key: found[key] for key in ("value", "low", "high")},
        "verdict": found["verdict"],
        "assumed": found["assumed"],
    }


def _pairs(baseline: Result, candidate: Result) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """By name; two single configurations are meant for each other whatever they are called."""
    ours = [one for one in baseline["configurations"] if results.processes(one)]
    theirs = {one["name"]: one for one in candidate["configurations"] if results.processes(one)}
    if len(ours) == 1 and len(theirs) == 1:
        (other,) = theirs.values()
        return [(other["name"], ours[0], other)]
    return [(one["name"], one, theirs[one["name"]]) for one in ours if one["name"] in theirs]


def _same_work(work: Mapping[str, Any]) -> str:
    """Both programs told what to draw: what one of them takes for granted, the other may not."""
    size, sampler = f"{work.get('width')}x{work.get('height')}", show(work.get("sampler"), 40)
    return f'{ADVICE} -s {work.get("steps")} -g {work.get("guidance")} --size {size} --sampler "{sampler}"'


def _refuse_other_work(baseline: Result, candidate: Result, advice: str) -> None:
    if baseline["work"]["key"] == candidate["work"]["key"]:
        return
    names = [name for name in baseline["work"] if name != "key"]
    apart = [name for name in names if baseline["work"].get(name) != candidate["work"].get(name)]
    said = "; ".join(
        f"{name} {show(baseline['work'].get(name), 60)} against {show(candidate['work'].get(name), 60)}"
        for name in apart[:3]
    )
    raise Usage(
        f"the two results measured other work ({said or 'another prompt'}), which no ratio can compare", hint=advice
    )


def _refuse_other_machine(baseline: Result, candidate: Result) -> None:
    if baseline["environment"]["machine"] == candidate["environment"]["machine"]:
        return
    names = [show(str(one["environment"].get("device")), 40) for one in (baseline, candidate)]
    told = f"{names[0]} and {names[1]}" if names[0] != names[1] else f"two machines with {names[0]}"
    raise Usage(f"the two results come from {told}: measure both on one machine", hint=ADVICE)


def merged(results_of_one: list[Result]) -> Result:
    """Several single-process results of the same work as one result with that many processes."""
    first = results_of_one[0]
    configurations = []
    for place, one in enumerate(first["configurations"]):
        runs = [
            {**run, "process": number}
            for number, result in enumerate(results_of_one)
            for run in result["configurations"][place]["runs"]
        ]
        configurations.append({**one, "runs": runs})
    contended = any(result["contended"] for result in results_of_one)
    return {**first, "configurations": configurations, "contended": contended}


def lines(found: Result) -> list[str]:
    out = []
    words = {"faster": "faster", "slower": "slower", "cannot-tell": "cannot tell"}
    for row in found["rows"]:
        assumed = "; one process on a side, so a spread of 2 % between processes is assumed" if row["assumed"] else ""
        out.append(f"{show(row['name'], 40)}: {ratio_text(row['ratio'])} {words[row['verdict']]}{assumed}")
    if found["contended"]:
        out.append("the machine was busy with other things: see `reasons` in the results")
    return out
