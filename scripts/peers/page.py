"""What the record says: goals judged, and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.peers.peer import GUIDANCE, PROMPT, STRENGTH
from scripts.peers.turns import OURS, PEERS, Record
from sdcli.bench import statistics
from sdcli.bench.statistics import Process, Ratio
from sdcli.bench.surroundings import FOREIGN_SHARE

TITLES = {"sd15": "SD 1.5", "sdxl": "SDXL"}
WHOLE_STEPS = 20  # that whole images are judged by

Run = dict[str, Any]


@dataclass(frozen=True)
class Column:
    title: str
    of: Callable[[Run], Sequence[float]]  # seconds in one process


COLUMNS = {
    "step": Column("a step", lambda run: run["steps"]),
    "first": Column("the first step", lambda run: [run["first"]]),
    "decode": Column("decode", lambda run: [run["decode"]]),
    "load": Column("load", lambda run: [run["load"]]),
    "whole": Column("from start to file", lambda run: [run["seconds"]]),
}


@dataclass(frozen=True)
class Goal:
    """How many times sdcli's seconds a peer is to take, at least."""

    column: str
    peer: str
    least: float

    @property
    def text(self) -> str:
        return f"{COLUMNS[self.column].title}: {self.peer} takes ≥ {self.least:.2f} × sdcli's seconds"


GOALS = (
    Goal("step", "openvino-bf16", 1.0),
    Goal("step", "diffusers-fp32", 3.2),
    Goal("step", "diffusers-bf16", 1.45),
    Goal("decode", "diffusers-fp32", 3.0),
    Goal("load", "diffusers-fp32", 5.0),
    Goal("load", "diffusers-bf16", 2.0),
    Goal("whole", "diffusers-fp32", 3.5),
    Goal("whole", "stable-diffusion.cpp", 8.0),
)


# --- figures


def processes(runs: Sequence[Run], column: str) -> list[Process]:
    measured = [COLUMNS[column].of(run) for run in runs]
    return [[seconds] for seconds in measured if seconds]


def ratio(case: dict[str, Any], peer: str, column: str) -> Ratio | None:
    """The peer's seconds to sdcli's."""
    ours, theirs = (processes(case["runs"].get(name, ()), column) for name in (OURS.name, peer))
    return statistics.compare(ours, theirs) if ours and theirs else None


def seen(record: Record, case: dict[str, Any], goal: Goal) -> Ratio | None:
    """None where nothing can be judged: not run, or not what the goal is about."""
    of = record["of"]
    if of["tiny"] or (goal.column == "whole" and of["steps"] != WHOLE_STEPS):
        return None
    return ratio(case, goal.peer, goal.column)


def verdict(record: Record, case: dict[str, Any], goal: Goal) -> str:
    found = seen(record, case, goal)
    if found is None:
        return "not judged"
    return f"{'reached: ' if found.value >= goal.least else ''}{_ratio(found)}"


def _ratio(found: Ratio) -> str:
    return f"{found.value:.2f} ({found.low:.2f}–{found.high:.2f})"


def _seconds(runs: Sequence[Run], column: str) -> str:
    found = statistics.summarise(processes(runs, column))
    if found is None:
        return "–"
    digits = 3 if found.median < 1 else 2
    interval = f" ({max(0.0, found.low):.{digits}f}–{found.high:.{digits}f})" if found.processes > 1 else ""
    return f"{found.median:.{digits}f}{interval}"


# --- the page


def page(record: Record) -> str:
    cases = record["cases"]
    from_prompts = {name: case for name, case in cases.items() if len(name.split(" ")) == 2}
    lines = [
        "# Seconds of an image on a CPU: sdcli beside its peers",
        "",
        "Written by `python -m scripts.record_peers`; nothing is edited by hand. " + _circumstances(record),
        "",
        *_doubts(record),
        "## Goals",
        "",
        "| | " + " | ".join(map(title, from_prompts)) + " |",
        "| --- |" + " --- |" * len(from_prompts),
        *[
            f"| {goal.text} | {' | '.join(verdict(record, case, goal) for case in from_prompts.values())} |"
            for goal in GOALS
        ],
    ]
    lines += _modes(record)
    for name, case in cases.items():
        lines += ["", f"## {title(name)}", "", *_table(case), *_remarks(case)]
    return "\n".join([*lines, "", *_method(record)]) + "\n"


def title(case: str) -> str:
    family, size, *mode = case.split(" ")
    return ", ".join([TITLES[family], size.replace("x", "×"), *[_MODES[name] for name in mode]])


_MODES = {"image": f"from an image (strength {STRENGTH})", "control": "with a ControlNet", "reference": "like an image"}


