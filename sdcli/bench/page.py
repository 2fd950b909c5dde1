"""A result as a page: every step plotted, where the seconds and bytes go, the pictures, and under what circumstances.

One file, nothing fetched, readable in light and in dark and without scripts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from sdcli.bench import result as results
from sdcli.bench import screen, statistics
from sdcli.bench.result import Result
from sdcli.terminal import fit, show, size_text

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2430;--soft:#5d6b7e;--line:#d8dfe8;--card:#f5f7fa;
--step:#2a6fc9;--first:#c77700;--warm:#9aa8ba;--far:#c62f4b;--band:#2a6fc922;
--p0:#7a8ba3;--p1:#8e6bbf;--p2:#2f9e8f;--p3:#2a6fc9;--p4:#c77700;--p5:#b0546f}
@media (prefers-color-scheme:dark){:root{--paper:#12161c;--ink:#e8edf4;--soft:#9aa8ba;--line:#333e4c;--card:#1c232d;
--step:#6aa9f7;--first:#f0b04f;--warm:#5d6b7e;--far:#ff7a90;--band:#6aa9f726;
--p0:#8ea0ba;--p1:#b99be6;--p2:#55c7b6;--p3:#6aa9f7;--p4:#f0b04f;--p5:#e08aa4}}
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
.pictures{display:flex;flex-wrap:wrap;gap:16px} figure{margin:0;max-width:340px}
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
PHASES = ("import", "load", "encode", "denoise", "decode", "save")
MOST_POINTS = 4000  # in one plot; beyond that every second, third … one, but never an outlier, is left out
WIDTH, HEIGHT = 1100, 260
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 14, 30
SHARED = 4  # plots whose scales differ by less share one, so that they can be compared by eye
MOST_LABELS = 8  # of steps beyond a plot's scale


def html(result: Result) -> str:
    """The whole page."""
    work = result["work"]
    rows = [one for one in result["configurations"] if one["step"]]
    title = f"{show(work['model'], 60)} · {work['width']}×{work['height']} · {work['steps']} steps"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_where(result))}</p>',
        _headline(result, rows),
        _doubts(result, rows),
        "<h2>Figures</h2>" + _overview(result, rows) + _table(result),
        "<h2>Every step</h2>" + _every_step(rows),
        "<h2>Where the seconds go</h2>" + _phase_bars(rows),
        "<h2>Memory</h2>" + "".join(_memory(one) for one in rows),
        "<h2>Pictures</h2>" + _pictures(result),
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


# --- the head


def _where(result: Result) -> str:
    work = result["work"]
    return (
        f"{work['sampler']}, guidance {work['guidance']:g}, batch {work['batch_size']}, seed {work['seed']} · "
        f"{results.machine_text(result['environment'])} · sdcli {result['version']}"
    )


def _headline(result: Result, rows: Sequence[Mapping[str, Any]]) -> str:
    best = results.best(result) or (rows[0] if rows else None)
    if best is None:
        return "<p>Nothing was measured.</p>"
    step = best["step"]
    name = f"{escape(show(best['name'], 60))}, " if len(rows) > 1 else ""
    known = f"{screen.INTERVALS[step['interval']]} " if screen.has_interval(step) else ""
    return (
        f'<p><span class="big">{screen.time_text(step["median"])}</span> a step<br>'
        f'<span class="soft">{name}{known}{screen.interval_text(step)}, {_count(step["n"], "step", "s")} in '
        f"{_count(step['processes'], 'process', 'es')}</span></p>"
    )


def _count(number: int, what: str, many: str) -> str:
    return f"{number} {what}{'' if number == 1 else many}"


def _doubts(result: Result, rows: Sequence[Mapping[str, Any]]) -> str:
    said = [f"The machine was busy: {show(reason, 200)}" for reason in result["reasons"]]
    said += [
        f"{show(one['name'], 60)} is not steady: {', '.join(one['step']['unstable_because'])}"
        for one in rows
        if one["step"]["unstable"]
    ]
    cold = [show(one["name"], 60) for one in rows if not one["warmup_stable"]]
    if cold:
        which = "every configuration" if len(cold) == len(rows) > 1 else ", ".join(cold)
        said.append(f"Not warm yet when measured: {which}")
    if result["stopped_by"] != "interval":
        how = {"max-time": "--max-time", "limit": "as much as is ever measured", "interrupted": "an interruption"}
        by = how.get(result["stopped_by"], show(result["stopped_by"], 20))
        said.append(f"Measuring was ended by {by} before all intervals were narrow")
    return "".join(f'<p class="warn">{escape(line)}</p>' for line in said)


# --- figures


def _table(result: Result) -> str:
    heads = ("configuration", "step", "95 % interval", "ratio", "picture", "memory", "steps/s", "images/s", "work",
             "p10", "p90", "p99", "MAD", "first step", "outliers", "n")  # fmt: skip
    best = results.best(result)
    rows = []
    for one in result["configurations"]:
        marked = best is not None and one["name"] == best["name"] and len(result["configurations"]) > 1
        rows.append((_figures(one), "best" if marked else ""))
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "\n".join(
        f'<tr class="{kind}"><td>{escape(row[0])}</td>'
        + (f'<td class="why" colspan="{len(heads) - 1}">{escape(row[1])}</td>' if len(row) == 2 else "")
        + ("".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) if len(row) > 2 else "")
        + "</tr>"
        for row, kind in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _figures(one: Mapping[str, Any]) -> list[str]:
    step = one["step"]
    if not step:
        why = show(one["error"]["message"], 120) if one["error"] else "not measured"
        return [show(one["name"], 60), why]
    time, rates, rate = screen.time_text, one["rates"], one["work_rate"]
    ratio = "1" if one["reference"] else screen.ratio_text(one["ratio"]) if one["ratio"] else ""
    share = f"{screen.rate_text(rate['flops_per_second'])}, {screen.share_text(rate['share'])}" if rate["share"] else ""
    if one["launch_bound"] is not None:
        share += f", waits for launches {one['launch_bound'] * 100:.0f} %"
    peak = one["memory"]["measured"]["reserved_peak"] or one["memory"]["measured"]["host_peak"]
    return [
        show(one["name"], 60), time(step["median"]), screen.interval_text(step), ratio,
        screen.picture_text(one), size_text(peak) if peak else "", _plain(rates["steps_per_second"]),
        _plain(rates["images_per_second"]), share, time(step["p10"]), time(step["p90"]), time(step["p99"]),
        time(step["mad"]) if step["mad"] else "0", time(one["first_step_seconds"]), str(step["outliers"]),
        str(step["n"]),
    ]  # fmt: skip


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _overview(result: Result, rows: Sequence[Mapping[str, Any]]) -> str:
    """A bar for each configuration, its interval across the end."""
    if len(rows) < 2:
        return ""
    best = results.best(result)
    start, room = 250.0, WIDTH - 250.0 - 130.0
    most = max(max(one["step"]["high"], one["step"]["median"]) for one in rows)
    bars = []
    for number, one in enumerate(rows):
        step, y = one["step"], 4 + number * 28
        end, low, high = (start + room * step[name] / most for name in ("median", "low", "high"))
        chosen = " best" if best is not None and one["name"] == best["name"] else ""
        bars.append(
            f'<text class="name" x="0" y="{y + 15}">{escape(fit(show(one["name"], 60), 32))}</text>'
            f'<rect class="bar{chosen}" x="{start}" y="{y}" width="{end - start:.1f}" height="20"/>'
            f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 10}" y2="{y + 10}"/>'
            f'<text x="{max(end, high) + 8:.1f}" y="{y + 15}">{screen.time_text(step["median"])}'
            f"{', lossy' if one['image']['lossy'] else ''}</text>"
        )
    return (
        f'<div class="wide"><svg class="overview" viewBox="0 0 {WIDTH} {8 + 28 * len(rows)}" role="img" '
        f'aria-label="Median step of each configuration">{"".join(bars)}</svg></div>'
    )


# --- every step


def _every_step(rows: Sequence[Mapping[str, Any]]) -> str:
    tops = [_top(one) for one in rows]
    together = len(tops) > 1 and max(tops) <= SHARED * min(tops)
    note = '<p class="soft">All on one scale.</p>' if together else ""
    return (
        _legend()
        + note
        + "".join(_steps(one, max(tops) if together else top) for one, top in zip(rows, tops, strict=True))
    )


def _top(one: Mapping[str, Any]) -> float:
    """Where its scale ends. What lies far above the rest, as a first step that compiles, is drawn at the edge."""
    points = [(seconds, kind) for seconds, kind, _ in _points(one)]
    usual = max((seconds for seconds, kind in points if kind == "step"), default=one["step"]["max"])
    return min(max(seconds for seconds, _ in points), 3 * usual) * 1.05 or 1.0


def _legend() -> str:
    kinds = (("step", "step"), ("first", "first step of an image"), ("warm", "warm-up"), ("far", "outlier, counted"))
    marks = "".join(f'<span><i style="background:var(--{color})"></i>{text}</span>' for color, text in kinds)
    return f'<p class="key">{marks}<span class="soft">shaded: 95 % interval of the median</span></p>'


def _steps(one: Mapping[str, Any], top: float) -> str:
    points = list(_points(one))
    step = one["step"]
    across = (WIDTH - LEFT - RIGHT) / max(1, len(points) - 1)

    def y(seconds: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(seconds, top) / top)

    beyond = [(place, seconds) for place, (seconds, _, _) in enumerate(points) if seconds > top]
    told = "".join(
        f'<text class="beyond" x="{min(LEFT + place * across, WIDTH - 90) + 6:.1f}" y="{TOP + 4}">'
        f"{screen.time_text(seconds)} ↑</text>"
        for place, seconds in beyond[:MOST_LABELS]
    )
    thin = max(1, -(-len(points) // MOST_POINTS))
    dots = [
        f'<circle class="{kind}" cx="{LEFT + place * across:.1f}" cy="{y(seconds):.1f}" '
        f'r="{2.2 if kind == "step" else 3}">'
        f"<title>{escape(f'{about}: {screen.time_text(seconds)}')}</title></circle>"
        for place, (seconds, kind, about) in enumerate(points)
        if kind == "far" or seconds > top or place % thin == 0
    ]
    middle = f"{y(step['median']):.1f}"
    band = (
        f'<rect class="band" x="{LEFT}" width="{WIDTH - LEFT - RIGHT}" y="{y(step["high"]):.1f}" '
        f'height="{max(1.0, y(step["low"]) - y(step["high"])):.1f}"/>'
        f'<line class="median" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{middle}" y2="{middle}"/>'
    )
    ticks = "".join(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(top * n / 4):.1f}" y2="{y(top * n / 4):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(top * n / 4) + 4:.1f}" text-anchor="end">'
        f"{screen.time_text(top * n / 4) if n else 0}</text>"
        for n in range(5)
    )
    name = escape(show(one["name"], 60))
    return (
        f'<h3>{name}</h3><div class="wide"><svg class="steps" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Every step of {name}">'
        f"{ticks}{band}{''.join(_borders(one, across))}{''.join(dots)}{told}</svg></div>"
    )


def _points(one: Mapping[str, Any]) -> Iterable[tuple[float, str, str]]:
    """Seconds, kind and a few words, in the order they happened within each process."""
    measured = [step for process in results.processes(one) for image in process for step in image]
    middle, mad = one["step"]["median"], one["step"]["mad"]
    for image in _runs(one):
        for number, seconds in enumerate(image["step_seconds"], 1):
            far = mad > 0 and 0.6745 * abs(seconds - middle) / mad > statistics.OUTLIER
            kind = "warm" if image["warmup"] else "first" if number == 1 and len(image["step_seconds"]) > 1 else "step"
            if kind == "step" and far and measured:
                kind = "far"
            where = f"process {image['process'] + 1}, image {image['image'] + 1}, step {number}"
            yield seconds, kind, where + (", warm-up" if image["warmup"] else "")


def _runs(one: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(one["runs"], key=lambda image: (image["process"], image["image"]))


def _borders(one: Mapping[str, Any], across: float) -> Iterable[str]:
    """A line and a number where each process begins."""
    place, last = 0, None
    for image in _runs(one):
        if image["process"] != last:
            last = image["process"]
            x = LEFT + (place - 0.5) * across if place else LEFT
            yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            yield f'<text x="{x + 3:.1f}" y="{HEIGHT - 10}">process {last + 1}</text>'
        place += len(image["step_seconds"])


# --- phases and memory


def _phase_bars(rows: Sequence[Mapping[str, Any]]) -> str:
    longest = max((sum(one["phases"][name] or 0 for name in PHASES) for one in rows), default=0) or 1
    bars = []
    for number, one in enumerate(rows):
        x, y = 250.0, 8 + number * 34
        parts = [f'<text class="name" x="0" y="{y + 17}">{escape(fit(show(one["name"], 60), 32))}</text>']
        for color, name in enumerate(PHASES):
            seconds = one["phases"][name] or 0.0
            wide = (WIDTH - 250) * seconds / longest
            label = f"{name} {screen.seconds_text(seconds)} s"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="24" style="fill:var(--p{color})">'
                f"<title>{escape(label)}</title></rect>"
            )
            if wide > 8 * len(label):
                parts.append(f'<text x="{x + 5:.1f}" y="{y + 16}" style="fill:var(--paper)">{escape(label)}</text>')
            x += wide
        bars.append("".join(parts))
    key = "".join(f'<span><i style="background:var(--p{color})"></i>{name}</span>' for color, name in enumerate(PHASES))
    cold = "; ".join(f"{show(one['name'], 40)} {screen.seconds_text(one['phases']['cold_total'])} s" for one in rows)
    return (
        f'<p class="key">{key}</p><div class="wide"><svg class="phases" viewBox="0 0 {WIDTH} {12 + 34 * len(rows)}" '
        f'role="img" aria-label="Phases">{"".join(bars)}</svg></div>'
        f'<p class="soft">From the start of the process to its first picture on disk: {escape(cold)}</p>'
    )


def _memory(one: Mapping[str, Any]) -> str:
    """Bytes held after each step of the first process, and what was predicted."""
    held = [
        (bytes_, image["warmup"]) for image in _runs(one) if image["process"] == 0 for bytes_ in image["step_bytes"]
    ]
    held = [pair for pair in held if pair[0]]
    memory = one["memory"]
    on_host = one["setup"].get("device") == "cpu"
    peak = memory["measured"]["host_peak"] if on_host else memory["measured"]["reserved_peak"]
    predicted = (memory["predicted"] or {}).get("host_peak" if on_host else "device_peak")
    said = f"peak {size_text(peak)}" if peak else "peak unknown"
    if memory["ratio"] and predicted:
        said += f", predicted {size_text(predicted)} ({(memory['ratio'] - 1) * 100:+.0f} %)"
    name = escape(show(one["name"], 60))
    if len(held) < 2:
        return f"<h3>{name}</h3><p>{escape(said)}</p>"
    top: float = max(predicted or 0, peak or 0, *(bytes_ for bytes_, _ in held)) * 1.05
    across = (WIDTH - LEFT - RIGHT) / (len(held) - 1)
    height = 170

    def y(bytes_: float) -> float:
        return 8 + (height - 16) * (1 - bytes_ / top)

    path = "M" + "L".join(f"{LEFT + n * across:.1f},{y(bytes_):.1f}" for n, (bytes_, _) in enumerate(held))
    levels = [("peak", peak, LEFT + 4, "start"), ("predicted", predicted, WIDTH - RIGHT, "end")]
    lines = "".join(
        f'<line class="median" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(level):.1f}" y2="{y(level):.1f}"/>'
        f'<text x="{x}" y="{y(level) + 15:.1f}" text-anchor="{anchor}">{label} {size_text(level)}</text>'
        for label, level, x, anchor in levels
        if level
    )
    ticks = "".join(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(top * n / 2):.1f}" y2="{y(top * n / 2):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(top * n / 2) + 4:.1f}" text-anchor="end">'
        f"{size_text(int(top * n / 2)) if n else 0}</text>"
        for n in range(3)
    )
    return (
        f'<h3>{name}</h3><div class="wide"><svg class="memory" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Memory of {name}">{ticks}{lines}<path class="bytes" d="{path}"/></svg></div>'
        f'<p class="soft">{escape(said)}; held after each step of the first process</p>'
    )


# --- pictures and provenance


def _pictures(result: Result) -> str:
    figures = []
    for one in result["configurations"]:
        source = one.get("picture") or ""
        if not _is_picture(source):
            continue
        image = one["image"]
        told = screen.picture_text(one)
        if image["latent_mean_abs"]:
            told += f", latents apart by {image['latent_mean_abs']:.2g} on average"
        figures.append(
            f'<figure><img src="{source}" alt="{escape(show(one["name"], 60))}" width="{result["work"]["width"]}">'
            f"<figcaption>{escape(show(one['name'], 60))}: {escape(told)}</figcaption></figure>"
        )
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else "<p>None were kept.</p>"


def _is_picture(source: object) -> bool:
    """A result file may come from anywhere: only a PNG of ours gets into the page."""
    start = "data:image/png;base64,"
    plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
    return isinstance(source, str) and source.startswith(start) and not source[len(start) :].strip(plain)


def _provenance(result: Result) -> str:
    known = {**result["environment"], "seconds spent": round(result["seconds"], 1), "work": result["work"]["key"][:16]}
    for one in result["configurations"]:
        known[f"setup of {show(one['name'], 40)}"] = one["setup"]
    pairs = "".join(
        f"<dt>{escape(show(name, 60))}</dt><dd>{escape(show(_said(value), 1500))}</dd>" for name, value in known.items()
    )
    return f"<dl>{pairs}</dl>"


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
