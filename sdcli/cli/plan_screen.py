"""A Plan as lines of text: the whole screen of `plan`, and the line or two that `generate` shows before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sdcli.cli import builtin
from sdcli.plan.plan import Alternative, Decision, Fallback, Plan, Setup
from sdcli.plan.techniques import TECHNIQUES, placement
from sdcli.plan.techniques.vae_dtype import effective
from sdcli.request.asked import steps_asked
from sdcli.sizes import GIB, gib
from sdcli.terminal import cells, counted, disk_text, fit, folded, plain, seconds_text, show

MOST_ROWS = 9
A_STEP = 0.88  # rows of the short table are at least this much smaller than a faster one
MOST_LOSSY = 2
NARROW = 64  # columns below which the remarks beside the rows are left out

BRIEF = {  # a placement's phrase where there is little room
    "resident": "", "drop-encoders": "encoders dropped", "model-offload": "one part at a time",
    "group-offload": "streamed", "disk": "parts from disk",
}  # fmt: skip


def render(plan: Plan, width: int = 80, ascii: bool = False, disk_free: int | None = None) -> list[str]:
    """The screen of `plan`: what, where, every sensible setup, why this one, and how to choose another."""
    lines = [
        *_head(plan, width, disk_free),
        *_sweep(plan),
        *(["", *_workers(plan)] if plan.workers else _machine(plan, width)),
        "",
        *_table(plan, width),
        "",
        *_why(plan, width),
        *_notes(plan, width),
        *folded(_source_of_figures(plan), width, first="  "),
        *_elsewhere(plan, width),
    ]
    return [_within(line, width, ascii) for line in lines]


def render_summary(plan: Plan, width: int = 80, ascii: bool = False) -> list[str]:
    """What generate says first: the setup, what it needs; and why, where the fastest setup did not fit."""
    setup = plan.setup
    if plan.workers:
        parts, between = [_named(plan), setup.dtype, f"{len(plan.workers)} workers"], " · "
    elif plan.hardware.kind == "cpu":
        parts, between = [_named(plan), f"cpu {setup.dtype}", *_extras(setup), _needs(plan)], " · "
        if setup.placement != "resident":
            parts.insert(2, placement.TECHNIQUE.phrases[setup.placement])
    else:
        of = _named(plan) if plan.model.kind == "builtin" else "plan"
        parts, between = [f"{of}: {_device_name(plan)}", setup.dtype, setup_name(setup, None), _needs(plan)], ", "
    if plan.seconds is not None and not plan.workers:
        parts.append(f"about {seconds_text(plan.seconds.total)}")
    reason = _main_reason(plan) if not plan.workers else ""
    shard = [f"  {of_shard(plan)}"] if plan.request.shard is not None else []
    lines = [
        *_flow(parts, between, width),
        *shard,
        *_sweep(plan),
        *_workers(plan),
        *([f"  {reason}"] if reason else []),
        *_adapter_lines(setup, width),
    ]
    return [_within(line, width, ascii) for line in lines]


def _sweep(plan: Plan) -> list[str]:
    if not plan.request.sweep:
        return []
    from sdcli.request import sweeps  # of no use to others

    return [f"  sweep: {sweeps.described(plan.request.sweep)}"]


def _workers(plan: Plan) -> list[str]:
    """A line for each that draws; those that are alike share one."""
    alike: dict[str, list[str]] = {}
    for worker in plan.workers:
        own = plan.of(worker)
        setup = worker.setup
        words = setup_name(setup, plan.setup) if setup.device != plan.setup.device else setup_name(setup, None)
        threads = f", {counted(setup.threads, 'thread')}" if worker.hardware.kind == "cpu" else ""
        alike.setdefault(f"{_device_name(own)}{threads}: {words}, {_needs(own)}", []).append(worker.name)
    return [f"  {', '.join(names)}  {text}" for text, names in alike.items()]


def of_shard(plan: Plan) -> str:
    shard, whole = plan.request.shard, plan.whole
    assert shard is not None
    share = "" if whole is None else f": {len(plan.jobs)} of {counted(whole.images, 'image')}"
    return f"shard {shard.number} of {shard.of}{share}"


def _named(plan: Plan) -> str:
    name = show(plan.model.name, 60)
    return f"{name}, {builtin.WHAT}" if plan.model.kind == "builtin" else name


def _flow(parts: Sequence[str], between: str, width: int) -> list[str]:
    """Parts on one line, or on several where the width requires it; none is cut in the middle."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]}{between}{part}" if lines[-1].strip() else f"{lines[-1]}{part}"
        if cells(longer) > width and lines[-1].strip():
            lines.append(f"  {part}")
        else:
            lines[-1] = longer
    return lines


