"""A result as lines of text: one configuration in full, several as a table, and the sentence on the method."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sdcli.bench import result as results
from sdcli.bench import statistics
from sdcli.bench.result import Result
from sdcli.terminal import cells, fit, show, size_text

BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "_.,:;=*#"
INTERVALS = {
    "processes": "95 % interval",
    "images": "95 % interval within one process",
    "steps": "95 % interval within one image",
}


def render(result: Result, width: int = 80, ascii: bool = False) -> list[str]:
    """The whole screen."""
    rows = [one for one in result["configurations"] if one["step"]]
    lines = _head(result)
    if len(result["configurations"]) == 1 and rows:
        lines += ["", *_single(rows[0], ascii)]
    else:
        lines += ["", *_table(result, width, ascii)]
    lines += [*_trust(result), _ending(result)]
    return [piece for line in lines for piece in _folded(line, width)]


def _folded(line: str, width: int) -> list[str]:
    """A line too long goes on below, under its own text."""
    if cells(line) <= width:
        return [line]
    below = " " * (10 if line.startswith("  ") else 2)
    return textwrap.wrap(line, width, subsequent_indent=below, break_on_hyphens=False, drop_whitespace=True)


# --- one figure


def interval_text(step: Mapping[str, Any], unit: bool = True) -> str:
    if not has_interval(step):
        return "too few steps for an interval"
    middle = step["median"]
    if unit:
        return f"{time_text(step['low'])} – {time_text(step['high'])}"
    return f"{INTERVALS[step['interval']]} {_number_in(step['low'], middle)}–{_number_in(step['high'], middle)}"


def has_interval(step: Mapping[str, Any]) -> bool:
    return bool(step["interval"] != "steps" or step["n"] >= statistics.LEAST_RANKS)


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


# --- the head


def _head(result: Result) -> list[str]:
    work, about = result["work"], result["environment"]
    setup: Mapping[str, Any] = next((one["setup"] for one in result["configurations"] if one["setup"]), {})
    batch = f"batch {work['batch_size']}"
    first = (
        f"{show(work['model'], 40)} · {work['width']}×{work['height']}, {batch}, "
        f"{work['steps']} steps {work['sampler']} · {show(about.get('device') or 'cpu', 40)}"
    )
    if len(result["configurations"]) == 1 and setup:
        first += f", {setup['dtype']}" + ("" if setup["placement"] == "resident" else f", {setup['placement']}")
    return [first]


# --- one configuration

_PHASES = (("encode", "encode"), ("steps", "denoise"), ("decode", "decode"), ("save", "save"))


def _single(one: Mapping[str, Any], ascii: bool) -> list[str]:
    step, phases, rates = one["step"], one["phases"], one["rates"]
    middle = step["median"]
    return [
        _warm_up(one),
        "",
        f"  step    {time_text(middle)}   {interval_text(step, unit=False)}   {_steps_a_second(rates)}",
        f"          p10 {_number_in(step['p10'], middle)}  p90 {_number_in(step['p90'], middle)}  p99 "
        f"{_number_in(step['p99'], middle)}  MAD {_number_in(step['mad'], middle)}   first step "
        f"{_number_in(one['first_step_seconds'], middle)} apart",
        f"          {histogram(_steps(one), ascii)}",
        f"          n {step['n']} in {_count(step['processes'], 'process', 'processes')}, "
        f"{_count(step['outliers'], 'outlier', 'outliers')} kept",
        *_work(one),
        f"  image   {seconds_text(_per_image(rates))} s     "
        + "  ".join(f"{shown} {seconds_text(phases[name])}" for shown, name in _PHASES),
        _cold(one),
        *_memory(one),
    ]


def _warm_up(one: Mapping[str, Any]) -> str:
    medians = [statistics.steady(image["step_seconds"]) for image in one["runs"] if image["process"] == 0]
    medians = [steps for steps, image in zip(medians, one["runs"], strict=False) if image["warmup"] and steps]
    if not medians:
        return "no warm-up: its time was up with the first image"
    shown = " ".join(time_text(sorted(steps)[len(steps) // 2]).split()[0] for steps in medians[-4:])
    unit = time_text(one["step"]["median"]).split()[1]
    state = "steady" if one["warmup_stable"] else "not yet steady when its time was up"
    return f"warm-up: {_count(len(medians), 'image', 'images')}, medians {shown} {unit}: {state}"


def _steps_a_second(rates: Mapping[str, Any]) -> str:
    found = rates["steps_per_second"]
    return f"{found:,.0f} steps/s" if found and found >= 1000 else f"{found:.3g} steps/s" if found else ""


def _per_image(rates: Mapping[str, Any]) -> float | None:
    found = rates["images_per_second"]
    return 1 / found if found else None


def _steps(one: Mapping[str, Any]) -> list[float]:
    return [step for process in results.processes(one) for image in process for step in image]


def histogram(steps: Sequence[float], ascii: bool = False, bins: int = 24) -> str:
    """How often which time was seen, as a row of bars between the least and the most."""
    low, high = min(steps), max(steps)
    bars = _bars(steps, low, high, bins, ascii)
    return f"{bars}  {_number_in(low, low)} ▸ {_number_in(high, low)} {time_text(low).split()[1]}"


def _bars(steps: Sequence[float], low: float, high: float, bins: int, ascii: bool) -> str:
    marks = PLAIN_BARS if ascii else BARS
    counts = [0] * bins
    for step in steps:
        place = int((step - low) / (high - low) * bins) if high > low else 0
        counts[min(place, bins - 1)] += 1
    most = max(counts)
    return "".join(" " if not count else marks[max(0, math.ceil(count / most * len(marks)) - 1)] for count in counts)


def _work(one: Mapping[str, Any]) -> list[str]:
    rate = one["work_rate"]
    if not rate["flops_per_second"]:
        return []
    operations = rate["flops_per_second"] * one["step"]["median"]
    lines = [
        f"  work    {work_text(operations)} a step = {rate_text(rate['flops_per_second'])}",
        f"          {share_text(rate['share'])} of the {rate_text(rate['ceiling'])} seen here at best in "
        f"{one['setup']['dtype']}",
    ]
    if one["launch_bound"] is not None:
        lines.append(f"          the GPU waits for launches {one['launch_bound'] * 100:.0f} % of a step")
    return lines


def _cold(one: Mapping[str, Any]) -> str:
    phases = one["phases"]
    parts = {"import": phases["import"], "load": phases["load"], "first image": _first_image(one)}
    parts["rest"] = max(0.0, phases["cold_total"] - sum(value or 0.0 for value in parts.values()))
    told = "  ".join(f"{name} {seconds_text(value)}" for name, value in parts.items())
    return f"  cold    {seconds_text(phases['cold_total'])} s     {told}"


def _first_image(one: Mapping[str, Any]) -> float:
    firsts = [image for image in one["runs"] if image["image"] == 0]
    drawn: float = sorted(image["seconds"] for image in firsts)[len(firsts) // 2]
    return drawn


def _memory(one: Mapping[str, Any]) -> list[str]:
    memory = one["memory"]
    measured, predicted = memory["measured"], memory["predicted"]
    on_host = one["setup"]["device"] == "cpu"
    peak = measured["host_peak"] if on_host else measured["reserved_peak"]
    if peak is None:
        return []
    line = f"  memory  {size_text(peak)}"
    if predicted and memory["ratio"]:
        expected = predicted["host_peak" if on_host else "device_peak"]
        line += f"   predicted {size_text(expected)} ({(memory['ratio'] - 1) * 100:+.0f} %)"
    if not on_host and measured["host_peak"]:
        line += f"   host RAM {size_text(measured['host_peak'])}"
    return [line]


# --- several


def _table(result: Result, width: int, ascii: bool) -> list[str]:
    rows = result["configurations"]
    keys = list(dict.fromkeys(key for one in rows for key in one["options"]))
    names = [show(" ".join(one["options"].get(key, "") for key in keys) or one["name"], 60) for one in rows]
    head = show(" ".join(keys) or "configuration", 60)
    room = min(max(8, width - 61), max(cells(name) for name in (head, *names)))
    lines = [f"  {fit(head, room):<{room}}  {'step':>9}  {'ratio':<21} {'memory':>8}  picture"]
    for one, name in zip(rows, names, strict=True):
        lines.append(f"  {fit(name, room):<{room}}  " + _cells(one))
    chosen = results.best(result)
    lines += ["", *_strips(rows, names, width, ascii)]
    if any((one["ratio"] or {}).get("assumed") for one in rows):
        lines.append("one process each: ratios assume that processes differ by 2 %")
    if chosen is not None and len(rows) > 1:
        unsure = "" if chosen["reference"] or chosen["ratio"]["verdict"] == "faster" else ", if not surely"
        lines.append(f"fastest with the same picture{unsure}: {chosen['flags'] or 'no flags needed'}")
    unsteady = [one for one in rows if one["step"] and one["step"]["unstable"]]
    lines += [f"not steady: {show(one['name'], 40)} ({', '.join(one['step']['unstable_because'])})" for one in unsteady]
    return lines


def _strips(rows: Sequence[Mapping[str, Any]], names: Sequence[str], width: int, ascii: bool) -> list[str]:
    """Each row's steps on one scale; the last bar also holds what lies beyond it."""
    known = [(name, _steps(one), one["step"]) for name, one in zip(names, rows, strict=True) if one["step"]]
    if len(known) < 2:
        return []
    low = min(step["min"] for _, _, step in known)
    high = max(max(step["p99"], step["median"]) for _, _, step in known)
    room = min(max(8, width - 61), max(cells(name) for name, _, _ in known))
    bins = min(50, max(10, width - room - 6))
    strips = [f"  {fit(name, room):<{room}}  {_bars(steps, low, high, bins, ascii)}" for name, steps, _ in known]
    left, right = time_text(low), time_text(high)
    scale = f"  {'':<{room}}  {left}{right:>{max(1, bins - cells(left))}}"
    return [*(strip.rstrip() for strip in strips), scale, ""]


