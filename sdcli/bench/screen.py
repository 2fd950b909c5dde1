"""A result as lines of text: one configuration in full, several as a table, and the sentence on the method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdcli.bench import result as results
from sdcli.bench import statistics
from sdcli.bench.result import BenchResult, Case
from sdcli.bench.statistics import Estimate, Summary
from sdcli.terminal import cells, counted, fit, folded, show, size_text

BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "_.,:;=*#"
INTERVALS = {
    "processes": "95 % interval",
    "images": "95 % interval within one process",
    "steps": "95 % interval within one image",
}


def render(result: BenchResult, width: int = 80, ascii: bool = False) -> list[str]:
    """The whole screen."""
    alone = result.measured[0] if len(result.configurations) == 1 and result.measured else None
    figures = _single(alone, ascii) if alone else _table(result, width, ascii)
    lines = [_head(result), "", *figures, *_trust(result, alone), _ending(result)]
    return [piece for line in lines for piece in _folded(line, width)]


def _folded(line: str, width: int) -> list[str]:
    """A line that is too long continues below, indented."""
    if cells(line) <= width:
        return [line]
    below = " " * (10 if line.startswith("  ") else 2)
    return folded(line, width, rest=below)


# --- one figure


def interval_text(step: Summary, unit: bool = True) -> str:
    if not has_interval(step):
        return "too few steps for an interval"
    if unit:
        return f"{time_text(step.low)} – {time_text(step.high)}"
    low, high = (_number_in(seconds, step.median) for seconds in (step.low, step.high))
    return f"{INTERVALS[step.interval]} {low}–{high}"


def has_interval(step: Summary) -> bool:
    return step.interval != "steps" or step.n >= statistics.LEAST_RANKS


def time_text(seconds: float) -> str:
    """Four figures, in the unit that needs no zeros: 101.3 ms, 2.604 s, 84.20 µs."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        value = seconds * scale
        if value >= 1:
            return f"{value:.{max(0, 3 - int(math.log10(value)))}f} {unit}"
    return f"{seconds * 1e6:.3f} µs"


def _number_in(seconds: float, like: float) -> str:
    """`seconds` in the unit of `like`, without naming it."""
    unit = time_text(like).rpartition(" ")[2]
    scale = {"s": 1.0, "ms": 1e3, "µs": 1e6}[unit]
    digits = len(time_text(like).split()[0].partition(".")[2])
    return f"{seconds * scale:.{digits}f}"


def rate_text(rate: float) -> str:
    for unit, scale in (("TFLOP/s", 1e12), ("GFLOP/s", 1e9), ("MFLOP/s", 1e6)):
        value = rate / scale
        if value >= 1:
            return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.4g} {unit}"
    return f"{rate:,.0f} FLOP/s"


def work_text(operations: float) -> str:
    return rate_text(operations).removesuffix("/s")


def share_text(share: float) -> str:
    return f"{share * 100:.0f} %" if share >= 0.1 else f"{share * 100:.2g} %"


def seconds_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def ratio_text(ratio: Estimate) -> str:
    return f"×{ratio.value:.3f} ({ratio.low:.3f}–{ratio.high:.3f})"


def likeness_text(case: Case) -> str:
    image = case.image
    if case.reference:
        return "reference"
    if image.identical:
        return "identical"
    if image.psnr is None:
        return "–"
    return f"{image.psnr:.0f} dB{', lossy' if image.lossy else ''}"


def failure_text(case: Case) -> str:
    """Why the case was not measured."""
    return show(case.error["message"], 120) if case.error else "not measured"


def figures(case: Case) -> dict[str, str]:
    """The cells of a measured case in saved tables, by heading."""
    step = case.summary
    ratio = "1" if case.reference else ratio_text(case.ratio) if case.ratio else ""
    return {
        "step": time_text(step.median), "95 % interval": interval_text(step), "ratio": ratio,
        "image": likeness_text(case), "memory": size_text(case.peak) if case.peak else "",
        "p10": time_text(step.p10), "p90": time_text(step.p90), "p99": time_text(step.p99), "n": str(step.n),
    }  # fmt: skip


