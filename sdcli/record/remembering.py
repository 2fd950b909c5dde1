"""After a run or a bench: remember what was measured, for the next plan on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from sdcli import schema
from sdcli.machine import memories
from sdcli.plan.footprint import COMPILE
from sdcli.plan.plan import Plan
from sdcli.plan.remembered import Measures, key_of, merged
from sdcli.record.report import Measured, Report
from sdcli.request.request import Job


def remember(plan: Plan, report: Report) -> None:
    """Only of a run that went as planned, on this machine, with the real engine."""
    if report.status != "done" or report.degraded or plan.hardware.source == "as-if" or not report.batches:
        return
    if report.environment.get("engine") == "fake" or plan.workers:  # their times and peaks are not one device's
        return
    measures = _measured(plan, report)
    batch = plan.batch(0) if plan.batches else ()
    if measures is None or not batch or not _alike(report):
        return
    keep(plan, batch, measures)


def keep(plan: Plan, batch: Sequence[Job], found: Measures) -> None:
    """Beside what earlier runs of the same setup showed."""
    key = key_of(plan.model, plan.setup, batch, plan.request.batch_invariant)
    memories.remember_run(memories.machine_of(plan.hardware), key, lambda old: schema.to_json(merged(old, found)))


def _alike(report: Report) -> bool:
    """Whether all batches need what the first one does, since peaks are known for the whole run only. A last batch
    with fewer images is lighter; long prompts are not planned for."""
    counted, most = report.tally, len(report.batches[0].images)
    return len(counted.shapes) == 1 and counted.largest <= most and counted.chunks == 1


def _measured(plan: Plan, report: Report) -> Measures | None:
    counted, memory = report.tally, report.memory.measured
    if not counted.step_seconds or (memory.host_peak is None and memory.reserved_peak is None):
        return None
    alone = report.memory.beside is None  # else the peaks are not this setup's
    if not alone:
        memory = Measured()
    return Measures(
        device_peak=memory.reserved_peak,
        allocated_peak=memory.allocated_peak,
        host_peak=memory.host_peak,
        load=report.phase("import").seconds + report.phase("load").seconds + report.batches[0].encode_seconds,
        step=median(counted.step_seconds),
        compile=report.phase(COMPILE).seconds or None,
        image=counted.finishing_seconds / max(1, counted.images_of_batches),
        runs=int(alone),
    )