def _cells(one: Mapping[str, Any]) -> str:
    if one["error"]:
        return f"not measured: {show(one['error']['message'], 200)}"
    if not one["step"]:
        return "not measured: its time did not come"
    ratio = one["ratio"] or {}
    spread = "reference" if one["reference"] else ratio_text(ratio) if ratio else ""
    used = one["memory"]["measured"]
    peak = used["reserved_peak"] or used["host_peak"]
    memory = size_text(peak) if peak else "–"
    return f"{time_text(one['step']['median']):>9}  {spread:<21} {memory:>8}  {picture_text(one)}"


def ratio_text(ratio: Mapping[str, Any]) -> str:
    return f"×{ratio['value']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f})"


def picture_text(one: Mapping[str, Any]) -> str:
    image = one["image"]
    if one["reference"]:
        return "reference"
    if image["identical"]:
        return "identical"
    if image["psnr"] is None:
        return "–"
    return f"{image['psnr']:.0f} dB{', lossy' if image['lossy'] else ''}"


# --- what to think of it


def _trust(result: Result) -> list[str]:
    reasons = list(result["reasons"])
    state = f"contended: {show('; '.join(reasons), 200)}" if reasons else f"quiet: {_quiet(result['environment'])}"
    lines = [f"  trust   {state}"]
    if len(result["configurations"]) == 1 and result["configurations"][0]["step"]:
        step = result["configurations"][0]["step"]
        if step["unstable"]:
            lines.append(f"          not steady: {', '.join(step['unstable_because'])}")
    return lines


