"""What was measured here replaces the forecast, and is the only source of seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import asking, gpu, jobs_of, known_model

from sdcli import schema
from sdcli.machine.hardware import Hardware
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.plan.remembered import Measures, key_of, measures, merged

GIB = 1 << 30
HERE = replace(gpu(8, free=7.1), source="nvml")


def planned(remembered: dict[str, Any], hardware: Hardware = HERE, **asked: Any) -> Plan:
    request = asking("sdxl", **asked)
    return make_plan(request, known_model("sdxl"), hardware, remembered, jobs=jobs_of(request))


def key(plan: Plan, **slots: str) -> str:
    setup = replace(plan.setup, **slots)  # type: ignore[arg-type]
    return key_of(plan.model, setup, plan.batch(0))


def test_seconds_are_given_only_where_remembered() -> None:
    plan = planned({})
    assert plan.seconds is None and plan.footprint.runs == 0
    memory = {"device_peak": 5 * GIB, "host_peak": GIB, "load": 4.0, "step": 0.9, "picture": 1.5, "runs": 3}
    again = planned({key(plan): memory}, count=2)
    assert again.setup == plan.setup
    assert again.seconds is not None
    assert again.seconds.total == pytest.approx(4.0 + 2 * 30 * 0.9 + 2 * 1.5)
    assert again.footprint.device_peak == 5 * GIB and again.footprint.runs == 3
    assert next(row.seconds for row in again.alternatives if row.chosen) == again.seconds.total
    assert {row.slot for row in again.decisions if row.source == "remembered"} == {"placement", "vae"}


def test_a_setup_that_once_needed_more_than_forecast_is_no_longer_chosen() -> None:
    plan = planned({})
    again = planned({key(plan): {"device_peak": 8 * GIB, "host_peak": GIB}})
    assert again.fits and again.setup != plan.setup


def test_a_setup_that_needed_less_than_forecast_may_be_chosen() -> None:
    plan = planned({})
    faster = key(plan, vae="whole")
    again = planned({faster: {"device_peak": 6 * GIB, "host_peak": GIB}})
    assert again.setup.vae == "whole" and again.fits


def test_measures_of_this_machine_say_nothing_about_another() -> None:
    plan = planned({})
    memory = {key(plan): {"device_peak": 8 * GIB, "host_peak": GIB, "load": 1.0, "step": 1.0, "picture": 1.0}}
    elsewhere = planned(memory, hardware=gpu(8, free=7.1))
    assert elsewhere.setup == plan.setup and elsewhere.seconds is None


def test_keys_differ_with_everything_that_moves_the_peak() -> None:
    plan = planned({})
    job = plan.jobs[0]
    model = plan.model
    keys = {
        key(plan),
        key(plan, vae="whole"),
        key(plan, placement="resident"),
        key_of(model, plan.setup, (job, job)),
        key_of(model, plan.setup, (job, job), alone=True),
        key_of(model, plan.setup, (replace(job, width=512),)),
        key_of(model, plan.setup, (replace(job, guidance=1.0),)),
        key_of(replace(model, revision="abc"), plan.setup, (job,)),
        key_of(known_model("sd15"), plan.setup, (job,)),
    }
    assert len(keys) == 9
    assert key_of(model, plan.setup, (replace(job, seed=9, prompt="x", steps=5),)) == key(plan)
    assert key_of(model, plan.setup, (job,), alone=True) == key(plan)  # by itself it is alone anyway
    assert "\n" not in key_of(replace(model, name="a\nb"), plan.setup, (job,))


def test_runs_add_up_and_the_highest_peak_stays() -> None:
    first = Measures(device_peak=5, host_peak=9, load=2.0, step=0.2, image=0.5)
    stored = json.loads(json.dumps(schema.to_json(merged(None, first))))
    second = merged(stored, Measures(device_peak=4, host_peak=10, step=0.1))
    assert second == Measures(device_peak=5, host_peak=10, load=2.0, step=0.1, image=0.5, runs=2)


def test_a_run_beside_other_models_says_how_long_it_takes_and_not_how_much() -> None:
    beside = Measures(load=4.0, step=0.9, image=1.5, runs=0)
    stored = json.loads(json.dumps(schema.to_json(merged(None, beside))))
    plan = planned({})
    again = planned({key(plan): stored})
    assert again.seconds is not None and again.seconds.step == 0.9
    assert (again.setup, again.footprint) == (plan.setup, plan.footprint) and plan.footprint.runs == 0
    assert {row.source for row in again.decisions} == {row.source for row in plan.decisions}
    alone = merged(stored, Measures(device_peak=5 * GIB, host_peak=GIB, step=0.8))
    assert (alone.device_peak, alone.runs, alone.load) == (5 * GIB, 1, 4.0)
    assert merged(schema.to_json(alone), beside) == replace(alone, step=0.9)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["device_peak", "host_peak", "load", "step", "picture", "runs", "x"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=anything | st.dictionaries(names, anything, max_size=7))
def test_a_file_of_any_age_is_read_or_ignored(data: Any) -> None:
    result = measures(data)
    assert result is None or (result.device_peak or result.host_peak) or (result.step is not None and not result.runs)
    assert merged(data, Measures(host_peak=1)).runs >= 1


def test_what_was_measured_does_not_change_the_setup_while_it_fits() -> None:
    gpu_of_24 = replace(gpu(24), source="nvml")
    first = planned({}, gpu_of_24)
    peak = first.footprint.device_peak * 3 // 2
    again = planned({key(first): {"device_peak": peak, "host_peak": first.footprint.host_peak, "runs": 1}}, gpu_of_24)
    assert again.setup == first.setup
    assert again.footprint.device_peak == peak
