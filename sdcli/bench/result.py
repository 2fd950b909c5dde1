"""What was measured, as `sdcli.bench/1`: built from the rows at any moment, written, read and checked."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from sdcli import __version__, reading, schema
from sdcli.bench import likeness, statistics
from sdcli.bench.run import Bench, Row, rate_of
from sdcli.errors import BadFile
from sdcli.files import REAL, cannot_write, replace_whole
from sdcli.models import unet, vae
from sdcli.plan.plan import Plan
from sdcli.record import documents
from sdcli.record.report import Measured, MemoryUse, Predicted
from sdcli.terminal import show

NAME, NEWEST = "sdcli.bench", 1
_PEAKS = ("allocated_peak", "reserved_peak", "driver_peak", "pinned_peak", "host_peak")
LARGEST_FILE = 256 << 20  # a sweep holds a picture of each row
ANOTHER = "sdcli bench --quick --save new.json"
ELSEWHERE = "--save ~/bench.json"
Result = dict[str, Any]


def build(bench: Bench, reference: str, ceilings: Mapping[str, float], about: Mapping[str, Any]) -> Result:
    """`reference` names the row that ratios and pictures are held against; `ceilings` are the best rates seen on this
    machine by number type; `about` is where and how (surroundings.provenance)."""
    rows = bench.rows
    first = next((row for row in rows if row.configuration.name == reference), rows[0])
    base = first if first.measured else next((row for row in rows if row.measured), first)
    configurations = [_configuration(row, base, bench, ceilings) for row in rows]
    _mark_pareto(configurations)
    reasons = bench.watch.reasons()
    planned = next(row.configuration.plan for row in [base, *rows] if row.configuration.plan is not None)
    return {
        "schema": f"{NAME}/{NEWEST}",
        "version": __version__,
        "status": "interrupted" if bench.stopped_by == "interrupted" else "done",
        "stopped_by": bench.stopped_by,
        "seconds": bench.seconds,
        "contended": bool(reasons),
        "reasons": list(reasons),
        "error": None,
        "work": work(planned),
        "configurations": configurations,
        "environment": {
            **about,
            "foreign_share": bench.watch.foreign_share,
            "clocks": [schema.to_json(clock) for clock in bench.watch.clocks],
            "cards": [schema.to_json(card) for card in bench.watch.cards],
            "quick": bench.limits.quick,
        },
    }


def work(plan: Plan) -> Result:
    """What one step and one image are, and a key that only equal work shares."""
    jobs = plan.batch(0)
    job = jobs[0]
    known = {
        "model": plan.model.name,
        "model_hash": model_hash(plan),
        "width": job.width,
        "height": job.height,
        "steps": job.steps,
        "batch_size": len(jobs),
        "guidance": job.guidance,
        "sampler": job.sampler,
        "macs_per_step": macs_per_step(plan),
        "seed": job.seed,
    }
    key = sha256(json.dumps([known, job.prompt, job.negative_prompt], sort_keys=True).encode()).hexdigest()
    return {"key": key, **known}


def model_hash(plan: Plan) -> str:
    """The checkpoint's own hash or revision where known, else one of its structure: enough to tell models apart."""
    if plan.model.hash or plan.model.revision:
        return str(plan.model.hash or plan.model.revision)
    parts = {name: [part.config, part.parameters] for name, part in plan.model.components.items()}
    return "structure-" + sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:10]


def macs_per_step(plan: Plan) -> int:
    """Multiply-adds of one step of the whole batch: guidance doubles them; attention counts."""
    jobs = plan.batch(0)
    components = plan.model.components
    scale = vae.scale(components["vae"].config)
    guided = jobs[0].guided and not components["unet"].config.get("time_cond_proj_dim")
    call = unet.analyse(
        components["unet"].config, height=jobs[0].height // scale, width=jobs[0].width // scale,
        batch=len(jobs) * (2 if guided else 1),
    )  # fmt: skip
    return call.macs


# --- one configuration


