"""Plans for AMD's, Intel's and Apple's GPUs: what is assumed of them, and what is not offered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from making import asking, jobs_of, known_model

from sdcli.cli import plan_screen
from sdcli.errors import Usage
from sdcli.machine import as_if
from sdcli.machine.memory import Memory
from sdcli.machine.processor import Processor
from sdcli.plan import calibration
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from sdcli.plan.techniques import dtype
from sdcli.request.request import Request
from sdcli.sizes import GIB

HOST = Memory(total=64 * GIB, available=60 * GIB)
CHIP = Processor(name="Ryzen 5 5600", isa="avx2", cores=6, threads=6)


def plan_for(described: str, request: Request | None = None) -> Plan:
    request = request or asking("sdxl")
    return make_plan(
        request, known_model("sdxl"), as_if.parse(described, HOST, CHIP), {}, jobs=jobs_of(request), version="1"
    )  # fmt: skip


@pytest.mark.parametrize(("described", "device"), [("rocm:16GiB", "cuda:0"), ("xpu:16GiB", "xpu:0"), ("mps", "mps")])
def test_a_large_gpu_keeps_everything_and_says_that_its_overheads_are_assumed(described: str, device: str) -> None:
    plan = plan_for(described)
    assert plan.fits and (plan.setup.device, plan.setup.placement) == (device, "resident")
    text = plan_screen.render(plan, 80)
    assert "assumed overheads: sdcli was not measured on any GPU of" in " ".join(text)


@pytest.mark.parametrize("backend", ["rocm", "xpu"])
def test_a_small_gpu_streams_from_the_host(backend: str) -> None:
    plan = plan_for(f"{backend}:4GiB")
    assert plan.fits and plan.setup.placement == "group-offload"
    assert plan.fallbacks and all(row.setup.storage == "same" for row in plan.fallbacks)


@pytest.mark.parametrize("backend", ["rocm", "xpu"])
def test_the_budget_leaves_room_for_its_own_context(backend: str) -> None:
    plan = plan_for(f"{backend}:8GiB/7GiB")
    assert plan.budget.device == int(calibration.SAFETY * (7 * GIB - calibration.context(backend)))
    limited = plan_for(f"{backend}:8GiB/7GiB", asking("sdxl", max_vram=6 * GIB))
    assert limited.budget.device == int(calibration.SAFETY * (6 * GIB - calibration.context(backend)))


@pytest.mark.parametrize("backend", ["rocm", "xpu"])
def test_what_is_known_of_nvidia_only_is_not_offered(backend: str) -> None:
    plan = plan_for(f"{backend}:8GiB")
    assert all(row.setup.storage == "same" for row in plan.alternatives)
    with pytest.raises(Usage, match="fp8 storage is for NVIDIA GPUs"):
        plan_for(f"{backend}:8GiB", asking("sdxl", pins={"storage": "fp8"}))
    with pytest.raises(Usage, match="CUDA graphs are for NVIDIA GPUs"):
        plan_for(f"{backend}:8GiB", asking("sdxl", pins={"execution": "graph"}))


def test_an_amd_gpu_without_bf16_is_refused_it_by_its_own_reason() -> None:
    old = replace(as_if.parse("rocm:16GiB", HOST, CHIP), dtypes={"fp32": "assumed", "bf16": "unavailable"})
    assert not dtype.native_bf16(old)
    request = asking("sdxl", pins={"dtype": "bf16"})
    with pytest.raises(Usage, match="bf16 is slow or wrong on this device"):
        make_plan(request, known_model("sdxl"), old, {}, jobs=jobs_of(request))


def test_a_gpu_in_the_processor_counts_its_memory_once_and_offloads_nothing() -> None:
    own = as_if.parse("rocm:32GiB", HOST, CHIP)
    shared = replace(own, integrated=True)
    request = asking("sdxl")
    plan = make_plan(request, known_model("sdxl"), shared, {}, jobs=jobs_of(request))
    apart = make_plan(request, known_model("sdxl"), own, {}, jobs=jobs_of(request))
    assert plan.footprint.host_peak == pytest.approx(apart.footprint.host_peak + apart.footprint.device_peak, rel=0.2)
    assert not any("offload" in row.setup.placement for row in plan.alternatives)
    with pytest.raises(Usage, match="this GPU and CPU share their memory"):
        pinned = asking("sdxl", pins={"placement": "model-offload"})
        make_plan(pinned, known_model("sdxl"), shared, {}, jobs=jobs_of(pinned))


def test_an_nvidia_gpu_of_the_same_size_is_planned_for_as_before() -> None:
    assert "assumed overheads" not in " ".join(plan_screen.render(plan_for("cuda:16GiB"), 80))
    assert plan_for("cuda:8GiB").budget.device == int(calibration.CUDA_SAFETY * (8 * GIB - calibration.CUDA_CONTEXT))