def _within(line: str, width: int, ascii: bool) -> str:
    if not ascii:
        return fit(line, width).rstrip()
    line = plain(line).rstrip()
    return line if len(line) <= width else line[: max(0, width - 3)] + "..."[: min(3, width)]


# names


def setup_name(setup: Setup, beside: Setup | None, room: int = 66) -> str:
    """A setup in words; what it shares with `beside` (number types) is left out."""
    for brevity in (0, 1, 2):
        name = _composed(setup, beside, brevity)
        if cells(name) <= room:
            return name
    return fit(name, room)


def _composed(setup: Setup, beside: Setup | None, brevity: int) -> str:
    if setup.device == "cpu" and beside is not None and beside.device != "cpu":
        return f"on the CPU, {setup.dtype}"
    extras = _extras(setup, brevity)
    long, brief = placement.TECHNIQUE.phrases[setup.placement], BRIEF[setup.placement]
    if setup.placement == "resident" and setup.device == "cpu":
        long = "all in memory"
    phrase = brief if brevity or (extras and setup.placement == "drop-encoders") else long
    parts = [phrase, *extras]
    if setup.storage == "fp8":
        parts.insert(0, "fp8" if brevity else "fp8 weights")
    if beside is not None and setup.dtype != beside.dtype:
        parts.append(setup.dtype)
    if beside is not None and effective(setup) != effective(beside):
        parts.append(f"VAE in {effective(setup)}")
    return ", ".join(part for part in parts if part) or long


def _extras(setup: Setup, brevity: int = 0) -> list[str]:
    """Everything that differs from the plainest setup, number types and placement excepted."""
    named = []
    for technique in TECHNIQUES:
        if technique.slot in ("dtype", "storage", "placement", "vae_dtype"):
            continue
        phrase = technique.phrases.get(technique.of(setup))
        if phrase and brevity:
            phrase = phrase.replace("in tiles of", "tiles").replace("guidance ", "")
        if phrase and brevity == 2:
            phrase = phrase.replace("VAE tiles", "tiles")
        if phrase:
            named.append(phrase)
    return named


def _device_name(plan: Plan) -> str:
    name = plan.hardware.name
    for maker in ("NVIDIA GeForce ", "NVIDIA "):
        name = name.removeprefix(maker)
    return show(name, 40)


def _needs(plan: Plan) -> str:
    peak, hardware = plan.footprint, plan.hardware
    if hardware.kind == "cpu":
        return f"needs {gib(peak.host_peak)} of {gib(hardware.ram_free)} GiB free"
    return f"needs {gib(peak.device_peak)} of {gib(hardware.free)} GiB free"


# the head


def _head(plan: Plan, width: int, disk_free: int | None) -> list[str]:
    model, request, jobs = plan.model, plan.request, plan.jobs
    where = model.repository or (model.path if model.source in ("folder", "file") else None)
    head = [_named(plan) + (f": {show(where, 60)}" if where else "")]
    if model.licence:
        head.append(f"licence {show(model.licence, 30)}")
    sizes = sorted({(job.size[0] * job.size[1], *job.size) for job in jobs}, reverse=True)
    _, wide, high = sizes[0] if sizes else (0, request.width, request.height)
    images = counted(len(jobs), "image") if jobs else "images as prompts arrive,"
    asked = steps_asked(jobs[0]) if jobs else counted(request.steps, "step")
    steps = f"{asked} {show(request.sampler, 30)}"
    work = f"  {images}{' up to' if len(sizes) > 1 else ''} {wide}×{high}, {steps}"
    if request.batch_size > 1:
        work += f", {request.batch_size} at once"
    shard = [f"  {of_shard(plan)}"] if request.shard is not None else []
    return [
        *_flow(head, ", ", width),
        *shard,
        *_flow([work, *_download(plan, disk_free)], " · ", width),
        *_adapter_lines(plan.setup, width),
    ]


_KINDS = {
    "vae": "VAE", "controlnet": "ControlNet", "t2i-adapter": "T2I-Adapter", "ip-adapter": "IP-Adapter",
    "image-encoder": "image encoder",
}  # fmt: skip


