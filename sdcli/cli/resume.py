"""`sdcli resume`: draws what a run has not drawn yet, under the very setup it began with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdcli import __version__
from sdcli.asking.planning import PlannedRun, engine_of, least, remembered, with_workers
from sdcli.cli import clusters, drawing
from sdcli.cli.answer import Answered
from sdcli.cli.recorded import as_recorded, hardware_for
from sdcli.errors import BadFile, DeviceUnusable, DoesNotFit, ModelMissing, Usage
from sdcli.machine import several, survey
from sdcli.machine.environment import PACKAGES
from sdcli.machine.packages import versions
from sdcli.machine.several import Seat
from sdcli.plan.plan import Plan, PlanWarning
from sdcli.plan.planner import make_plan
from sdcli.plan.refusal import refused
from sdcli.record import found_runs, runs, used_files
from sdcli.record.runs import RecordedRun
from sdcli.request.options import OUTPUT, SCREEN, Option
from sdcli.request.options import command as make
from sdcli.terminal import say, show

REPLAN = Option(
    field="replan", flags=("--replan",), switch=True, panel=OUTPUT,
    help="Plan anew for the machine as it is now: images may differ slightly from what the run would have drawn.",
)  # fmt: skip


def command() -> Callable[..., None]:
    return make(
        _resume, [REPLAN, *SCREEN], name="resume", words="RUN",
        help="Draw what is missing of a run: the newest unfinished one, or RUN (its name, or a path).",
    )  # fmt: skip


def _resume(typed: dict[str, Any]) -> None:
    words, _ = typed.get("words", ()), engine_of(typed, cluster=True)
    if len(words) > 1:
        raise Usage(f"resume takes one run, not {len(words)}", hint="sdcli runs")
    records = found_runs.to_resume(words[0] if words else None)
    if runs.is_running(records):
        raise Usage(f"run {show(records.name, 80)} is being drawn by another process", hint="sdcli runs")
    before = runs.recover(runs.read(records))
    name = found_runs.called(records)
    there = f"{len(before.done)} of {len(before.run.plan.jobs)} images are there"
    if not before.missing:
        say(f"run {show(before.run.run, 80)} is complete: {there}")
        return
    _check_files(before.run)
    with clusters.joined(typed) as cluster:
        planned = _planned(before.run, bool(typed.get("replan")), name, cluster.seats() if cluster is not None else ())
        screen = drawing.Screen(typed, planned.plan, kept=before.done)
        if not typed.get("quiet"):
            say(f"run {show(before.run.run, 80)}: {there}")
        screen.announce()
        kept = {} if typed.get("replan") else runs.kept_steps(records)
        raise Answered(drawing.draw(typed, planned, before.run.destination, screen, before, kept, cluster))


def _check_files(run: RecordedRun) -> None:
    changed = used_files.changed(run.files)
    if changed is None:
        return
    name = show(changed.path, 200)
    if used_files.is_gone(changed):
        raise ModelMissing(f"{name} is gone, and the run draws from it", hint="the same command once it is there again")
    raise BadFile(
        f"{name} has changed since the run began: other images would come of it",
        hint="the same command once the file is as it was",
    )


def _planned(run: RecordedRun, anew: bool, name: str, cluster: Sequence[Seat]) -> PlannedRun:
    try:
        plan, imported = _anew(run.plan, cluster) if anew else as_recorded(run.plan, cluster)
        if not plan.fits:
            raise refused(plan)
    except (DoesNotFit, DeviceUnusable) as error:
        if not anew:
            error.hint = f"sdcli resume {name} --replan"
        raise
    return PlannedRun(replace(plan, warnings=(*plan.warnings, *_other_versions(run.environment))), imported=imported)


def _anew(plan: Plan, cluster: Sequence[Seat]) -> tuple[Plan, float]:
    seats = cluster
    if not seats and plan.request.devices is not None:
        seats = several.seats(plan.request.devices, survey.look())
    hardware, imported = hardware_for(plan.request.device, None) if not seats else (least(seats).hardware, 0.0)
    fresh = make_plan(
        plan.request, plan.model, hardware, remembered(hardware), jobs=plan.jobs, version=__version__,
        origins=plan.origins, adapters=plan.setup.adapters,
    )  # fmt: skip
    return with_workers(replace(fresh, batches=plan.batches), seats), imported


def _other_versions(then: Mapping[str, Any]) -> tuple[PlanWarning, ...]:
    now = {one.name: one.version for one in versions(PACKAGES)}
    moved = [f"{name} {then[name]}, now {now[name]}" for name in PACKAGES if then.get(name, now[name]) != now[name]]
    if not moved:
        return ()
    message = f"the run began with {' and '.join(moved)}: images may differ slightly from what it would have drawn"
    return (PlanWarning(code="other-versions", message=message),)