def _modes(record: Record) -> list[str]:
    """What each mode costs beside drawing from a prompt, and how far ahead of diffusers' pipeline it is."""
    cases, lines = record["cases"], list[str]()
    for name, case in cases.items():
        plain = cases.get(" ".join(name.split(" ")[:2]))
        if plain is None or plain is case:
            continue
        ours = [processes(one["runs"].get(OURS.name, ()), "step") for one in (plain, case)]
        cost = statistics.compare(*ours) if all(ours) else None
        ahead = [ratio(one, "diffusers-bf16", "step") for one in (case, plain)]
        cells = [_ratio(each) if each else "–" for each in (cost, *ahead)]
        lines.append(f"| {title(name)} | {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "",
        "## Modes",
        "",
        "| | sdcli's step, in steps from a prompt | diffusers-bf16's step, in sdcli's | the same from a prompt |",
        "| --- | --- | --- | --- |",
        *lines,
    ]


def _circumstances(record: Record) -> str:
    of = record["of"]
    tiny = "**The models are tiny ones: nothing here means anything.** " if of["tiny"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in of["versions"].items())
    return (
        f"{tiny}{' and '.join(record['dates'])}; {of['processor']}, {of['threads']} cores, {of['isa']}, "
        f"{of['system']}; Python {of['python']}, {packages}; sdcli at {of['sdcli'] or 'an installed version'}."
    )


def _doubts(record: Record) -> list[str]:
    runs = [run for case in record["cases"].values() for runs in case["runs"].values() for run in runs]
    shares = [run["others"] for run in runs if run["others"] is not None]
    loads = "; ".join(" and ".join("–" if load is None else f"{load:.2f}" for load in pair) for pair in record["load"])
    lines = [f"Load (1 minute) before and after: {loads}.", ""]
    if shares:
        lines[0] += f" Other programs took at most {max(shares):.0%} of the processor during a run."
    if max(shares, default=0) > FOREIGN_SHARE:
        lines += ["**The machine was busy: do not cite these seconds.**", ""]
    return lines


def _table(case: dict[str, Any]) -> list[str]:
    titles = [column.title for column in COLUMNS.values()]
    lines = ["| | " + " | ".join([*titles, "peak GB"]) + " |", "| --- |" + " --- |" * (len(titles) + 1)]
    for peer in PEERS:
        runs = case["runs"].get(peer.name)
        if runs:
            cells = [_cell(case, peer.name, column) for column in COLUMNS]
            peak = max(run["peak"] for run in runs) / 1e9
            lines.append(f"| {peer.name} ({runs[0]['dtype']}) | {' | '.join(cells)} | {peak:.2f} |")
    return lines


def _cell(case: dict[str, Any], peer: str, column: str) -> str:
    seconds = _seconds(case["runs"][peer], column)
    found = None if peer == OURS.name else ratio(case, peer, column)
    return seconds if found is None else f"{seconds}<br>×{_ratio(found)}"


def _remarks(case: dict[str, Any]) -> list[str]:
    lines = []
    for peer in PEERS:
        once = case["prepared"].get(peer.name)
        if once and peer.prepared:
            lines.append(
                f"- {peer.name}: {peer.prepared} once, in {once['seconds']:.0f} s and {once['peak'] / 1e9:.1f} GB."
            )
        if peer.name in case["failed"]:
            lines.append(f"- {peer.name} failed: {case['failed'][peer.name]}")
    return ["", *lines] if lines else []


def _method(record: Record) -> list[str]:
    turns = max((len(runs) for case in record["cases"].values() for runs in case["runs"].values()), default=0)
    played = {name for case in record["cases"].values() for name in case["runs"]}
    left_out = {
        peer.name: record["missing"].get(peer.name, "it did not run") for peer in PEERS if peer.name not in played
    }
    full = "" if record["of"]["tiny"] else " of full size"
    return [
        "## What was run",
        "",
        f"Every row draws “{PROMPT}” on the same random weights{full}: the same seed number, "
        f"{record['of']['steps']} steps of DPM++ 2M Karras, guidance {GUIDANCE:.1f}, one image. A turn is one process "
        f"of every row, one after the other, in an order that moves on with every turn; turns: {turns}. Figures are "
        "seconds: medians, in brackets their 95 % intervals, which count processes; `×` is how many times sdcli's "
        "seconds that is.",
        "",
        "- a step: the UNet with and without the prompt, guidance and sampler; the first of an image is apart;",
        "- load: from a program that has imported everything to a model that is ready, with its files in the system's "
        "cache (they are read just before it starts);",
        "- decode: from the end of the last step to the image;",
        "- from start to file: from the start of the process to its end, the PNG on the disk, imports included;",
        "- peak: the most resident memory (VmHWM) of any of these processes.",
        "",
        *[f"- **{peer.name}**: {peer.how}." for peer in PEERS if peer.name in played],
        *[f"- **{name}** is left out: {why}." for name, why in left_out.items()],
    ]
