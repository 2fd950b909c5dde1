"""A result as a page: every step plotted, where the seconds and bytes go, the images, and in which environment.

One file that fetches nothing, in light and dark, without scripts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape

from sdcli.bench import result as results
from sdcli.bench import screen, statistics
from sdcli.bench.result import BenchResult, Case, ImageRun
from sdcli.schema import to_json
from sdcli.terminal import counted, fit, show, size_text

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2430;--soft:#5d6b7e;--line:#d8dfe8;--card:#f5f7fa;
--step:#2a6fc9;--first:#c77700;--warm:#9aa8ba;--far:#c62f4b;--band:#2a6fc922;
--p0:#7a8ba3;--p1:#8e6bbf;--p2:#2f9e8f;--p3:#2a6fc9;--p4:#c77700;--p5:#b0546f;--p6:#5b7f2b}
@media (prefers-color-scheme:dark){:root{--paper:#12161c;--ink:#e8edf4;--soft:#9aa8ba;--line:#333e4c;--card:#1c232d;
--step:#6aa9f7;--first:#f0b04f;--warm:#5d6b7e;--far:#ff7a90;--band:#6aa9f726;
--p0:#8ea0ba;--p1:#b99be6;--p2:#55c7b6;--p3:#6aa9f7;--p4:#f0b04f;--p5:#e08aa4;--p6:#a5c76b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:16px 20px 60px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:23px;margin:8px 0 2px} h2{font-size:18px;margin:30px 0 8px} p{max-width:75ch}
.soft{color:var(--soft)} .warn{border-left:4px solid var(--far);padding:4px 12px;background:var(--card)}
.big{font-size:34px;font-weight:600;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto} svg{display:block;width:100%;min-width:720px;height:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:3px 9px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:500}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
tr.best td{font-weight:600} td.why{text-align:left;white-space:normal;color:var(--soft)}
.key span{display:inline-block;margin-right:18px} .key i{display:inline-block;width:10px;height:10px;border-radius:5px;
margin-right:5px;vertical-align:-1px}
.images{display:flex;flex-wrap:wrap;gap:16px} figure{margin:0;max-width:340px}
figure img{max-width:100%;display:block;border-radius:6px} figcaption{font-size:13px;color:var(--soft)}
circle.step{fill:var(--step)} circle.first{fill:none;stroke:var(--first);stroke-width:1.4} circle.warm{fill:var(--warm)}
circle.far{fill:var(--far)} line.axis,path.axis{stroke:var(--line)} line.median{stroke:var(--step);stroke-dasharray:5 4}
rect.band{fill:var(--band)} svg text{fill:var(--soft);font-size:12px}
path.bytes{fill:none;stroke:var(--p2);stroke-width:1.6} svg .name{fill:var(--ink);font-size:13px}
rect.bar{fill:var(--step);opacity:.35} rect.bar.best{opacity:.8} line.spread{stroke:var(--ink);stroke-width:1.6}
text.beyond{fill:var(--ink)} svg.memory text{paint-order:stroke;stroke:var(--paper);stroke-width:4px}
dl{display:grid;grid-template-columns:minmax(min-content,max-content) 1fr;gap:2px 18px;font-size:13.5px}
dt{color:var(--soft)} dd{margin:0;overflow-wrap:anywhere}
"""
PHASES = ("import", "load", "compile", "encode", "denoise", "decode", "save")
MOST_POINTS = 4000  # in one plot; beyond that, every second, third … point is left out, but never an outlier
WIDTH, HEIGHT = 1100, 260
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 14, 30
NAMES = 250.0  # of the width, next to which bars begin
SHARED = 4  # plots whose scales differ by less share one, so that they can be compared by eye
MOST_LABELS = 8  # of steps beyond a plot's scale


def html(result: BenchResult) -> str:
    """The whole page."""
    work, cases = result.work, result.measured
    title = f"{show(work.model, 60)} · {work.width}×{work.height} · {work.steps} steps"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_where(result))}</p>',
        _headline(result),
        _caveats(result),
        "<h2>Figures</h2>" + _overview(result) + _table(result),
        "<h2>Every step</h2>" + _every_step(cases),
        "<h2>Where the seconds go</h2>" + _phase_bars(cases),
        "<h2>Memory</h2>" + "".join(map(_memory, cases)),
        "<h2>Images</h2>" + _images(result),
        "<h2>Method</h2>" + f"<p>{escape(screen.methods(result))}</p>",
        "<h2>Provenance</h2>" + _provenance(result),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _svg(kind: str, height: float, label: str, *content: str) -> str:
    return (
        f'<div class="wide"><svg class="{kind}" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{label}">{"".join(content)}</svg></div>'
    )