def _configuration(row: Row, base: Row, bench: Bench, ceilings: Mapping[str, float]) -> Result:
    one, plan = row.configuration, row.configuration.plan
    images = row.measured
    planned = statistics.LEAST_IMAGES if bench.limits.quick else bench.limits.processes
    step = statistics.summarise(row.processes(), planned)
    seconds = median(image.drawn["seconds"] for image in images) if images else None
    batch = len(plan.batch(0)) if plan is not None else 1
    return {
        "name": one.name,
        "options": dict(one.options),
        "setup": schema.to_json(plan.setup) if plan is not None else {},
        "reference": row is base,
        "pareto": False,
        "error": row.error.to_json() if row.error else None,
        "phases": _phases(row),
        "first_step_seconds": median(image.steps[0] for image in images) if images else None,
        "warmup_images": max(_warm_images(row), default=0),
        "warmup_stable": row.steady,
        "step": schema.to_json(step) if step else None,
        "rates": {
            "steps_per_second": 1 / step.median if step and step.median else None,
            "images_per_second": batch / seconds if seconds else None,
        },
        "work_rate": _work_rate(plan, step, row, ceilings),
        "launch_bound": _launch_bound(row, step),
        "memory": schema.to_json(memory_of(row)),
        "energy": {"joules_per_image": None, "source": None},
        "image": _image(row, base),
        "ratio": _ratio(row, base),
        "flags": one.flags,
        "picture": _picture(row),
        "runs": [
            {
                "process": image.process,
                "image": image.number,
                "warmup": image.warmup,
                "seconds": image.drawn["seconds"],
                "step_seconds": image.steps,
                "step_bytes": image.drawn["step_bytes"],
                "event_seconds": image.drawn["event_seconds"],
            }
            for image in row.images
        ],
    }


def _warm_images(row: Row) -> list[int]:
    processes = {image.process for image in row.images}
    return [sum(image.warmup for image in row.images if image.process == number) for number in processes]


def _phases(row: Row) -> Result:
    """Medians. What happens once a process (import, load, the first encoding) is taken from first images, the rest
    from measured ones."""
    firsts = [image.drawn for image in row.images if image.number == 0]
    later = [image.drawn for image in row.measured]

    def of(found: Sequence[float]) -> float | None:
        return median(found) if found else None

    return {
        "import": of([drawn["phases"].get("import", 0.0) for drawn in firsts]),
        "load": of([drawn["phases"].get("load", 0.0) for drawn in firsts]),
        "encode": of([drawn["encode"] for drawn in firsts]),
        "denoise": of([drawn["denoise"] for drawn in later]),
        "decode": of([drawn["decode"] for drawn in later]),
        "save": of([drawn["save"] for drawn in later]),
        "cold_total": of([drawn["ready"] for drawn in firsts]),
    }


def _work_rate(
    plan: Plan | None, step: statistics.Summary | None, row: Row, ceilings: Mapping[str, float]
) -> Result:  # fmt: skip
    if plan is None or step is None:
        return {"flops_per_second": None, "ceiling": None, "share": None}
    rate = rate_of(macs_per_step(plan), step.median)
    known = [value for value in (rate, row.rate, ceilings.get(plan.setup.dtype)) if value]
    ceiling = max(known, default=None)
    return {"flops_per_second": rate, "ceiling": ceiling, "share": rate / ceiling if rate and ceiling else None}


def _launch_bound(row: Row, step: statistics.Summary | None) -> float | None:
    """The share of a step's time in which the card had nothing to do; unknown on a CPU."""
    if row.busy is None or step is None or not row.busy.get("busy"):
        return None
    kernels: float = row.busy["busy"] / max(1, len(row.busy["step_seconds"]))
    return max(0.0, 1 - kernels / step.median)


def memory_of(row: Row) -> MemoryUse:
    """The largest peaks of any process, and of the plan."""
    measured = Measured()
    for image in row.images:
        for phase, peak in image.drawn["peaks"].items():
            if phase in ("import", "before-load"):
                measured = replace(measured, host_before_load=peak.get("host_peak"))
                continue
            found = {
                name: max(filter(None, (getattr(measured, name), peak.get(name))), default=None) for name in _PEAKS
            }
            measured = replace(measured, **found)
    plan = row.configuration.plan
    if plan is None:
        return MemoryUse(measured=measured)
    predicted = Predicted(device_peak=plan.footprint.device_peak, host_peak=plan.footprint.host_peak)
    on_host = plan.setup.device == "cpu"
    seen = measured.host_peak if on_host else measured.reserved_peak
    expected = predicted.host_peak if on_host else predicted.device_peak
    return MemoryUse(predicted=predicted, measured=measured, ratio=seen / expected if seen and expected else None)


