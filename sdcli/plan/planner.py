"""make_plan: the fastest legal setup whose predicted peaks fit. Pure, and done before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sdcli.errors import DoesNotFit, Usage
from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan import upscaler_tile
from sdcli.plan.batches import in_batches
from sdcli.plan.fallbacks import changes_pixels, fallbacks_of
from sdcli.plan.forecast import Forecast, budget
from sdcli.plan.legality import legal
from sdcli.plan.pins import candidates, pins_of, refusal
from sdcli.plan.plan import Adapter, Budget, Decision, Footprint, Plan, Seconds, Setup
from sdcli.plan.techniques import TECHNIQUES
from sdcli.plan.techniques.technique import Situation
from sdcli.plan.warnings import warnings_of
from sdcli.plan.weigh import Weighed, choose, front, lacking, on_the_cpu, weigh
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
) -> Plan:
    """Chooses a setup, with reasons, predicted memory and time. `fits` is False if none does: see refusal.refused.

    `more`: further jobs follow one by one, and `jobs` stand for them. An illegal pin, or --max-vram without a GPU that
    has its own memory, is Usage.
    """
    _check_limits(request, hardware)
    pins = pins_of(request)
    jobs = tuple(jobs) if jobs is not None else make_jobs(request)
    batches = in_batches(jobs, request.batch_size)
    # for a stream of prompts, one job stands for all
    runs = [tuple(jobs[index] for index in batch) for batch in batches] or [(make_job(request, 0, "", 0),)]
    if hardware.source == "as-if":
        remembered = {}  # measurements here say nothing about another machine
    forecast = Forecast(model, hardware, runs, remembered, request.batch_invariant, more)
    limits = budget(hardware, request.max_vram, request.max_ram)
    start = Setup(threads=hardware.best_threads, device=hardware.device, isa=hardware.isa, adapters=tuple(adapters))
    unpinned = _considered(start, forecast, request, {}, limits)
    setups = _considered(start, forecast, request, pins, limits) if pins else unpinned
    if not setups:
        raise _refused(refusal(start, hardware, model, pins), request)
    fastest = min(map(forecast.seconds, unpinned))
    options = [weigh(setup, forecast, limits, fastest) for setup in setups]
    chosen = choose(options, pins)
    alternatives = front(options, chosen, forecast)
    if hardware.kind != "cpu" and not pins:
        alternatives += (on_the_cpu(forecast, hardware, fastest, request.max_ram),)
    lossless = [
        upscaler_tile.no_larger(option.setup, chosen.setup) for option in options if not option.lossy or chosen.lossy
    ]
    return Plan(
        version=version,
        request=request,
        origins=dict(origins or {}),
        model=model,
        hardware=hardware,
        jobs=jobs,
        batches=tuple(tuple(jobs[place].index for place in batch) for batch in batches),
        alternatives=alternatives,
        warnings=warnings_of(model, hardware, chosen.setup, jobs),
        **_decided(chosen, options, lossless, forecast, limits, pins, request),
    )


def _decided(
    chosen: Weighed, options: Sequence[Weighed], smaller: Sequence[Setup], forecast: Forecast, limits: Budget,
    pins: Mapping[str, str], request: Request,
) -> dict[str, Any]:  # fmt: skip
    """What of a plan follows from the setup that was chosen; `smaller`: what there is to fall back on."""
    return {
        "fits": chosen.fits,
        "budget": limits,
        "setup": chosen.setup,
        "footprint": _footprint(chosen, forecast),
        "slowdown": chosen.slowdown,
        "seconds": _seconds(forecast, chosen.setup),
        "decisions": _decisions(chosen, options, forecast, limits, pins, request),
        "fallbacks": fallbacks_of(chosen.setup, smaller, forecast.peaks, forecast.seconds, limits.host),
    }


def plan_as_recorded(plan: Plan, hardware: Hardware, remembered: Mapping[str, Any], *, version: str = "") -> Plan:
    """The same jobs under the very setup that was chosen once, on the machine as it is now, which must allow it: what
    is drawn is then the same. `fits` is False where its memory no longer suffices."""
    setup, request = plan.setup, plan.request
    reason = _elsewhere(setup, hardware) or legal(setup, hardware, plan.model)
    if reason is not None:
        raise DoesNotFit(f"it was planned for another machine: {reason}", hint="sdcli doctor")
    runs = [batch for _, batch in plan.numbered()]
    forecast = Forecast(plan.model, hardware, runs, remembered, request.batch_invariant)
    limits = budget(hardware, request.max_vram, request.max_ram)
    chosen = weigh(setup, forecast, limits, forecast.seconds(setup))
    return replace(
        plan,
        version=version,
        fits=chosen.fits,
        hardware=hardware,
        budget=limits,
        footprint=_footprint(chosen, forecast),
        slowdown=1.0,
        seconds=_seconds(forecast, setup),
        decisions=(),
        alternatives=(),
        warnings=(),
    )


def plan_alike(plan: Plan, hardware: Hardware, remembered: Mapping[str, Any], *, more: bool = False) -> Plan | None:
    """The same jobs on another device, in a setup that draws the same pixels: only where weights stay, and what else
    moves none, is chosen anew. None where no such setup is legal there."""
    request, before = plan.request, plan.setup
    pins = pins_of(request)
    runs = [batch for _, batch in plan.numbered()] or [(make_job(request, 0, "", 0),)]
    forecast = Forecast(plan.model, hardware, runs, remembered, request.batch_invariant, more)
    limits = budget(hardware, request.max_vram, request.max_ram)
    start = Setup(threads=before.threads, device=hardware.device, isa=hardware.isa, adapters=before.adapters)
    setups = _considered(start, forecast, request, pins, limits)
    same = [replace(setup, upscaler_tile=before.upscaler_tile) for setup in setups]
    same = [setup for setup in same if not changes_pixels(before, setup) and setup.blocks == before.blocks]
    if not same:
        return None
    fastest = min(map(forecast.seconds, setups))
    options = [weigh(setup, forecast, limits, fastest) for setup in same]
    chosen = choose(options, pins)
    every = [upscaler_tile.no_larger(setup, chosen.setup) for setup in setups]
    return replace(
        plan,
        hardware=hardware,
        alternatives=front(options, chosen, forecast),
        warnings=(),
        **_decided(chosen, options, every, forecast, limits, pins, request),
    )


def _elsewhere(setup: Setup, hardware: Hardware) -> str | None:
    if setup.device != hardware.device:
        return f"its device is {setup.device}, and here {hardware.device} would draw"
    if setup.isa != hardware.isa:
        return f"its processor computes with {setup.isa or 'something else'}, this one with {hardware.isa or 'others'}"
    return None


def _considered(
    start: Setup, forecast: Forecast, request: Request, pins: Mapping[str, str], limits: Budget
) -> list[Setup]:
    """The legal setups that obey the pins; compiled ones, if not pinned, where what they save here is known."""
    setups = candidates(start, forecast.hardware, forecast.model, pins)
    if request.compile == "auto" and "execution" not in pins and forecast.has_compiled:
        compiled = candidates(start, forecast.hardware, forecast.model, {**pins, "execution": "compile"})
        setups += [setup for setup in compiled if forecast.compiling(setup) is not None]
    return [upscaler_tile.settled(setup, forecast, limits) for setup in setups]


def _refused(error: Usage, request: Request) -> Usage:
    if request.compile == "on" and error.details.get("slot") == "execution":
        error.hint = "--compile off"
    return error


def _check_limits(request: Request, hardware: Hardware) -> None:
    if request.max_vram is None or hardware.kind not in ("cpu", "mps"):
        return
    reason = "a CPU has no separate memory" if hardware.kind == "cpu" else "this Mac's GPU shares the host's memory"
    limit = f"{request.max_vram / GIB:.3g}"
    raise Usage(f"--max-vram is for GPUs with memory of their own, {reason}: use --max-ram", hint=f"--max-ram {limit}")


def _compiling(forecast: Forecast, request: Request, setup: Setup) -> str | None:
    found = forecast.compiling(setup) if request.compile != "off" else None
    return found.words if found is not None else None


def _footprint(chosen: Weighed, forecast: Forecast) -> Footprint:
    measured = forecast.measured(chosen.setup)
    return Footprint(
        device_peak=chosen.device,
        host_peak=chosen.host,
        phases=forecast.phases(chosen.setup),
        runs=measured.runs if measured else 0,
    )


def _seconds(forecast: Forecast, setup: Setup) -> Seconds | None:
    measured, total = forecast.measured(setup), forecast.total_seconds(setup)
    if measured is None or total is None or measured.load is None or measured.step is None:
        return None
    return Seconds(total=total, load=measured.load, step=measured.step)


def _decisions(
    chosen: Weighed,
    options: Sequence[Weighed],
    forecast: Forecast,
    limits: Budget,
    pins: Mapping[str, str],
    request: Request,
) -> tuple[Decision, ...]:
    situation = Situation(
        hardware=forecast.hardware,
        model=forecast.model,
        budget=limits,
        guided=forecast.guided,
        phases=forecast.phases,
        peaks=forecast.peaks,
        lacking=partial(lacking, options, chosen),
        compiling=partial(_compiling, forecast, request),
    )
    measured = forecast.measured(chosen.setup)
    from_memory = measured is not None and measured.runs > 0
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
    if forecast.model.upscalers:
        rows.append(upscaler_tile.decision(chosen.setup, forecast, limits))
    return tuple(rows)
