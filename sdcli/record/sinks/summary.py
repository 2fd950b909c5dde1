"""What a run took, in a line or in a table with the predicted peaks beside the measured ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sdcli.events import Degraded
from sdcli.record.report import Report
from sdcli.request.asked import guidance_asked, size_asked, steps_asked
from sdcli.sizes import gib
from sdcli.terminal import cells, disk_text, fit, seconds_text, show

SIDE_BY_SIDE = 78  # columns from which times and memory stand beside each other
LEFT = 33


def summary(report: Report, width: int = 80, *, verbose: bool = False, where: Path | None = None) -> list[str]:
    """The block a run ends with: short on a CPU, a table on a GPU or with -v; empty where nothing was drawn."""
    if not report.tally.kept:
        return []
    if verbose or _on_gpu(report):
        return table(report, width, where)
    return short(report, width)


def short(report: Report, width: int = 80) -> list[str]:
    images = report.tally.kept
    pieces: list[str] = [f"{images} images"] if images > 1 else []
    for phase in map(report.phase, ("load", "compile")):
        if phase.count:
            pieces.append(f"{phase.name} {seconds_text(phase.seconds)}")
    pieces += _steps(report)
    decode = report.phase("decode")
    if decode.count:
        pieces.append(f"decode {seconds_text(decode.seconds / decode.count)}" + (" each" if images > 1 else ""))
    pieces.append(f"{seconds_text(report.seconds)} in all")
    peak = _device_peak(report) if _on_gpu(report) else report.memory.measured.host_peak
    if peak:
        pieces.append(f"peak {gib(peak, 2)} GiB")
    fallbacks = [fit(fallback_text(one), width) for one in report.degraded]
    return [*flow(pieces, width), *worker_rows(report, width), *fallbacks]


def worker_rows(report: Report, width: int = 80) -> list[str]:
    """A row for each that drew, where several did."""
    if not report.workers:
        return []
    names = max(cells(one.name) for one in report.workers)
    rows = []
    for one in report.workers:
        peak = f"peak {gib(one.peak, 2)} GiB" if one.peak is not None else ""
        rate = f"{one.rate:.2f}/s" if one.rate else ""
        images = f"{one.images:>5} {'image ' if one.images == 1 else 'images'}"
        figures = f"{images}  {seconds_text(one.seconds):>7}  {rate:>8}  {peak:<14}"
        rows.append(fit(f"{one.name:<{names}}  {figures}  {show(one.device, 40)}", width))
    return rows


def _steps(report: Report) -> list[str]:
    counted = report.tally
    return [f"{counted.steps} steps of {step_text(counted.denoise_seconds / counted.steps)}"] if counted.steps else []


def flow(pieces: Iterable[str], width: int, between: str = " · ") -> list[str]:
    """The pieces in as few lines as the width allows; a piece is cut only where it does not fit alone."""
    lines: list[str] = []
    for piece in pieces:
        if lines and cells(lines[-1]) + cells(between) + cells(piece) <= width:
            lines[-1] += between + piece
        else:
            lines.append(fit(piece, width))
    return lines


def table(report: Report, width: int = 80, where: Path | None = None) -> list[str]:
    left, right = _times(report), _memory(report, narrow=width < SIDE_BY_SIDE)
    record = [*worker_rows(report, width), *(fallback_text(one) for one in report.degraded)]
    record += [f"report   {show(where)}"] if where is not None else []
    if width < SIDE_BY_SIDE:
        rows = [*left, *([""] if right else []), *right]
    else:
        pairs = zip_longest(left, right, fillvalue="")
        rows = [f"{one}{' ' * (LEFT - cells(one))}  {other}".rstrip() for one, other in pairs]
    return ["", *(fit(f"  {row}" if row else "", width) for row in (*rows, *record))]


def _times(report: Report) -> list[str]:
    """Phase, seconds, and what they were spent on."""
    load = sum(part.get("stored_bytes") or 0 for part in _at(report.plan, "model", "components", default={}).values())
    counted = report.tally
    decode = report.phase("decode")
    notes = {
        "load": disk_text(load) if load else "",
        "denoise": (f"{counted.steps} × {step_text(counted.denoise_seconds / counted.steps)}" if counted.steps else ""),
        "decode": f"{decode.count} × {seconds_text(decode.seconds / decode.count)}" if decode.count > 1 else "",
    }
    rows = [
        _row("steps" if phase.name == "denoise" else phase.name, phase.seconds, notes.get(phase.name, ""))
        for phase in report.phases
        if phase.count and phase.name != "plan"
    ]
    return [*rows, _row("total", report.seconds, "start to file")]


def _row(name: str, seconds: float, note: str) -> str:
    fine = name in ("encode", "steps", "decode", "save") and seconds < 9.995
    return f"{name:<8} {f'{seconds:.2f} s' if fine else seconds_text(seconds):<7} {note}".rstrip()


def step_text(seconds: float) -> str:
    """A step in milliseconds as long as it can be: 101 ms, 2.3 s."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else seconds_text(seconds)


