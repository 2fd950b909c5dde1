"""One measurement with the real engine: random weights in a process of their own, no files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sdcli.asking import planning
from sdcli.bench import build, random_models, screen
from sdcli.bench import result as results
from sdcli.bench.run import Bench, Configuration, Limits, Listener, OngoingCase
from sdcli.cli.bench import remember_case
from sdcli.machine import dtypes, memories
from sdcli.models import resolve
from sdcli.plan.remembered import key_of, measures
from sdcli.schema import to_json


def test_random_weights_are_the_whole_structure_without_a_file() -> None:
    model = random_models.randomised(resolve.resolve("sdxl"))
    assert model.cached and model.path is None
    assert model.components["unet"].parameters == 2_567_463_684
    assert all(part.random and not part.files for part in model.components.values())


class Until(Listener):
    """Interrupts once so many processes are done."""

    def __init__(self, bench: Bench, processes: int) -> None:
        self.bench, self.processes = bench, processes

    def round_done(self) -> None:
        if self.bench.process == self.processes:
            raise KeyboardInterrupt


def test_several_processes_are_what_the_interval_counts(tmp_path: Path) -> None:
    plan = planning.plan_for({"words": ("a cat",), "seeds": "1", "size": "64x64"}, "bench", random_models.tiny()).plan
    one = Configuration(name="as asked", options={}, flags="", plan=plan)
    bench = Bench([one], Limits(processes=9, max_time=600, engine="fake"), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        bench.run(Until(bench, 2))
    result = build.build(bench, "as asked", {}, {"machine": "here"})
    (case,) = result.configurations
    assert {run.process for run in case.runs} == {0, 1}
    assert (case.summary.interval, case.summary.processes) == ("processes", 2)
    for process in case.processes():
        assert sum(map(len, process)) >= 20
    assert "2 processes per configuration" in screen.methods(result)
    _is_remembered(bench)


class Impatient(Listener):
    """Interrupts as soon as the first image exists."""

    def drew(self, case: OngoingCase) -> None:
        raise KeyboardInterrupt


def test_an_interruption_while_warming_up_keeps_the_image_it_has(tmp_path: Path) -> None:
    plan = planning.plan_for({"words": ("a cat",), "seeds": "1", "size": "64x64"}, "bench", random_models.tiny()).plan
    rows = [Configuration(name=name, options={}, flags="", plan=plan) for name in ("one", "two")]
    bench = Bench(rows, Limits(engine="fake"), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        bench.run(Impatient())
    result = build.build(bench, "one", {}, {"machine": "here"})
    measured, other = result.configurations
    assert (result.status, result.stopped_by) == ("interrupted", "interrupted")
    assert measured.summary.n == len(measured.runs[0].step_seconds) - 1 and not measured.warmup_stable
    assert other.step is None
    assert "not measured: time was up" in "\n".join(screen.render(result))


def test_the_real_engine_is_measured_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    able = {"fp32": "assumed", "bf16": "probed", "fp16": "unavailable"}  # every CPU can, if some very slowly
    monkeypatch.setattr(dtypes, "cpu", lambda isa: able)
    typed = {"words": ("a cat",), "seeds": "1", "size": "64x64", "steps": "4", "fallback": "no"}
    rows = []
    for dtype in ("fp32", "bf16"):
        plan = planning.plan_for({**typed, "dtype": dtype, "device": "cpu"}, "bench", random_models.tiny()).plan
        rows.append(Configuration(name=dtype, options={"dtype": dtype}, flags=f"--dtype {dtype}", plan=plan))
    bench = Bench(rows, Limits(processes=1, quick=True, max_time=1.0), tmp_path / "scratch")
    bench.run(Listener())
    result = build.build(bench, "fp32", {}, {"machine": "here"})
    assert results.check(json.loads(json.dumps(to_json(result))), "here") == result
    exact, half = result.configurations
    for case in (exact, half):
        assert case.error is None and case.summary.n >= 3
        assert all(step > 0 for run in case.runs for step in run.step_seconds)
        load, total = case.phases.load, case.phases.cold_total
        assert case.phases.import_ and load and total and total > load
        assert case.work_rate.share and 0 < case.work_rate.share <= 1
        assert (case.memory.measured.host_peak or 0) > 50 << 20
    assert exact.image.identical and exact.image.latent_mean_abs == 0
    assert half.image.identical is False and 0 < (half.image.latent_mean_abs or 0) < 1
    assert half.image.psnr and half.image.psnr > 10
    assert not list((tmp_path / "scratch").rglob("*.part"))


def _is_remembered(bench: Bench) -> None:
    """For the next plan: seconds of a step and peaks of each case, unless its weights were made up."""
    for case in bench.cases:
        plan = case.configuration.plan
        assert plan is not None
        remember_case(case)
        assert memories.store().read() == {}
        read = {name: replace(part, random=False) for name, part in plan.model.components.items()}
        plan = replace(plan, model=replace(plan.model, components=read))
        remember_case(replace(case, configuration=replace(case.configuration, plan=plan)))
        known = memories.remembered(memories.machine_of(plan.hardware))
        found = measures(known[key_of(plan.model, plan.setup, plan.batch(0))])
        assert found is not None and found.host_peak and found.step and found.compile is None and found.load is None