# --- the head


def _head(result: BenchResult) -> str:
    work = result.work
    line = (
        f"{show(work.model, 40)} · {work.width}×{work.height}, batch {work.batch_size}, "
        f"{work.steps} steps {work.sampler} · {show(result.environment.get('device') or 'cpu', 40)}"
    )
    setup = result.configurations[0].setup
    if len(result.configurations) == 1 and setup:
        line += f", {setup['dtype']}" + ("" if setup["placement"] == "resident" else f", {setup['placement']}")
    return line


# --- one configuration

_PHASES = (("encode", "encode"), ("steps", "denoise"), ("decode", "decode"), ("save", "save"))


def _single(case: Case, ascii: bool) -> list[str]:
    step, rates = case.summary, case.rates
    p10, p90, p99, mad, first = (
        _number_in(seconds, step.median) if seconds is not None else "–"
        for seconds in (step.p10, step.p90, step.p99, step.mad, case.first_step_seconds)
    )
    phases = "  ".join(f"{shown} {seconds_text(getattr(case.phases, name))}" for shown, name in _PHASES)
    image = seconds_text(1 / rates.images_per_second if rates.images_per_second else None)
    return [
        _warm_up(case),
        "",
        f"  step    {time_text(step.median)}   {interval_text(step, unit=False)}   {_steps_per_second(case)}",
        f"          p10 {p10}  p90 {p90}  p99 {p99}  MAD {mad}   first step {first} apart",
        f"          {histogram(case.steps(), ascii)}",
        f"          n {step.n} in {counted(step.processes, 'process')}, {counted(step.outliers, 'outlier')} kept",
        *_work(case),
        f"  image   {image} s     {phases}",
        _cold(case),
        *_memory(case),
    ]