def _memory(report: Report, narrow: bool) -> list[str]:
    on_gpu = _on_gpu(report)
    side = "device" if on_gpu else "host"
    name, figure = (9, 10) if narrow else (16, 11)
    title = ("GPU peak" if on_gpu else "peak") if narrow else ("peak GPU memory" if on_gpu else "peak memory")
    lines = [f"{title:<{name}}{'predicted':>{figure}}{'measured':>{figure}}"]
    predicted = {phase["name"]: phase[side] for phase in _at(report.plan, "footprint", "phases", default=[])}
    for phase in predicted:
        measured = getattr(report.phase(phase), f"{side}_peak")
        if measured is not None:
            lines.append(f"{phase:<{name}}{_gib(predicted.get(phase)):>{figure}}{_gib(measured):>{figure}} GiB")
    if on_gpu:
        host = report.memory.predicted.host_peak if report.memory.predicted else None
        measured = report.memory.measured.host_peak
        lines.append(f"{'host RAM':<{name}}{_gib(host):>{figure}}{_gib(measured):>{figure}} GiB")
    return lines if len(lines) > 1 else []


_FAILED = {"compile": "compiling failed", "graph": "capturing a CUDA graph failed"}


def fallback_text(fallback: Degraded) -> str:
    """What failed and where, what was given up for it, and whether the pixels change."""
    place = f"step {(fallback.step or 0) + 1}" if fallback.phase == "denoise" else show(fallback.phase, 20)
    where = _FAILED.get(fallback.phase, f"out of memory in {place}")
    before = fallback.before
    changes = ", ".join(f"{slot} {before.get(slot, '?')} → {choice}" for slot, choice in fallback.after.items())
    return f"{where}: {show(changes)}, {'pixels move slightly' if fallback.changes_pixels else 'same pixels'}"


def _gib(count: int | None) -> str:
    return "–" if count is None else gib(count, 2)


def _device_peak(report: Report) -> int | None:
    peaks = [phase.device_peak for phase in report.phases if phase.device_peak is not None]
    return report.memory.measured.reserved_peak or max(peaks, default=None)


def _on_gpu(report: Report) -> bool:
    return str(_at(report.plan, "setup", "device", default="cpu")) != "cpu"


def _at(data: Any, *keys: str, default: Any) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return default if data is None else data


def asked(jobs: Sequence[Any], width: int) -> list[str]:
    """What will be drawn, in one line: prompt, size, steps, guidance, seed."""
    first = jobs[0]
    prompts = {job.prompt for job in jobs}
    images = f"{len(jobs)} images" if len(jobs) > 1 else ""
    subject = (
        fit(show(first.prompt, 400), max(12, min(60, width - 4))) if len(prompts) == 1 else f"{len(prompts)} prompts"
    )
    seeds = [job.seed for job in jobs]
    together = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    if len(set(seeds)) == 1:
        seed = f"seed {seeds[0]}"
    elif together or len(seeds) > 4:
        seed = f"seeds {seeds[0]} to {seeds[-1]}" if together else f"{len(set(seeds))} seeds"
    else:
        seed = "seeds " + ", ".join(map(str, seeds))
    sizes = {job.size for job in jobs}
    settings = {(job.steps, job.steps_taken, job.second, job.refined, job.sampler, job.guidance) for job in jobs}
    pieces = [subject, images, size_asked(first) if len(sizes) == 1 else f"{len(sizes)} sizes"]
    if len(settings) == 1:
        pieces += [f"{steps_asked(first)} {show(first.sampler, 40)}", guidance_asked(first)]
    return flow([piece for piece in (*pieces, seed) if piece], width)