def _adapter_lines(setup: Setup, width: int) -> list[str]:
    """`with LoRA ink ×0.8 (192 layers), embedding mycat, VAE sharp`"""
    named = []
    for one in setup.adapters:
        name = show(one.name, 40)
        if one.kind == "lora":
            of = f"{one.matched} of {one.matched + one.unmatched}" if one.unmatched else f"{one.matched}"
            named.append(f"LoRA {name} ×{one.scale:g} ({of} layers)")
        elif one.kind == "upscaler":
            tiles = f" in tiles of {setup.upscaler_tile}" if setup.upscaler_tile else ""
            named.append(f"upscaler {name} ×{one.scale:g}{tiles}")
        elif one.kind == "embedding" and one.word not in ("", one.name):
            named.append(f'embedding {name} as "{show(one.word, 40)}"')
        else:
            named.append(f"{_KINDS.get(one.kind, one.kind)} {name}")
    return _flow([f"  with {named[0]}", *named[1:]], ", ", width) if named else []


def _download(plan: Plan, disk_free: int | None) -> list[str]:
    if plan.model.download_bytes:
        free = f", {disk_text(disk_free)} free" if disk_free is not None else ""
        return [f"{disk_text(plan.model.download_bytes)} to download{free}"]
    return ["comes with sdcli"] if plan.model.source == "builtin" else []


def _machine(plan: Plan, width: int) -> list[str]:
    hardware, budget = plan.hardware, plan.budget
    ram = f"{gib(hardware.ram_free)} of {gib(hardware.ram_total)} GiB free"
    if hardware.kind == "cpu":
        threads = f"{_device_name(plan)}, {counted(plan.setup.threads, 'thread')}"
        return _flow([threads, f"RAM: {ram} now, budget {gib(budget.host)}"], " · ", width)
    free = f"{_device_name(plan)}: {gib(hardware.free)} of {gib(hardware.total)} GiB free now"
    free += f", budget {gib(budget.device)}"
    return _flow([free, "memory shared with the CPU" if hardware.shares_memory else f"host RAM: {ram}"], " · ", width)


# the table


def sensible(plan: Plan) -> list[Alternative]:
    """The rows worth showing: each clearly smaller than any faster one; always the chosen one and the CPU's."""
    rows: list[Alternative] = []
    lossy = 0
    for row in sorted(plan.alternatives, key=lambda row: row.slowdown):
        if row.chosen or row.setup.device != plan.setup.device:
            rows.append(row)
            continue
        eight_bits = row.setup.storage == "fp8" and plan.setup.storage != "fp8"
        rivals = [rival for rival in rows if rival.setup.device == plan.setup.device]
        if not eight_bits:
            rivals = [rival for rival in rivals if rival.setup.storage == row.setup.storage]
        smaller = all(_smaller(row, rival) for rival in rivals)
        if smaller and not (eight_bits and lossy == MOST_LOSSY):
            lossy += eight_bits
            rows.append(row)
    while len(rows) > MOST_ROWS:
        rows.remove(min((row for row in rows if not row.chosen and row.device_peak), key=lambda row: row.device_peak))
    return sorted(rows, key=lambda row: (row.setup.device != plan.setup.device, -row.device_peak, row.slowdown))


def _smaller(row: Alternative, rival: Alternative) -> bool:
    """By a clear step, also in the figures shown."""
    return row.device_peak <= rival.device_peak * A_STEP and gib(row.device_peak) != gib(rival.device_peak)


def _table(plan: Plan, width: int) -> list[str]:
    rows = sensible(plan)
    two = plan.hardware.kind != "cpu"
    remarks = [_remark(row, plan) for row in rows]
    beside = max([len(remark) for remark in remarks], default=0) + 2 if width >= NARROW else 0
    columns = 8 + (9 if two else 0) + 8
    room = max(10, width - 2 - columns - beside)
    room = min(room, max(cells(setup_name(row.setup, plan.setup)) for row in rows) + 2)
    head = (f"{'GPU GiB':>8}" if two else "") + f"{'RAM GiB':>{9 if two else 8}}" + f"{'time':>8}"
    lines = ["  " + "setup".ljust(room) + head]
    for row, remark in zip(rows, remarks, strict=True):
        mark = "▸ " if row.chosen and plan.fits else "  "
        name = setup_name(row.setup, plan.setup, room)
        device = "–" if row.setup.device != plan.setup.device else gib(row.device_peak)
        figures = (f"{device:>8}" if two else "") + f"{gib(row.host_peak):>{9 if two else 8}}" + f"{_time(row):>8}"
        lines.append(mark + name + " " * (room - cells(name)) + figures + (f"  {remark}" if beside else ""))
    return lines


