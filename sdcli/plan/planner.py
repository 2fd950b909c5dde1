"""make_plan: the least slowdown among legal ways whose predicted peaks fit. Pure, and done before anything loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sdcli.errors import Usage
from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan import calibration
from sdcli.plan.batches import in_batches
from sdcli.plan.forecast import Forecast, budget
from sdcli.plan.ladder import ladder
from sdcli.plan.options import Option, choose, front, lacking, on_the_cpu, weigh
from sdcli.plan.pins import candidates, read_pins, refusal
from sdcli.plan.plan import Adapter, Budget, Decision, Footprint, Plan, Seconds, Setup
from sdcli.plan.techniques import TECHNIQUES
from sdcli.plan.techniques.technique import Situation
from sdcli.plan.warnings import warnings_of
from sdcli.request.jobs import make_job, make_jobs
from sdcli.request.request import Job, Request
from sdcli.sizes import GIB

DECIDED_BY_MEMORY = ("placement", "vae")


def make_plan(
    request: Request,
    model: Model,
    hardware: Hardware,
    remembered: Mapping[str, Any],
    *,
    origins: Mapping[str, str] | None = None,
    jobs: Sequence[Job] | None = None,
    version: str = "",
    adapters: Sequence[Adapter] = (),
    more: bool = False,
    imports_bytes: int = calibration.IMPORTS,
) -> Plan:
    """Every choice, with its reason and its price. A plan that does not fit says so: refusal.refused(plan).

    `more`: jobs are still to come, one by one, and these stand for them. An illegal pin, or --max-vram without a card
    that has its own memory, is Usage.
    """
    _check_limits(request, hardware)
    pins = read_pins(request.pins)
    jobs = tuple(jobs) if jobs is not None else make_jobs(request)
    batches = in_batches(jobs, request.batch_size)
    # prompts that are read as they come are planned for by one that stands for all
    runs = [tuple(jobs[index] for index in batch) for batch in batches] or [(make_job(request, 0, "", 0),)]
    if hardware.source == "as-if":
        remembered = {}  # what was measured here says nothing about another machine
    forecast = Forecast(model, hardware, runs, remembered, imports_bytes, request.batch_invariant, more)
    limits = budget(hardware, request.max_vram, request.max_ram)
    start = Setup(threads=hardware.threads, device=hardware.device, isa=hardware.isa, adapters=tuple(adapters))
    unpinned = candidates(start, hardware, model, {})
    setups = candidates(start, hardware, model, pins) if pins else unpinned
    if not setups:
        raise refusal(start, hardware, model, pins)
    fastest = min(map(forecast.seconds, unpinned))
    options = [weigh(setup, forecast, limits, fastest) for setup in setups]
    chosen = choose(options, pins)
    ways = front(options, chosen, forecast)
    if hardware.kind != "cpu" and not pins:
        ways += (on_the_cpu(forecast, hardware, fastest, request.max_ram),)
    lossless = [option.setup for option in options if not option.lossy or chosen.lossy]
    return Plan(
        version=version,
        fits=chosen.fits,
        request=request,
        origins=dict(origins or {}),
        model=model,
        hardware=hardware,
        budget=limits,
        setup=chosen.setup,
        jobs=jobs,
        batches=batches,
        footprint=_footprint(chosen, forecast),
        slowdown=chosen.slowdown,
        seconds=_seconds(forecast, chosen.setup),
        decisions=_decisions(chosen, options, forecast, limits, pins),
        ways=ways,
        ladder=ladder(chosen.setup, lossless, forecast.peaks, forecast.seconds, limits.host),
        warnings=warnings_of(request, model, hardware, chosen.setup, jobs),
    )


def _check_limits(request: Request, hardware: Hardware) -> None:
    if request.max_vram is None or hardware.kind == "cuda":
        return
    own = "a CPU has no memory of its own" if hardware.kind == "cpu" else "this Mac's GPU shares the host's memory"
    limit = f"{request.max_vram / GIB:.3g}"
    raise Usage(f"--max-vram is for NVIDIA cards, {own}: use --max-ram", hint=f"--max-ram {limit}")


def _footprint(chosen: Option, forecast: Forecast) -> Footprint:
    known = forecast.measured(chosen.setup)
    return Footprint(
        device_peak=chosen.device,
        host_peak=chosen.host,
        phases=forecast.phases(chosen.setup),
        runs=known.runs if known else 0,
    )


def _seconds(forecast: Forecast, setup: Setup) -> Seconds | None:
    known, total = forecast.measured(setup), forecast.total_seconds(setup)
    if known is None or total is None or known.load is None or known.step is None:
        return None
    return Seconds(total=total, load=known.load, step=known.step)


def _decisions(
    chosen: Option, options: Sequence[Option], forecast: Forecast, limits: Budget, pins: Mapping[str, str]
) -> tuple[Decision, ...]:
    situation = Situation(
        hardware=forecast.hardware,
        model=forecast.model,
        budget=limits,
        guided=forecast.guided,
        phases=forecast.phases,
        peaks=forecast.peaks,
        lacking=partial(lacking, options, chosen),
    )
    from_memory = forecast.measured(chosen.setup) is not None
    rows = []
    for technique in TECHNIQUES:
        choice = technique.of(chosen.setup)
        without = None
        if choice != technique.without:
            without = forecast.peaks(technique.put(chosen.setup, technique.without))[0]
        by_memory = from_memory and technique.slot in DECIDED_BY_MEMORY
        rows.append(
            Decision(
                slot=technique.slot,
                choice=choice,
                because=technique.because(chosen.setup, situation),
                source="pin" if technique.slot in pins else "remembered" if by_memory else "auto",
                device_peak=chosen.device,
                device_peak_without=without,
            )
        )
    return tuple(rows)
