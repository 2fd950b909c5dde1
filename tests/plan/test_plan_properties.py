"""For every machine, model, size and pin: fits or says that it does not, never slower with more memory, pins obeyed."""

from __future__ import annotations

import functools
import itertools
import random
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import asking, gpu, jobs_of, known_model, mac, processor

from sdcli.errors import Usage
from sdcli.machine.hardware import Hardware, Trial
from sdcli.models.model import Model
from sdcli.plan.legality import legal
from sdcli.plan.pins import candidates
from sdcli.plan.plan import Plan, Setup
from sdcli.plan.planner import make_plan
from sdcli.plan.techniques import TECHNIQUES

many = settings(max_examples=60, deadline=None, derandomize=True)
families = st.sampled_from(["sd15", "sdxl"])
sides = st.sampled_from([256, 512, 520, 768, 1024, 1536])
memories = st.floats(1, 80)
rams = st.sampled_from([2, 4, 8, 16, 64])
capabilities = st.sampled_from(["6.1", "7.5", "8.6", "9.0"])

model_of = functools.cache(known_model)


def planned(family: str, hardware: Hardware, **asked: Any) -> Plan:
    request = asking(family, **asked)
    return make_plan(request, model_of(family), hardware, {}, jobs=jobs_of(request))


@st.composite
def machines(draw: st.DrawFn) -> Hardware:
    ram = draw(rams)
    kind = draw(st.sampled_from(["cuda", "cuda", "cpu", "mps"]))
    if kind == "cuda":
        return gpu(draw(memories), ram=ram, capability=draw(capabilities))
    if kind == "mps":
        return mac(ram)
    return processor(ram, isa=draw(st.sampled_from(["avx2", "avx512", "avx512_bf16", "neon"])))


pinned = st.dictionaries(
    st.sampled_from(TECHNIQUES).map(lambda technique: technique.flag), st.nothing(), max_size=0
) | st.lists(st.sampled_from([(t.flag, c) for t in TECHNIQUES for c in t.choices]), max_size=3).map(dict)


@many
@given(family=families, side=sides, batch=st.integers(1, 4), hardware=machines())
def test_a_plan_fits_its_budgets_or_says_that_nothing_does(
    family: str, side: int, batch: int, hardware: Hardware
) -> None:
    plan = planned(family, hardware, size=side, count=batch, batch_size=batch)
    peak = plan.footprint
    within = peak.device_peak <= plan.budget.device and peak.host_peak <= plan.budget.host
    assert plan.fits == within
    for row in plan.alternatives:
        if row.fits and row.setup.device == plan.setup.device and row.setup.storage == "same":
            assert plan.fits and row.slowdown >= plan.slowdown
    assert plan.slowdown >= 1
    assert len(plan.alternatives) <= 33


# Four sizes, each against the next: all six pairs, for four plans.
fewer = settings(many, max_examples=15)
growing = st.lists(memories, min_size=4, max_size=4).map(sorted)


@fewer
@given(family=families, side=sides, sizes=growing, ram=rams, capability=capabilities)
def test_a_bigger_gpu_is_never_slower(family: str, side: int, sizes: list[float], ram: float, capability: str) -> None:
    never_slower([planned(family, gpu(gib, ram=ram, capability=capability), size=side) for gib in sizes])


@fewer
@given(family=families, side=sides, sizes=growing, gib=st.floats(1, 24))
def test_more_host_memory_is_never_slower(family: str, side: int, sizes: list[float], gib: float) -> None:
    for make in (lambda ram: gpu(gib, ram=ram), processor, mac):
        never_slower([planned(family, make(ram), size=side) for ram in sizes])


def never_slower(plans: list[Plan]) -> None:
    for small, large in itertools.pairwise(plans):
        assert large.fits or not small.fits
        if small.fits:
            assert large.slowdown <= small.slowdown


@many
@given(family=families, hardware=machines(), pins=pinned)
def test_a_pin_is_obeyed_or_refused_with_a_reason_and_choices_that_work(
    family: str, hardware: Hardware, pins: dict[str, str]
) -> None:
    try:
        plan = planned(family, hardware, pins=pins)
    except Usage as error:
        assert error.code == 2 and pins
        assert error.details["because"]
        assert error.hint
        for choice in error.details["choices"]:
            planned(family, hardware, pins={error.details["slot"]: choice})
        return
    assert plan.slowdown >= 1
    for flag, choice in pins.items():
        slot = flag.replace("-", "_")
        assert getattr(plan.setup, slot) == choice
        assert next(row.source for row in plan.decisions if row.slot == slot) == "pin"
        for fallback in plan.fallbacks:
            assert getattr(fallback.setup, slot) == choice


