"""The result so far: figures from the cases of a measurement, at any moment."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from sdcli import schema
from sdcli.bench import likeness, statistics
from sdcli.bench.likeness import Likeness
from sdcli.bench.result import BenchResult, Case, ImageRun, Phases, Throughput, Work, WorkRate
from sdcli.bench.run import Bench, OngoingCase, rate_of
from sdcli.bench.statistics import Ratio, Summary
from sdcli.models import unet, vae
from sdcli.plan.footprint import COMPILE
from sdcli.plan.plan import Plan
from sdcli.plan.stages import sides
from sdcli.record.report import Measured, MemoryUse, Predicted

_PEAKS = ("allocated_peak", "reserved_peak", "driver_peak", "pinned_peak", "host_peak")
_REFERENCE = Ratio(value=1.0, low=1.0, high=1.0, verdict="reference")


def build(bench: Bench, reference: str, ceilings: Mapping[str, float], about: Mapping[str, Any]) -> BenchResult:
    """`reference` names the case that ratios and images are compared with; `ceilings` are the best rates seen on this
    machine by number type; `about` is the environment (surroundings.provenance)."""
    cases = bench.cases
    first = next((case for case in cases if case.configuration.name == reference), cases[0])
    base = first if first.measured else next((case for case in cases if case.measured), first)
    reasons = bench.watch.reasons()
    planned = next(case.configuration.plan for case in [base, *cases] if case.configuration.plan is not None)
    return BenchResult(
        status="interrupted" if bench.stopped_by == "interrupted" else "done",
        stopped_by=bench.stopped_by,
        seconds=bench.seconds,
        contended=bool(reasons),
        reasons=reasons,
        work=work(planned),
        configurations=_with_pareto([_case(case, base, bench, ceilings) for case in cases]),
        environment={
            **about,
            "foreign_share": bench.watch.foreign_share,
            "clocks": schema.to_json(bench.watch.clocks),
            "cards": schema.to_json(bench.watch.gpus),
            "quick": bench.limits.quick,
        },
    )


def work(plan: Plan) -> Work:
    jobs = plan.batch(0)
    job = jobs[0]
    unkeyed = Work(
        key="", model=plan.model.name, model_hash=model_hash(plan), width=job.width, height=job.height,
        steps=job.steps, batch_size=len(jobs), guidance=job.guidance, sampler=job.sampler,
        macs_per_step=macs_per_step(plan), seed=job.seed,
    )  # fmt: skip
    facts = {name: value for name, value in vars(unkeyed).items() if name != "key"}
    key = sha256(json.dumps([facts, job.prompt, job.negative_prompt], sort_keys=True).encode()).hexdigest()
    return replace(unkeyed, key=key)


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
    call = unet.analyse(
        components["unet"].config, height=jobs[0].height // scale, width=jobs[0].width // scale,
        batch=len(jobs) * sides(plan.model, jobs[0]),
    )  # fmt: skip
    return call.macs


# --- one configuration


def _case(case: OngoingCase, base: OngoingCase, bench: Bench, ceilings: Mapping[str, float]) -> Case:
    one, plan = case.configuration, case.configuration.plan
    step = statistics.summarise(case.processes(), bench.planned)
    seconds = _median(image.drawn.seconds for image in case.measured)
    batch = len(plan.batch(0)) if plan is not None else 1
    return Case(
        name=one.name,
        options=one.options,
        setup=schema.to_json(plan.setup) if plan is not None else {},
        reference=case is base,
        error=case.error.to_json() if case.error else None,
        phases=_phases(case),
        first_step_seconds=_median(image.steps[0] for image in case.measured),
        warmup_images=_warmup_images(case),
        warmup_stable=case.steady,
        step=step,
        rates=Throughput(
            steps_per_second=1 / step.median if step and step.median else None,
            images_per_second=batch / seconds if seconds else None,
        ),
        work_rate=_work_rate(plan, step, case, ceilings),
        launch_bound=_launch_bound(case, step),
        memory=memory_of(case),
        image=_image(case, base),
        ratio=_ratio(case, base),
        flags=one.flags,
        image_uri=_data_uri(case),
        runs=tuple(
            ImageRun(
                process=image.process, image=image.number, warmup=image.warmup, seconds=image.drawn.seconds,
                step_seconds=tuple(image.steps), step_bytes=tuple(image.drawn.step_bytes),
                event_seconds=image.drawn.event_seconds,
            )
            for image in case.images
        ),
    )  # fmt: skip


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return median(values) if values else None


def _warmup_images(case: OngoingCase) -> int:
    """Of the process that needed the most."""
    numbers = [image.process for image in case.images if image.warmup]
    return max(map(numbers.count, numbers), default=0)


def _phases(case: OngoingCase) -> Phases:
    """Medians. What happens once a process (import, load, the first encoding) is taken from first images, the rest
    from measured ones."""
    firsts = [image.drawn for image in case.images if image.number == 0]
    later = [image.drawn for image in case.measured]
    return Phases(
        import_=_median(drawn.phases.get("import", 0.0) for drawn in firsts),
        load=_median(drawn.phases.get("load", 0.0) for drawn in firsts),
        compile=max((drawn.phases[COMPILE] for drawn in firsts if COMPILE in drawn.phases), default=None),
        encode=_median(drawn.encode for drawn in firsts),
        denoise=_median(drawn.denoise for drawn in later),
        decode=_median(drawn.decode for drawn in later),
        save=_median(drawn.save for drawn in later),
        cold_total=_median(drawn.ready for drawn in firsts),
    )


def _work_rate(plan: Plan | None, step: Summary | None, case: OngoingCase, ceilings: Mapping[str, float]) -> WorkRate:
    if plan is None or step is None:
        return WorkRate()
    rate = rate_of(macs_per_step(plan), step.median)
    ceiling = max(filter(None, (rate, case.rate, ceilings.get(plan.setup.dtype))), default=None)
    return WorkRate(flops_per_second=rate, ceiling=ceiling, share=rate / ceiling if rate and ceiling else None)


def _launch_bound(case: OngoingCase, step: Summary | None) -> float | None:
    """The share of a step's time in which the GPU was idle; unknown on a CPU."""
    if case.busy is None or step is None or not case.busy.busy:
        return None
    return max(0.0, 1 - case.busy.busy / max(1, len(case.busy.step_seconds)) / step.median)