def _quiet(about: Mapping[str, Any]) -> str:
    """What was looked at, as far as this machine tells of it."""
    share, cards = about.get("foreign_share"), about.get("cards") or []
    told = [f"other programs took {share * 100:.0f} % of the processor"] if share is not None else []
    if cards:
        told.append("no other GPU user, not throttled")
    clocks = [card["clock_mhz"] for card in cards] or [clock["mhz"] for clock in about.get("clocks") or []]
    known = [clock / 1000 for clock in clocks if clock]
    if known:
        low, high = f"{min(known):.2f}", f"{max(known):.2f}"
        told.append(f"{low} GHz" if low == high else f"{low} to {high} GHz")
    return ", ".join(told) or "nothing here tells otherwise"


def _ending(result: Result) -> str:
    spent = f"{result['seconds']:.0f} s"
    if result["stopped_by"] == "interval":
        return f"stopped {_widest(result)} after {spent}"
    if result["stopped_by"] == "limit":
        return f"stopped after {spent} with as much as is ever measured, {_widest(result)}"
    if result["stopped_by"] == "interrupted":
        return f"interrupted after {spent}; what was measured by then is above"
    return f"stopped by --max-time after {spent}, {_widest(result)}"


def _widest(result: Result) -> str:
    widths = [
        (one["step"]["high"] - one["step"]["low"]) / 2 / one["step"]["median"]
        for one in result["configurations"]
        if one["step"] and one["step"]["median"] and has_interval(one["step"])
    ]
    return f"at ±{max(widths) * 100:.1f} %" if widths else "with too few steps for an interval"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