def _warm_up(case: Case) -> str:
    images = [
        statistics.steady(run.step_seconds) for run in case.runs if run.process == 0 and run.warmup and run.step_seconds
    ]
    if not images:
        return "no warm-up: time was up after the first image"
    medians = " ".join(time_text(sorted(steps)[len(steps) // 2]).split()[0] for steps in images[-4:])
    unit = time_text(case.summary.median).split()[1]
    state = "steady" if case.warmup_stable else "not yet steady when time was up"
    return f"warm-up: {counted(len(images), 'image')}, medians {medians} {unit}: {state}"


def _steps_per_second(case: Case) -> str:
    rate = case.rates.steps_per_second
    return f"{rate:,.0f} steps/s" if rate and rate >= 1000 else f"{rate:.3g} steps/s" if rate else ""


def histogram(steps: Sequence[float], ascii: bool = False) -> str:
    """How often each time occurred, as a row of bars from the shortest to the longest."""
    low, high = min(steps), max(steps)
    bars = _bars(steps, low, high, 24, ascii)
    return f"{bars}  {_number_in(low, low)} ▸ {_number_in(high, low)} {time_text(low).split()[1]}"


def _bars(steps: Sequence[float], low: float, high: float, bins: int, ascii: bool) -> str:
    marks = PLAIN_BARS if ascii else BARS
    counts = [0] * bins
    for step in steps:
        bin_ = int((step - low) / (high - low) * bins) if high > low else 0
        counts[min(bin_, bins - 1)] += 1
    most = max(counts)
    return "".join(" " if not count else marks[max(0, math.ceil(count / most * len(marks)) - 1)] for count in counts)


def _work(case: Case) -> list[str]:
    rate = case.work_rate
    if not rate.flops_per_second or not rate.ceiling or not rate.share:
        return []
    operations = rate.flops_per_second * case.summary.median
    best = f"{rate_text(rate.ceiling)} reached here at best in {case.setup['dtype']}"
    lines = [
        f"  work    {work_text(operations)} a step = {rate_text(rate.flops_per_second)}",
        f"          {share_text(rate.share)} of the {best}",
    ]
    if case.launch_bound is not None:
        lines.append(f"          the GPU waits for launches {case.launch_bound * 100:.0f} % of a step")
    return lines


def _cold(case: Case) -> str:
    firsts = sorted(run.seconds for run in case.runs if run.image == 0)
    phases, first_image = case.phases, firsts[len(firsts) // 2]
    total = phases.cold_total or 0.0
    once = sum(seconds or 0.0 for seconds in (phases.import_, phases.load, phases.compile))
    rest = max(0.0, total - once - first_image)
    compiled = {"compile, at most": phases.compile} if phases.compile is not None else {}
    parts = {"import": phases.import_, "load": phases.load, **compiled, "first image": first_image, "rest": rest}
    listed = "  ".join(f"{name} {seconds_text(value)}" for name, value in parts.items())
    return f"  cold    {seconds_text(phases.cold_total)} s     {listed}"


def _memory(case: Case) -> list[str]:
    measured, predicted = case.peaks
    if measured is None:
        return []
    line = f"  memory  {size_text(measured)}"
    if predicted is not None and case.memory.ratio:
        line += f"   predicted {size_text(predicted)} ({(case.memory.ratio - 1) * 100:+.0f} %)"
    if not case.on_cpu and case.memory.measured.host_peak:
        line += f"   host RAM {size_text(case.memory.measured.host_peak)}"
    return [line]


# --- several


def _table(result: BenchResult, width: int, ascii: bool) -> list[str]:
    cases, best = result.configurations, results.best(result)
    keys = list(dict.fromkeys(key for case in cases for key in case.options))
    names = [show(" ".join(case.options.get(key, "") for key in keys) or case.name, 60) for case in cases]
    head = show(" ".join(keys) or "configuration", 60)
    room = min(max(8, width - 61), max(cells(name) for name in (head, *names)))
    lines = [f"  {fit(head, room):<{room}}  {'step':>9}  {'ratio':<21} {'memory':>8}  image"]
    for case, name in zip(cases, names, strict=True):
        lines.append(f"  {fit(name, room):<{room}}  " + _cells(case))
    lines += ["", *_strips(list(zip(names, cases, strict=True)), width, ascii)]
    if any(case.ratio is not None and case.ratio.assumed for case in cases):
        lines.append("one process each: ratios assume that processes differ by 2 %")
    if best is not None and len(cases) > 1:
        sure = best.reference or (best.ratio is not None and best.ratio.verdict == "faster")
        unsure = "" if sure else ", though not certain"
        lines.append(f"fastest with the same image{unsure}: {best.flags or 'no flags needed'}")
    unsteady = [case for case in result.measured if case.summary.unstable]
    lines += [f"not steady: {show(case.name, 40)} ({', '.join(case.summary.unstable_because)})" for case in unsteady]
    return lines


def _strips(named: Sequence[tuple[str, Case]], width: int, ascii: bool) -> list[str]:
    """Each case's steps on one scale; the last bar includes everything beyond it."""
    measured = [(name, case.steps(), case.step) for name, case in named if case.step]
    if len(measured) < 2:
        return []
    low = min(step.min for _, _, step in measured)
    high = max(max(step.p99, step.median) for _, _, step in measured)
    room = min(max(8, width - 61), max(cells(name) for name, _, _ in measured))
    bins = min(50, max(10, width - room - 6))
    strips = [f"  {fit(name, room):<{room}}  {_bars(steps, low, high, bins, ascii)}" for name, steps, _ in measured]
    left, right = time_text(low), time_text(high)
    scale = f"  {'':<{room}}  {left}{right:>{max(1, bins - cells(left))}}"
    return [*(strip.rstrip() for strip in strips), scale, ""]


def _cells(case: Case) -> str:
    if case.error:
        return f"not measured: {show(case.error['message'], 200)}"
    if not case.step:
        return "not measured: time was up"
    spread = "reference" if case.reference else ratio_text(case.ratio) if case.ratio else ""
    memory = size_text(case.peak) if case.peak else "–"
    return f"{time_text(case.step.median):>9}  {spread:<21} {memory:>8}  {likeness_text(case)}"


# --- trust


def _trust(result: BenchResult, alone: Case | None) -> list[str]:
    reasons = show("; ".join(result.reasons), 200)
    lines = [f"  trust   {f'contended: {reasons}' if reasons else f'quiet: {_quiet(result.environment)}'}"]
    if alone is not None and alone.summary.unstable:
        lines.append(f"          not steady: {', '.join(alone.summary.unstable_because)}")
    return lines


def _quiet(about: Mapping[str, Any]) -> str:
    """What was checked, as far as this machine reports it."""
    share, gpus = about.get("foreign_share"), about.get("cards") or []
    checks = [f"other programs took {share * 100:.0f} % of the processor"] if share is not None else []
    if gpus:
        checks.append("no other GPU user, not throttled")
    clocks = [gpu["clock_mhz"] for gpu in gpus] or [clock["mhz"] for clock in about.get("clocks") or []]
    gigahertz = [clock / 1000 for clock in clocks if clock]
    if gigahertz:
        low, high = f"{min(gigahertz):.2f}", f"{max(gigahertz):.2f}"
        checks.append(f"{low} GHz" if low == high else f"{low} to {high} GHz")
    return ", ".join(checks) or "no sign of other load"


def _ending(result: BenchResult) -> str:
    spent = f"{result.seconds:.0f} s"
    if result.stopped_by == "interval":
        return f"stopped {_widest(result)} after {spent}"
    if result.stopped_by == "limit":
        return f"stopped after {spent} at the limit on processes and images, {_widest(result)}"
    if result.stopped_by == "interrupted":
        return f"interrupted after {spent}; what was measured is above"
    return f"stopped by --max-time after {spent}, {_widest(result)}"


def _widest(result: BenchResult) -> str:
    steps = [case.summary for case in result.measured]
    widths = [step.half_width for step in steps if step.median and has_interval(step)]
    return f"at ±{max(widths) * 100:.1f} %" if widths else "with too few steps for an interval"


# --- to paste


def methods(result: BenchResult) -> str:
    """The sentence on the method, for quoting the figures."""
    work, about = result.work, result.environment
    steps = [case.summary for case in result.measured]
    processes = max((step.processes for step in steps), default=0)
    unit = steps[0].interval if steps else "processes"
    how = (
        f"{processes} processes per configuration, started in turn; 95 % intervals are Student's on process medians"
        if unit == "processes"
        else "one process per configuration, with too few steps for intervals"
        if not any(map(has_interval, steps))
        else f"one process per configuration; 95 % intervals count its {unit} and hold within that process only"
    )
    state = "on a busy machine" if result.contended else "on a quiet machine"
    warm = (
        "after a warm-up until three image medians agreed within 2 %"
        if all(case.warmup_stable for case in result.measured)
        else "after a warm-up whose image medians did not all agree within 2 %"
    )
    text = (
        f"Measured with sdcli {result.version} ({results.machine_text(about)}, "
        f"{counted(about.get('threads') or 1, 'thread')}, "
        f"{about.get('platform')}) {state}: {work.model}, {work.width}×{work.height}, "
        f"batch {work.batch_size}, {work.steps} steps of {work.sampler}, guidance {work.guidance:g}, "
        f"{work_text(2 * work.macs_per_step)} a step with attention counted; {how}; medians of step times "
        f"without each image's first step, {warm}; no outlier was dropped."
    )
    return show(text, 2000)  # the names in it come from a file


def markdown(result: BenchResult) -> list[str]:
    columns = ("step", "95 % interval", "p10", "p90", "p99", "n", "ratio", "memory", "image")
    rows = []
    for case in result.configurations:
        cells = [figures(case)[column] for column in columns] if case.step else [failure_text(case), *[""] * 8]
        rows.append([show(case.name, 80).replace("|", "\\|"), *(cell.replace("|", "\\|") for cell in cells)])
    head = ["configuration", "step, median", *columns[1:]]
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], "", methods(result)]