@many
@given(family=families, hardware=machines(), side=sides)
def test_nothing_illegal_is_ever_offered(family: str, hardware: Hardware, side: int) -> None:
    plan = planned(family, hardware, size=side)
    setups = [plan.setup, *(fallback.setup for fallback in plan.fallbacks)]
    setups += [row.setup for row in plan.alternatives if row.setup.device == hardware.device]
    for setup in setups:
        assert legal(setup, hardware, model_of(family)) is None


NOT_FOR_CPUS = {"dtype=fp16", "storage=fp8", "placement=model-offload", "placement=group-offload", "vae=cpu",
                "vae_dtype=bf16", "execution=graph"}  # fmt: skip
NOT_FOR_GPUS = {"attention=blocked", "execution=packed", "execution=openvino", "execution=compile"}
NOT_FOR_MACS = {"dtype=bf16", "storage=fp8", "placement=model-offload", "placement=group-offload",
                "attention=blocked", "attention=sliced", "vae_dtype=bf16", "execution=graph", "execution=packed",
                "execution=openvino", "execution=compile"}  # fmt: skip
# How many of the 10,800 combinations of choices are legal, for SD1.5 and SDXL, and what is never a choice there.
LEGAL: list[tuple[Hardware, int, int, set[str]]] = [
    (gpu(8), 1040, 896, NOT_FOR_GPUS),
    (gpu(8, capability="7.5"), 560, 416, {*NOT_FOR_GPUS, "dtype=bf16", "vae_dtype=bf16"}),
    (replace(gpu(8), compiler=True), 1190, 1028, NOT_FOR_GPUS - {"execution=compile"}),
    (processor(8), 288, 288, {*NOT_FOR_CPUS, "execution=openvino", "execution=compile"}),
    (processor(8, isa="avx2"), 216, 216, {*NOT_FOR_CPUS, "execution=openvino", "execution=compile"}),
    (replace(processor(8), openvino=True), 360, 360, {*NOT_FOR_CPUS, "execution=compile"}),
    (replace(processor(8), compiler=True), 360, 360, {*NOT_FOR_CPUS, "execution=openvino"}),
    (mac(8), 90, 72, NOT_FOR_MACS),
]


@pytest.mark.parametrize(
    ("hardware", "sd15", "sdxl", "never"),
    LEGAL,
    ids=["8.6", "7.5", "compiler", "avx512", "avx2", "openvino", "compiling", "mps"],
)
def test_which_combinations_are_legal_is_settled_and_all_others_have_a_reason(
    hardware: Hardware, sd15: int, sdxl: int, never: set[str]
) -> None:
    for family, count in (("sd15", sd15), ("sdxl", sdxl)):
        left, legal_ones = {f"{t.slot}={choice}" for t in TECHNIQUES for choice in t.choices}, 0
        offered = []
        for choices in itertools.product(*[technique.choices for technique in TECHNIQUES]):
            chosen = dict(zip([t.slot for t in TECHNIQUES], choices, strict=True))
            reason = legal(Setup(**chosen), hardware, model_of(family))  # type: ignore[arg-type]
            assert reason is None or reason.strip()
            if reason is None:
                legal_ones += 1
                left -= {f"{slot}={choice}" for slot, choice in chosen.items()}
                offered += [] if any(chosen[t.slot] in t.by_pin for t in TECHNIQUES) else [chosen]
        assert (legal_ones, left) == (count, never)
        found = candidates(Setup(), hardware, model_of(family), {})
        assert [{t.slot: t.of(setup) for t in TECHNIQUES} for setup in found] == offered