# --- to paste


def methods(result: Result) -> str:
    """A sentence for whoever quotes the figures."""
    work, about = result["work"], result["environment"]
    steps = [one["step"] for one in result["configurations"] if one["step"]]
    processes = max((step["processes"] for step in steps), default=0)
    counted = steps[0]["interval"] if steps else "processes"
    how = (
        f"{processes} processes per configuration, started in turn; 95 % intervals are Student's on process medians"
        if counted == "processes"
        else "one process per configuration, with too few steps for intervals"
        if not any(map(has_interval, steps))
        else f"one process per configuration; 95 % intervals count its {counted} and hold within that process only"
    )
    state = "on a busy machine" if result["contended"] else "on a quiet machine"
    warm = (
        "after a warm-up until three image medians agreed within 2 %"
        if all(one["warmup_stable"] for one in result["configurations"] if one["step"])
        else "after a warm-up whose image medians did not all come to agree within 2 %"
    )
    text = (
        f"Measured with sdcli {result['version']} ({results.machine_text(about)}, "
        f"{_count(about.get('threads') or 1, 'thread', 'threads')}, "
        f"{about.get('platform')}) {state}: {work['model']}, {work['width']}×{work['height']}, "
        f"batch {work['batch_size']}, {work['steps']} steps of {work['sampler']}, guidance {work['guidance']:g}, "
        f"{work_text(2 * work['macs_per_step'])} a step with attention counted; {how}; medians of step times "
        f"without each image's first step, {warm}; no outlier was dropped."
    )
    return show(text, 2000)  # the names in it come from a file


def markdown(result: Result) -> list[str]:
    lines = [
        "| configuration | step, median | 95 % interval | p10 | p90 | p99 | n | ratio | memory | picture |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in result["configurations"]:
        lines.append("| " + " | ".join(_markdown_cells(one)) + " |")
    return [*lines, "", methods(result)]


def _markdown_cells(one: Mapping[str, Any]) -> list[str]:
    name, step = show(one["name"], 80).replace("|", "\\|"), one["step"]
    if not step:
        why = one["error"]["message"] if one["error"] else "not measured"
        return [name, show(why, 120).replace("|", "\\|"), *[""] * 8]
    used = one["memory"]["measured"]
    peak = used["reserved_peak"] or used["host_peak"]
    ratio = "1" if one["reference"] else ratio_text(one["ratio"]) if one["ratio"] else ""
    return [
        name, time_text(step["median"]), interval_text(step),
        time_text(step["p10"]), time_text(step["p90"]), time_text(step["p99"]), str(step["n"]), ratio,
        size_text(peak) if peak else "", picture_text(one),
    ]  # fmt: skip