def _name(case: Case, limit: int = 60) -> str:
    return escape(show(case.name, limit))


def _name_at(case: Case, y: float) -> str:
    return f'<text class="name" x="0" y="{y}">{escape(fit(show(case.name, 60), 32))}</text>'


def _level(kind: str, y: float) -> str:
    return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _scale(top: float, parts: int, y: Callable[[float], float], text: Callable[[float], str]) -> str:
    """Lines across, and what they stand for, from 0 to `top`."""
    levels = [top * n / parts for n in range(parts + 1)]
    return "".join(
        _level("axis", y(level))
        + f'<text x="{LEFT - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{text(level) if level else 0}</text>'
        for level in levels
    )


# --- the head


def _where(result: BenchResult) -> str:
    work = result.work
    return (
        f"{work.sampler}, guidance {work.guidance:g}, batch {work.batch_size}, seed {work.seed} · "
        f"{results.machine_text(result.environment)} · sdcli {result.version}"
    )


def _headline(result: BenchResult) -> str:
    cases = result.measured
    if not cases:
        return "<p>Nothing was measured.</p>"
    best = results.best(result) or cases[0]
    step = best.summary
    name = f"{_name(best)}, " if len(cases) > 1 else ""
    what = f"{screen.INTERVALS[step.interval]} " if screen.has_interval(step) else ""
    return (
        f'<p><span class="big">{screen.time_text(step.median)}</span> a step<br>'
        f'<span class="soft">{name}{what}{screen.interval_text(step)}, {counted(step.n, "step")} in '
        f"{counted(step.processes, 'process')}</span></p>"
    )


def _caveats(result: BenchResult) -> str:
    cases = result.measured
    caveats = [f"The machine was busy: {show(reason, 200)}" for reason in result.reasons]
    caveats += [
        f"{show(case.name, 60)} is not steady: {', '.join(case.summary.unstable_because)}"
        for case in cases
        if case.summary.unstable
    ]
    cold = [show(case.name, 60) for case in cases if not case.warmup_stable]
    if cold:
        which = "every configuration" if len(cold) == len(cases) > 1 else ", ".join(cold)
        caveats.append(f"Not warmed up when measured: {which}")
    if result.stopped_by != "interval":
        how = {"max-time": "--max-time", "limit": "the limit on processes and images", "interrupted": "an interruption"}
        by = how.get(result.stopped_by, show(result.stopped_by, 20))
        caveats.append(f"Measuring was stopped by {by} before every interval was narrow")
    return "".join(f'<p class="warn">{escape(caveat)}</p>' for caveat in caveats)


# --- figures

_HEADS = ("step", "95 % interval", "ratio", "image", "memory", "steps/s", "images/s", "work", "p10", "p90", "p99",
          "MAD", "first step", "outliers", "n")  # fmt: skip


def _table(result: BenchResult) -> str:
    best = results.best(result) if len(result.configurations) > 1 else None
    rows = []
    for case in result.configurations:
        if case.step:
            figures = _figures(case)
            cells = "".join(f"<td>{escape(figures[head])}</td>" for head in _HEADS)
        else:
            cells = f'<td class="why" colspan="{len(_HEADS)}">{escape(screen.failure_text(case))}</td>'
        kind = "best" if best is not None and case.name == best.name else ""
        rows.append(f'<tr class="{kind}"><td>{_name(case)}</td>{cells}</tr>')
    head = "".join(f"<th>{escape(cell)}</th>" for cell in ("configuration", *_HEADS))
    body = "\n".join(rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _figures(case: Case) -> dict[str, str]:
    step, rate = case.summary, case.work_rate
    work = ""
    if rate.share and rate.flops_per_second:
        work = f"{screen.rate_text(rate.flops_per_second)}, {screen.share_text(rate.share)}"
    if case.launch_bound is not None:
        work += f", waits for launches {case.launch_bound * 100:.0f} %"
    return screen.figures(case) | {
        "steps/s": _plain(case.rates.steps_per_second), "images/s": _plain(case.rates.images_per_second), "work": work,
        "MAD": screen.time_text(step.mad) if step.mad else "0",
        "first step": screen.time_text(case.first_step_seconds or 0.0), "outliers": str(step.outliers),
    }  # fmt: skip


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _overview(result: BenchResult) -> str:
    """A bar for each configuration, its interval across the end."""
    cases, best = result.measured, results.best(result)
    if len(cases) < 2:
        return ""
    most = max(max(case.summary.high, case.summary.median) for case in cases)
    bars = []
    for number, case in enumerate(cases):
        step, y = case.summary, 4 + number * 28
        room = WIDTH - NAMES - 130
        end, low, high = (NAMES + room * seconds / most for seconds in (step.median, step.low, step.high))
        chosen = " best" if best is not None and case.name == best.name else ""
        bars.append(
            _name_at(case, y + 15)
            + f'<rect class="bar{chosen}" x="{NAMES}" y="{y}" width="{end - NAMES:.1f}" height="20"/>'
            f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 10}" y2="{y + 10}"/>'
            f'<text x="{max(end, high) + 8:.1f}" y="{y + 15}">{screen.time_text(step.median)}'
            f"{', lossy' if case.image.lossy else ''}</text>"
        )
    return _svg("overview", 8 + 28 * len(cases), "Median step of each configuration", *bars)