def _time(row: Alternative) -> str:
    """Seconds if this machine has run that setup; else a multiple of the fastest setup's time."""
    if row.seconds is not None:
        return seconds_text(row.seconds)
    return f"×{row.slowdown:.2f}" if row.slowdown < 9.95 else f"×{row.slowdown:.0f}"


def _remark(row: Alternative, plan: Plan) -> str:
    if row.chosen and plan.request.pins and plan.fits:
        return "as pinned"
    if row.fits and not row.chosen and row.setup.storage == "fp8":
        return "lossy"
    short = (row.because or "").replace(" GiB of RAM", " RAM").replace(" MiB of RAM", " MiB RAM")
    return short.replace(" GiB too", " too")


# the reasons


def _why(plan: Plan, width: int) -> list[str]:
    reasons = {row.slot: _because(row) for row in _worth_saying(plan)}
    if "dtype" in reasons and "attention" in reasons:  # the two that are about speed, in one sentence
        reasons["dtype"] += "; " + reasons.pop("attention")
    return _labelled("Why", reasons.values(), width)


def _because(row: Decision) -> str:
    return row.because + (" (pinned)" if row.source == "pin" and "pinned" not in row.because else "")


def _labelled(label: str, texts: Iterable[str], width: int) -> list[str]:
    """The texts, wrapped, beside a label that stands on the first line only."""
    lines = [line for text in texts for line in folded(text, width - 7)]
    return [f"  {label if number == 0 else '':<5}{line}" for number, line in enumerate(lines)]


def _worth_saying(plan: Plan) -> list[Decision]:
    by_slot = {decision.slot: decision for decision in plan.decisions}
    plainest = {technique.slot: technique.without for technique in TECHNIQUES} | {"upscaler_tile": "whole"}
    order = ("placement", "vae", "upscaler_tile", "guidance", "dtype", "vae_dtype", "attention", "storage", "execution")
    always = {"placement", "dtype"} | ({"attention"} if plan.hardware.kind not in ("cpu", "mps") else set())
    return [
        by_slot[slot]
        for slot in order
        if slot in by_slot
        and (slot in always or by_slot[slot].choice != plainest[slot] or by_slot[slot].source == "pin")
    ]


def _main_reason(plan: Plan) -> str:
    """Why not the fastest setup; empty if it is."""
    if plan.slowdown < 1.05:
        return ""
    by_slot = {decision.slot: decision for decision in plan.decisions}
    for slot in ("placement", "vae", "guidance"):
        decision = by_slot.get(slot)
        if decision is not None and decision.device_peak_without is not None and decision.source != "pin":
            return decision.because.split(";")[0]
    return ""


def _notes(plan: Plan, width: int) -> list[str]:
    texts = [show(warning.message, 800) for warning in plan.warnings]
    if plan.fallbacks:
        texts.append(f"if memory still runs out: {_first_fallback(plan.fallbacks, plan.setup)}")
    return _labelled("Note", texts, width)


def _first_fallback(fallbacks: Sequence[Fallback], chosen: Setup) -> str:
    first = fallbacks[0]
    moved = ", pixels move slightly" if first.changes_pixels else ", same pixels"
    return f"{setup_name(first.setup, chosen)} ({gib(first.device_peak)} GiB{moved})"


def _source_of_figures(plan: Plan) -> str:
    if plan.footprint.runs:
        return f"Measured in {counted(plan.footprint.runs, 'run')} on this machine"
    maker = {"rocm": "AMD", "xpu": "Intel", "mps": "Apple"}.get(plan.hardware.backend)
    if maker is not None:
        return f"Predicted, with assumed overheads: sdcli was not measured on any GPU of {maker} yet"
    error = " (±10 % on the CPUs tested)" if plan.hardware.kind == "cpu" else ""  # not known for GPUs
    if plan.hardware.source == "as-if":
        return f"Predicted for another machine, not measured{error}"
    return f"Predicted, not measured on this machine{error}"


def _elsewhere(plan: Plan, width: int) -> list[str]:
    own = [row for row in sensible(plan) if row.setup.device == plan.setup.device]
    others = [row for row in own if row.fits and row.setup.placement != plan.setup.placement] or own
    other = others[-1].setup.placement
    gpu = "cuda:8GiB" if plan.hardware.kind != "cuda" or plan.hardware.total // GIB == 6 else "cuda:6GiB"
    choose = "Let sdcli choose: omit --pin" if plan.request.pins else f"Choose yourself: --pin placement={other}"
    parts = [f"  {choose}", f"Another GPU: --as-if {gpu}"]
    return _flow(parts, "   ", width)