def memory_of(case: OngoingCase) -> MemoryUse:
    """The largest peaks of any process, and of the plan."""
    measured = Measured()
    for image in case.images:
        for phase, peak in image.drawn.peaks.items():
            if phase in ("import", "before-load"):
                measured = replace(measured, host_before_load=peak.get("host_peak"))
                continue
            largest = {
                name: max(filter(None, (getattr(measured, name), peak.get(name))), default=None) for name in _PEAKS
            }
            measured = replace(measured, **largest)
    plan = case.configuration.plan
    if plan is None:
        return MemoryUse(measured=measured)
    predicted = Predicted(device_peak=plan.footprint.device_peak, host_peak=plan.footprint.host_peak)
    on_host = plan.setup.device == "cpu"
    peak = measured.host_peak if on_host else measured.reserved_peak
    expected = predicted.host_peak if on_host else predicted.device_peak
    return MemoryUse(predicted=predicted, measured=measured, ratio=peak / expected if peak and expected else None)


def _image(case: OngoingCase, base: OngoingCase) -> Likeness:
    if not case.images:
        return Likeness()
    ours = case.images[0].drawn
    unlike = Likeness(pixel_sha256=ours.pixel_sha256)
    theirs = base.images[0].drawn if base.images else None
    if theirs is None or not ours.pixels or not theirs.pixels:
        return unlike
    one, other = case.configuration.plan, base.configuration.plan
    like = likeness.compare(
        Path(ours.pixels), Path(theirs.pixels), _path(ours.latents), _path(theirs.latents),
        same_type=one is not None and other is not None and one.setup.dtype == other.setup.dtype,
    )  # fmt: skip
    return unlike if like is None else replace(like, pixel_sha256=ours.pixel_sha256)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _data_uri(case: OngoingCase) -> str | None:
    """The first image, to show on pages."""
    path = case.images[0].drawn.image if case.images else None
    if not path:
        return None
    try:
        return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
    except OSError:
        return None


def _ratio(case: OngoingCase, base: OngoingCase) -> Ratio | None:
    if case is base:
        return _REFERENCE
    if not case.measured or not base.measured:
        return None
    return statistics.compare(base.processes(), case.processes())


def _with_pareto(cases: list[Case]) -> tuple[Case, ...]:
    """Marks the cases that no other beats in time, memory and fidelity at once."""
    scores = [_score(case) for case in cases if case.step]
    return tuple(
        replace(case, pareto=not any(_beats(other, _score(case)) for other in scores)) if case.step else case
        for case in cases
    )


def _score(case: Case) -> tuple[float, float, bool]:
    return case.summary.median, case.peak or 0, case.image.lossy is not False


def _beats(one: tuple[float, float, bool], other: tuple[float, float, bool]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