KNOWN_BAD: list[tuple[Hardware, str, dict[str, str]]] = [
    (processor(8), "sd15", {"dtype": "fp16"}),
    (processor(8), "sd15", {"placement": "model-offload"}),
    (processor(8), "sd15", {"placement": "group-offload"}),
    (processor(8), "sd15", {"storage": "fp8"}),
    (processor(8), "sd15", {"vae": "cpu"}),
    (processor(8), "sd15", {"dtype": "fp32", "attention": "blocked"}),
    (gpu(8), "sd15", {"attention": "blocked"}),
    (gpu(8), "sd15", {"execution": "packed"}),
    (replace(gpu(8), openvino=True), "sd15", {"execution": "openvino"}),
    (processor(8), "sd15", {"execution": "openvino"}),
    (replace(processor(8), openvino=True), "sd15", {"execution": "openvino", "attention": "blocked"}),
    (replace(processor(8), openvino=True), "sd15", {"execution": "openvino", "attention": "sliced"}),
    (processor(8), "sd15", {"execution": "packed", "attention": "sliced"}),
    (replace(processor(8), trial=Trial(dtype="bf16")), "sd15", {"execution": "packed", "dtype": "bf16"}),
    (processor(8), "sd15", {"execution": "graph"}),
    (gpu(8), "sd15", {"execution": "graph", "placement": "model-offload"}),
    (gpu(8), "sd15", {"execution": "graph", "placement": "disk"}),
    (gpu(8), "sd15", {"execution": "graph", "storage": "fp8"}),
    (gpu(8, capability="7.5"), "sd15", {"dtype": "bf16"}),
    (gpu(8), "sdxl", {"dtype": "fp16", "vae_dtype": "same"}),
    (gpu(8), "sd15", {"vae": "cpu", "vae_dtype": "bf16"}),
    (mac(8), "sd15", {"placement": "model-offload"}),
    (mac(8), "sd15", {"attention": "sliced"}),
]


@pytest.mark.parametrize(("hardware", "family", "bad"), KNOWN_BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_not_a_candidate(hardware: Hardware, family: str, bad: dict[str, str]) -> None:
    assert candidates(Setup(device=hardware.device), hardware, model_of(family), bad) == []


def _shuffled(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Everywhere: what is made of the tuple on import is a dict, or sorted."""
    order = list(TECHNIQUES)
    random.Random(seed).shuffle(order)
    users = [module for module in list(sys.modules.values()) if vars(module).get("TECHNIQUES") is TECHNIQUES]
    assert {"legality", "weigh", "pins", "planner", "fallbacks", "remembered"} <= {
        module.__name__.rpartition(".")[2] for module in users
    }
    for module in users:
        monkeypatch.setattr(module, "TECHNIQUES", tuple(order))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("hardware", [gpu(8, free=7.1), gpu(3), processor(6), mac(12)], ids=lambda h: h.device)
def test_the_order_of_slots_changes_nothing(hardware: Hardware, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned("sdxl", hardware)
    _shuffled(monkeypatch, seed)
    after = planned("sdxl", hardware)
    assert after.setup == before.setup
    assert [(w.setup, w.device_peak, w.slowdown) for w in after.alternatives] == [
        (w.setup, w.device_peak, w.slowdown) for w in before.alternatives
    ]
    assert [fallback.setup for fallback in after.fallbacks] == [fallback.setup for fallback in before.fallbacks]
    assert {row.slot: row.because for row in after.decisions} == {row.slot: row.because for row in before.decisions}


@many
@given(family=families, hardware=machines(), side=sides)
def test_every_fallback_is_smaller_and_none_comes_twice(family: str, hardware: Hardware, side: int) -> None:
    plan = planned(family, hardware, size=side)
    peaks = [plan.footprint.device_peak, *(fallback.device_peak for fallback in plan.fallbacks)]
    assert all(below < above for above, below in itertools.pairwise(peaks))
    setups = [plan.setup, *(fallback.setup for fallback in plan.fallbacks)]
    assert len(set(setups)) == len(setups)


@many
@given(family=families, hardware=machines())
def test_no_row_of_the_table_is_slower_and_larger_than_another(family: str, hardware: Hardware) -> None:
    plan = planned(family, hardware)
    rows = [row for row in plan.alternatives if row.setup.device == hardware.device and not row.chosen]
    for a, b in itertools.permutations(rows, 2):
        if a.setup.storage == b.setup.storage:
            worse = a.slowdown > b.slowdown and a.device_peak > b.device_peak and a.host_peak > b.host_peak
            assert not worse


def test_a_plan_is_a_pure_function() -> None:
    model: Model = model_of("sdxl")
    request = asking("sdxl")
    one, two = (make_plan(request, model, gpu(6), {}, jobs=jobs_of(request)) for _ in range(2))
    assert one == two