def _image(row: Row, base: Row) -> Result:
    first = row.images[0].drawn if row.images else {}
    known: Result = {"pixel_sha256": first.get("pixel_sha256", ""), "psnr": None, "identical": None,
                     "latent_mean_abs": None, "lossy": None}  # fmt: skip
    theirs = base.images[0].drawn if base.images else {}
    if not first.get("pixels") or not theirs.get("pixels"):
        return known
    one, other = row.configuration.plan, base.configuration.plan
    found = likeness.compare(
        Path(first["pixels"]), Path(theirs["pixels"]), _path(first.get("latents")), _path(theirs.get("latents")),
        same_type=one is not None and other is not None and one.setup.dtype == other.setup.dtype,
    )  # fmt: skip
    return known if found is None else known | schema.to_json(found)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _picture(row: Row) -> str | None:
    """The first picture as a data URI, for pages to show."""
    path = row.images[0].drawn.get("picture") if row.images else None
    if not path:
        return None
    try:
        return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
    except OSError:
        return None


def _ratio(row: Row, base: Row) -> Result | None:
    if row is base:
        return {"value": 1.0, "low": 1.0, "high": 1.0, "verdict": "reference", "assumed": False}
    if not row.measured or not base.measured:
        return None
    found: Result = schema.to_json(statistics.compare(base.processes(), row.processes()))
    return found


def _mark_pareto(configurations: list[Result]) -> None:
    """Rows that no other row beats in time, memory and fidelity at once."""
    scored = [(one, _score(one)) for one in configurations if one["step"]]
    for one, score in scored:
        one["pareto"] = not any(
            all(a <= b for a, b in zip(other, score, strict=True)) and other != score for _, other in scored
        )


def _score(one: Mapping[str, Any]) -> tuple[float, float, bool]:
    used = one["memory"]["measured"]
    peak = used["reserved_peak"] or used["host_peak"] or 0
    return one["step"]["median"], peak, one["image"]["lossy"] is not False


def best(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The fastest row that draws the reference's picture; one of another size draws another."""
    rows = [one for one in result["configurations"] if one["step"] and one["image"]["lossy"] is False]
    return min(rows, key=lambda one: float(one["step"]["median"]), default=None)


# --- files


def write(result: Result, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(REAL, path, documents.pieces(result, end=b"\n "))
    except OSError as error:
        raise cannot_write(path, error, hint=f"sdcli bench {ELSEWHERE}") from None


def read(path: Path) -> Result:
    """A result that was written by `write` or printed by --json; anything else is a bad file."""
    return check(reading.read(path, most=LARGEST_FILE, hint=ANOTHER), str(path))


def check(data: Result, where: str) -> Result:
    documents.check_schema(data, NAME, NEWEST, where, ANOTHER)
    try:
        whole = _is_whole(data)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise BadFile(f"{show(where)} is not a complete result of sdcli bench", hint=ANOTHER)
    return data


def _is_whole(data: Mapping[str, Any]) -> bool:
    """Everything a comparison reads is there and of its type."""
    images = [image for one in data["configurations"] for image in one["runs"]]
    return (
        bool(data["configurations"])
        and all(isinstance(one["name"], str) for one in data["configurations"])
        and all(type(image["process"]) is int and type(image["warmup"]) is bool for image in images)
        and all(type(step) in (int, float) and 0 <= step < 1e9 for image in images for step in image["step_seconds"])
        and isinstance(data["work"]["key"], str)
        and isinstance(data["environment"]["machine"], str)
        and type(data["contended"]) is bool
    )


def processes(one: Mapping[str, Any]) -> list[list[tuple[float, ...]]]:
    """The measured steps of one configuration, from its runs."""
    found: dict[int, list[tuple[float, ...]]] = {}
    for image in one["runs"]:
        if not image["warmup"] and image["step_seconds"]:
            found.setdefault(image["process"], []).append(statistics.steady(image["step_seconds"]))
    return list(found.values())


def machine_text(environment: Mapping[str, Any]) -> str:
    parts = [environment.get("device") or environment.get("cpu") or "this machine"]
    for name in ("torch", "diffusers"):
        if environment.get(name):
            parts.append(f"{name} {environment[name]}")
    return show(", ".join(str(part) for part in parts), 160)