# --- every step


def _every_step(cases: Sequence[Case]) -> str:
    tops = [_top(case) for case in cases]
    together = len(tops) > 1 and max(tops) <= SHARED * min(tops)
    note = '<p class="soft">All on one scale.</p>' if together else ""
    plots = [_steps(case, max(tops) if together else top) for case, top in zip(cases, tops, strict=True)]
    return _legend() + note + "".join(plots)


def _top(case: Case) -> float:
    """Where its scale ends. What lies far above the rest, as a first step that compiles, is drawn at the edge."""
    points = [(seconds, kind) for seconds, kind, _ in _points(case)]
    usual = max((seconds for seconds, kind in points if kind == "step"), default=case.summary.max)
    return min(max(seconds for seconds, _ in points), 3 * usual) * 1.05 or 1.0


def _legend() -> str:
    kinds = (("step", "step"), ("first", "first step of an image"), ("warm", "warm-up"), ("far", "outlier, counted"))
    marks = "".join(f'<span><i style="background:var(--{color})"></i>{text}</span>' for color, text in kinds)
    return f'<p class="key">{marks}<span class="soft">shaded: 95 % interval of the median</span></p>'


def _steps(case: Case, top: float) -> str:
    points, step = list(_points(case)), case.summary
    across = (WIDTH - LEFT - RIGHT) / max(1, len(points) - 1)

    def y(seconds: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(seconds, top) / top)

    beyond = [(index, seconds) for index, (seconds, _, _) in enumerate(points) if seconds > top]
    labels = [
        f'<text class="beyond" x="{min(LEFT + index * across, WIDTH - 90) + 6:.1f}" y="{TOP + 4}">'
        f"{screen.time_text(seconds)} ↑</text>"
        for index, seconds in beyond[:MOST_LABELS]
    ]
    thin = max(1, -(-len(points) // MOST_POINTS))
    dots = [
        f'<circle class="{kind}" cx="{LEFT + index * across:.1f}" cy="{y(seconds):.1f}" '
        f'r="{2.2 if kind == "step" else 3}">'
        f"<title>{escape(f'{about}: {screen.time_text(seconds)}')}</title></circle>"
        for index, (seconds, kind, about) in enumerate(points)
        if kind == "far" or seconds > top or index % thin == 0
    ]
    band = (
        f'<rect class="band" x="{LEFT}" width="{WIDTH - LEFT - RIGHT}" y="{y(step.high):.1f}" '
        f'height="{max(1.0, y(step.low) - y(step.high)):.1f}"/>' + _level("median", y(step.median))
    )
    scale = _scale(top, 4, y, screen.time_text)
    plot = _svg("steps", HEIGHT, f"Every step of {_name(case)}", scale, band, *_borders(case, across), *dots, *labels)
    return f"<h3>{_name(case)}</h3>{plot}"


def _points(case: Case) -> Iterable[tuple[float, str, str]]:
    """Seconds, kind and a few words, in the order they happened within each process."""
    middle, mad = case.summary.median, case.summary.mad
    for run in _in_order(case):
        for number, seconds in enumerate(run.step_seconds, 1):
            far = mad > 0 and 0.6745 * abs(seconds - middle) / mad > statistics.OUTLIER
            first = number == 1 and len(run.step_seconds) > 1
            kind = "warm" if run.warmup else "first" if first else "far" if far else "step"
            where = f"process {run.process + 1}, image {run.image + 1}, step {number}"
            yield seconds, kind, where + (", warm-up" if run.warmup else "")


def _in_order(case: Case) -> list[ImageRun]:
    return sorted(case.runs, key=lambda run: (run.process, run.image))


def _borders(case: Case, across: float) -> Iterable[str]:
    """A line and a number where each process begins."""
    steps, last = 0, None
    for run in _in_order(case):
        if run.process != last:
            last = run.process
            x = LEFT + (steps - 0.5) * across if steps else LEFT
            yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            yield f'<text x="{x + 3:.1f}" y="{HEIGHT - 10}">process {last + 1}</text>'
        steps += len(run.step_seconds)


# --- phases and memory


def _phase_bars(cases: Sequence[Case]) -> str:
    seconds_of = [to_json(case.phases) for case in cases]
    longest = max((sum(phases[name] or 0 for name in PHASES) for phases in seconds_of), default=0) or 1
    bars = []
    for number, (case, phases) in enumerate(zip(cases, seconds_of, strict=True)):
        x, y = NAMES, 8 + number * 34
        bars.append(_name_at(case, y + 17))
        for color, name in enumerate(PHASES):
            seconds = phases[name] or 0.0
            wide = (WIDTH - NAMES) * seconds / longest
            label = f"{name} {screen.seconds_text(seconds)} s"
            bars.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="24" style="fill:var(--p{color})">'
                f"<title>{escape(label)}</title></rect>"
            )
            if wide > 8 * len(label):
                bars.append(f'<text x="{x + 5:.1f}" y="{y + 16}" style="fill:var(--paper)">{escape(label)}</text>')
            x += wide
    key = "".join(f'<span><i style="background:var(--p{color})"></i>{name}</span>' for color, name in enumerate(PHASES))
    cold = "; ".join(f"{show(case.name, 40)} {screen.seconds_text(case.phases.cold_total)} s" for case in cases)
    return (
        f'<p class="key">{key}</p>{_svg("phases", 12 + 34 * len(cases), "Phases", *bars)}'
        f'<p class="soft">From the start of the process to its first image on disk: {escape(cold)}</p>'
    )


def _memory(case: Case) -> str:
    """Bytes in use after each step of the first process, and what was predicted."""
    used = [count for run in _in_order(case) if run.process == 0 for count in run.step_bytes if count]
    peak, predicted = case.peaks
    text = f"peak {size_text(peak)}" if peak else "peak unknown"
    if case.memory.ratio and predicted:
        text += f", predicted {size_text(predicted)} ({(case.memory.ratio - 1) * 100:+.0f} %)"
    if len(used) < 2:
        return f"<h3>{_name(case)}</h3><p>{escape(text)}</p>"
    top: float = max(predicted or 0, peak or 0, *used) * 1.05
    across = (WIDTH - LEFT - RIGHT) / (len(used) - 1)
    height = 170

    def y(count: float) -> float:
        return 8 + (height - 16) * (1 - count / top)

    path = "M" + "L".join(f"{LEFT + n * across:.1f},{y(count):.1f}" for n, count in enumerate(used))
    lines = "".join(
        _level("median", y(level))
        + f'<text x="{x}" y="{y(level) + 15:.1f}" text-anchor="{anchor}">{label} {size_text(level)}</text>'
        for label, level, x, anchor in (
            ("peak", peak, LEFT + 4, "start"),
            ("predicted", predicted, WIDTH - RIGHT, "end"),
        )
        if level
    )
    scale = _scale(top, 2, y, lambda count: size_text(int(count)))
    plot = _svg("memory", height, f"Memory of {_name(case)}", scale, lines, f'<path class="bytes" d="{path}"/>')
    return (
        f'<h3>{_name(case)}</h3>{plot}<p class="soft">{escape(text)}; in use after each step of the first process</p>'
    )


# --- images and provenance


def _images(result: BenchResult) -> str:
    figures = []
    for case in result.configurations:
        if not _is_png(case.image_uri or ""):
            continue
        caption = f"{show(case.name, 60)}: {screen.likeness_text(case)}"
        if case.image.latent_mean_abs:
            caption += f", mean latent difference {case.image.latent_mean_abs:.2g}"
        figures.append(
            f'<figure><img src="{case.image_uri}" alt="{_name(case)}" width="{result.work.width}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return f'<div class="images">{"".join(figures)}</div>' if figures else "<p>None were saved.</p>"


def _is_png(source: str) -> bool:
    """A result file may come from anywhere: only a PNG data URI gets into the page."""
    start = "data:image/png;base64,"
    plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
    return source.startswith(start) and not source[len(start) :].strip(plain)


def _provenance(result: BenchResult) -> str:
    facts = {**result.environment, "seconds spent": round(result.seconds, 1), "work": result.work.key[:16]}
    facts |= {f"setup of {show(case.name, 40)}": case.setup for case in result.configurations}
    pairs = "".join(
        f"<dt>{escape(show(name, 60))}</dt><dd>{escape(show(_text_of(value), 1500))}</dd>"
        for name, value in facts.items()
    )
    return f"<dl>{pairs}</dl>"


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
