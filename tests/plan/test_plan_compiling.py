"""Compiling: pinned by --compile on, never with off; with auto only where measurements of this machine say it saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from making import asking, gpu, jobs_of, known_model, mac, processor

from sdcli.errors import Usage
from sdcli.machine.hardware import Hardware
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.plan.refusal import remedy
from sdcli.plan.remembered import Measures, key_of, merged
from sdcli.terminal import seconds_text

GIB = 1 << 30
CPU = replace(processor(16, isa="avx2"), compiler=True, source="os")
GPU = replace(gpu(24), compiler=True, source="nvml")


def planned(hardware: Hardware = CPU, remembered: Mapping[str, Any] | None = None, **asked: Any) -> Plan:
    request = asking("sd15", **asked)
    return make_plan(request, known_model("sd15"), hardware, remembered or {}, jobs=jobs_of(request))


def measured(plan: Plan, **steps: float) -> dict[str, Any]:
    """What runs of these executions showed: seconds a step, and for `compile` those before the first one."""
    seconds = steps.pop("seconds", 40.0)
    return {
        key_of(plan.model, replace(plan.setup, execution=execution), plan.batch(0)):
            {"host_peak": 4 * GIB, "load": 5.0, "step": step, "picture": 2.0, "compile": seconds}
        for execution, step in steps.items()
    }  # fmt: skip


def reason(plan: Plan) -> str:
    return next(decision.because for decision in plan.decisions if decision.slot == "execution")


@pytest.mark.parametrize("hardware", [CPU, GPU], ids=["cpu", "gpu"])
def test_what_nobody_tried_here_is_never_compiled_unless_pinned(hardware: Hardware) -> None:
    plan = planned(hardware)
    assert plan.setup.execution == "eager" and "compile" not in reason(plan)
    pinned = reason(planned(hardware, compile="on"))
    assert pinned.startswith("compile: sdcli bench --sweep compile=off,on measures what it saves")


@pytest.mark.parametrize("hardware", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize(("steps", "chosen"), [(25, "eager"), (100, "compile")])
def test_auto_compiles_where_the_steps_of_this_run_save_more_than_compiling_takes(
    hardware: Hardware, steps: int, chosen: str
) -> None:
    """40 seconds are won back by one second a step after 40 of them."""
    known = measured(planned(hardware, steps=steps), compile=4.0, eager=5.0)
    plan = planned(hardware, known, steps=steps)
    assert plan.setup.execution == chosen
    saved = f"would save {seconds_text(steps)} of this run's steps and take 40 s before them"
    assert f"compile: measured here, {saved}" in reason(plan)


def test_images_of_one_run_share_what_compiling_took() -> None:
    known = measured(planned(), compile=4.0, eager=5.0)
    assert planned(remembered=known).setup.execution == "eager"
    assert planned(remembered=known, count=4).setup.execution == "compile"


@pytest.mark.parametrize(
    "known", [{"compile": 1.0}, {"eager": 5.0}, {"compile": 5.0, "eager": 4.0}, {"compile": 4.9, "eager": 5.0}]
)
def test_without_both_measured_or_a_clear_saving_nothing_is_compiled(known: dict[str, float]) -> None:
    plan = planned(remembered=measured(planned(), seconds=0.001, **known))
    assert plan.setup.execution == "eager"


def test_it_is_compared_with_the_fastest_other_way_that_was_measured() -> None:
    known = measured(planned(), compile=4.0, eager=9.0, packed=4.1, seconds=1.0)
    assert planned(remembered=known).setup.execution != "compile"
    assert (
        planned(remembered=measured(planned(), compile=4.0, eager=9.0, packed=6.0, seconds=1.0)).setup.execution
        == "compile"
    )


def test_measures_of_another_size_number_type_or_machine_decide_nothing() -> None:
    known = measured(planned(steps=100), compile=4.0, eager=5.0)
    assert planned(remembered=known, steps=100, size=768).setup.execution == "eager"
    assert planned(remembered=known, steps=100, pins={"dtype": "bf16"}).setup.execution == "eager"
    assert planned(replace(CPU, source="as-if"), known, steps=100).setup.execution == "eager"


def test_the_seconds_of_a_compiled_run_include_compiling() -> None:
    plan = planned(remembered=measured(planned(steps=100), compile=4.0, eager=5.0), steps=100)
    assert plan.seconds is not None and plan.seconds.total == pytest.approx(5.0 + 40.0 + 100 * 4.0 + 2.0)


def test_the_least_compiling_seen_is_remembered_as_the_first_run_fills_a_cache() -> None:
    first, later = Measures(host_peak=1, step=4.0, compile=60.0), Measures(host_peak=1, step=4.1, compile=7.0)
    both = merged({"host_peak": 1, "step": first.step, "compile": first.compile}, later)
    assert both.compile == 7.0
    assert merged({"host_peak": 1, "compile": 7.0}, first).compile == 7.0


@pytest.mark.parametrize("hardware", [CPU, GPU], ids=["cpu", "gpu"])
def test_on_compiles_and_off_never_does(hardware: Hardware) -> None:
    known = measured(planned(hardware, steps=100), compile=4.0, eager=5.0)
    on, off = planned(hardware, compile="on"), planned(hardware, known, steps=100, compile="off")
    assert (on.setup.execution, on.setup.attention) == ("compile", "fused")
    assert next(one.source for one in on.decisions if one.slot == "execution") == "pin"
    assert off.setup.execution == "eager" and "compile" not in reason(off)
    on_host, off_host = ({phase.name: phase.host for phase in plan.footprint.phases} for plan in (on, off))
    assert on_host.keys() - off_host.keys() == {"compile"}
    assert on_host["compile"] > on_host["denoise"] > off_host["denoise"]


REFUSED = [
    (replace(CPU, compiler=False), {}, "torch.compile needs a C++ compiler, not found here"),
    (replace(GPU, compiler=False), {}, "torch.compile needs the package triton and a C compiler, not found here"),
    (replace(GPU, compiler=True, amd=True), {}, "torch.compile is used on CPUs and NVIDIA's GPUs only"),
    (replace(mac(16), compiler=True), {}, "torch.compile is used on CPUs and NVIDIA's GPUs only"),
    (CPU, {"attention": "sliced"}, "compiled blocks compute attention fused"),
    (GPU, {"storage": "fp8"}, "compiled blocks need their weights as they are, on the device"),
    (GPU, {"placement": "group-offload"}, "compiled blocks need their weights as they are, on the device"),
    (GPU, {"placement": "model-offload"}, "compiled blocks need their weights as they are, on the device"),
]  # fmt: skip


@pytest.mark.parametrize(("hardware", "pins", "because"), REFUSED, ids=lambda value: str(value)[:30])
def test_where_it_cannot_work_it_is_refused_with_the_reason(
    hardware: Hardware, pins: dict[str, str], because: str
) -> None:
    with pytest.raises(Usage) as refused:
        planned(hardware, compile="on", pins=pins)
    assert because in refused.value.message and refused.value.hint == "--compile off"
    planned(hardware, compile="off", pins=pins)


@pytest.mark.parametrize(("word", "pin", "hint"), [("on", "eager", "off"), ("off", "compile", "on")])
def test_a_pin_that_says_otherwise_is_refused(word: str, pin: str, hint: str) -> None:
    with pytest.raises(Usage) as refused:
        planned(compile=word, pins={"execution": pin})
    assert refused.value.hint == f"--compile {hint}"
    planned(compile=hint, pins={"execution": pin})


def test_a_compiled_run_that_does_not_fit_is_told_what_does() -> None:
    pinned = {"dtype": "fp32", "placement": "resident", "vae": "whole"}
    whole = planned(compile="off", pins=pinned).footprint.host_peak
    plan = planned(compile="on", max_ram=int(whole * 1.01 / 0.92), pins=pinned)
    assert not plan.fits and remedy(plan) == "the same command with --compile off"
