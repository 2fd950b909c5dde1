"""Drawing on pretend GPUs of AMD, Intel and Apple: found, planned for, drawn on, and freed again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from draw_samples import FAMILIES, request_for
from draw_samples import plan_for as plan_for_the_cpu

from sdcli.asking import probing
from sdcli.draw import devices, local
from sdcli.errors import DeviceUnusable, OutOfMemory, Usage
from sdcli.events import Decoded, Degraded, Memory
from sdcli.machine import memory, survey
from sdcli.models import resolve
from sdcli.plan import calibration
from sdcli.plan.plan import Plan
from sdcli.plan.planner import make_plan
from tests.pretend_gpu import Pretended, device, pretend

KINDS = ("rocm", "xpu", "mps")
DEVICES = {"rocm": "cuda:0", "xpu": "xpu:0", "mps": "mps"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gpu(kind: str) -> Iterator[Pretended]:
    with pretend(device("16GiB", "12GiB", kind=kind)) as made:
        yield made


def plan_for(path: Path, **asked: Any) -> Plan:
    """As the command line makes it on this machine."""
    request = request_for(**asked)
    hardware, _ = probing.sized(survey.choose(request.device, survey.look()))
    plan = make_plan(request, resolve.at(path), hardware, {})
    return replace(plan, setup=replace(plan.setup, threads=torch.get_num_threads()))


def pixels(plan: Plan) -> list[bytes]:
    return [event.pixels for event in local.run(plan) if isinstance(event, Decoded)]


@pytest.fixture(scope="module")
def on_the_cpu(tiny_folders: dict[str, Path]) -> dict[str, list[bytes]]:
    """What each family draws there."""
    plans = {family: plan_for_the_cpu(folder, negative_prompt="dark") for family, folder in tiny_folders.items()}
    return {family: pixels(plan) for family, plan in plans.items()}


@pytest.fixture(scope="module")
def plain(tiny_folders: dict[str, Path]) -> dict[str, list[bytes]]:
    """What each kind draws where all stays on it."""
    drawn = {}
    for kind in KINDS:
        with pretend(device("16GiB", "12GiB", kind=kind)):
            plan = plan_for(tiny_folders["sd15"], steps=2, pins={"dtype": "fp32"})
            assert plan.setup.placement == "resident"
            drawn[kind] = pixels(plan)
    return drawn


def left(gpu: Pretended) -> int:
    gc.collect()
    return gpu.held()


def test_it_is_found_and_planned_for(tiny_folders: dict[str, Path], kind: str, gpu: Pretended) -> None:
    plan = plan_for(tiny_folders["sd15"])
    hardware = plan.hardware
    assert (plan.setup.device, hardware.backend, plan.setup.dtype) == (DEVICES[kind], kind, "fp16")
    if kind == "mps":
        limit = memory.apple_limit(16 << 30)
        assert (hardware.total, hardware.free) == (limit, min(limit, 12 << 30)) and hardware.shares_memory
    else:
        assert (hardware.total, hardware.free) == (16 << 30, 12 << 30)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_those_of_the_cpu_and_nothing_is_left(
    tiny_folders: dict[str, Path], on_the_cpu: dict[str, list[bytes]], kind: str, gpu: Pretended, family: str
) -> None:
    plan = plan_for(tiny_folders[family], pins={"dtype": "fp32"}, negative_prompt="dark")
    drawn = pixels(plan)
    assert left(gpu) == 0 and gpu.allocator().allocated.peak > 0
    (image,), (reference,) = drawn, on_the_cpu[family]
    rounding = 1 if kind == "mps" else 0  # of 255: there layers are laid out otherwise, and sums taken in another order
    assert max(abs(one - other) for one, other in zip(image, reference, strict=True)) <= rounding


@pytest.mark.parametrize(
    ("kind", "placement"),
    [
        ("rocm", "group-offload"), ("rocm", "disk"), ("xpu", "drop-encoders"), ("xpu", "model-offload"),
        *(("mps", placement) for placement in ("drop-encoders", "model-offload", "group-offload", "disk")),
        *(pytest.param("rocm", placement, marks=pytest.mark.proof) for placement in ("drop-encoders", "model-offload")),
        *(pytest.param("xpu", placement, marks=pytest.mark.proof) for placement in ("group-offload", "disk")),
    ],
)  # fmt: skip
def test_every_placement_that_is_legal_there_draws_the_same_image(
    tiny_folders: dict[str, Path], plain: dict[str, list[bytes]], kind: str, gpu: Pretended, placement: str
) -> None:
    pins = {"dtype": "fp32", "placement": placement}
    if kind == "mps" and "offload" in placement:
        with pytest.raises(Usage, match="share their memory"):
            plan_for(tiny_folders["sd15"], pins=pins)
        return
    assert pixels(plan_for(tiny_folders["sd15"], steps=2, pins=pins)) == plain[kind]
    assert left(gpu) == 0


def test_peaks_are_those_the_allocator_counted(tiny_folders: dict[str, Path], kind: str, gpu: Pretended) -> None:
    events = list(local.run(plan_for(tiny_folders["sdxl"])))
    peaks = [event for event in events if isinstance(event, Memory)]
    assert max(event.device_peak or 0 for event in peaks) > 0
    if kind != "mps":  # torch counts no peaks there
        assert max(event.allocated_peak or 0 for event in peaks) == gpu.allocator().most_allocated


@pytest.mark.parametrize("kind", [pytest.param("rocm", marks=pytest.mark.proof), "xpu", "mps"])
def test_memory_may_run_out_at_any_allocation(
    tiny_folders: dict[str, Path], plain: dict[str, list[bytes]], kind: str
) -> None:
    """At four of them, others with each kind: the image is drawn by a fallback, in torch's own words for that
    device."""
    with pretend(device("16GiB", kind=kind)) as gpu:
        plan = plan_for(tiny_folders["sd15"], steps=2, pins={"dtype": "fp32"})
        assert pixels(plan) == plain[kind]
        allocations = gpu.allocator().requests
    for number in [1 + allocations * twelfth // 12 for twelfth in range(KINDS.index(kind), 12, 3)]:
        with pretend(device("16GiB", kind=kind)) as gpu:
            gpu.fail_at(number)
            events = [event for event in local.run(plan) if isinstance(event, (Decoded, Degraded))]
            assert left(gpu) == 0
            drops = [event for event in events if isinstance(event, Degraded)]
            drawn = [event.pixels for event in events if isinstance(event, Decoded)]
            assert len(drops) == 1 and len(drawn) == 1, number
            if not drops[0].changes_pixels:
                assert drawn == plain[kind], number


def test_without_fallbacks_running_out_says_what_is_free(tiny_folders: dict[str, Path], gpu: Pretended) -> None:
    plan = plan_for(tiny_folders["sd15"], fallback=False)
    gpu.fail_at(20)
    with pytest.raises(OutOfMemory) as caught:
        list(local.run(plan))
    assert caught.value.details["free"] > 8 << 30 and "out of memory" in caught.value.message
    assert left(gpu) == 0


def test_a_cap_holds_where_the_gpu_has_memory_of_its_own(tiny_folders: dict[str, Path], kind: str) -> None:
    with pretend(device("16GiB", kind=kind)) as gpu:
        if kind == "mps":
            with pytest.raises(Usage, match="--max-vram"):
                plan_for(tiny_folders["sd15"], max_vram=2 << 30)
            return
        plan = plan_for(tiny_folders["sd15"], max_vram=2 << 30)
        limits = [gpu.allocator().limit for event in local.run(plan) if isinstance(event, Decoded)]
        assert limits == [(2 << 30) - calibration.context(kind)]


def test_the_second_gpu_is_drawn_on_where_it_is_named(tiny_folders: dict[str, Path]) -> None:
    for kind, named in (("rocm", "cuda:1"), ("xpu", "xpu:1")):
        with pretend(device("16GiB", kind=kind), device("16GiB", kind=kind)) as gpus:
            plan = plan_for(tiny_folders["sd15"], device=named)
            assert plan.setup.device == named and len(pixels(plan)) == 1
            assert gpus.allocator(0).requests == 0 and gpus.allocator(1).requests > 0


def test_an_intel_gpu_that_torch_does_not_see_is_unusable() -> None:
    with pretend(device("16GiB", kind="xpu"), device("16GiB", kind="xpu")):
        seen = survey.choose("xpu:1", survey.look())
    with (
        pretend(device("16GiB", kind="xpu")),
        pytest.raises(DeviceUnusable, match="torch cannot use Arc A770") as caught,
    ):
        probing.sized(seen)
    assert caught.value.hint == "--device cpu"


def test_an_intel_driver_that_does_not_tell_what_is_free_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> tuple[int, int]:
        raise RuntimeError("The device doesn't support querying its available free memory.")

    with pretend(device("16GiB", "4GiB", kind="xpu")):
        monkeypatch.setattr(torch.xpu, "mem_get_info", silent)
        found, _ = probing.sized(survey.choose("xpu", survey.look()))
    assert found.free == found.total == 16 << 30
    assert "does not tell how much of its memory is free" in found.notes[0]


def test_a_size_that_linux_does_not_tell_is_asked_of_torch_too() -> None:
    with pretend(device("16GiB", "4GiB", kind="rocm")) as gpu:
        found = replace(survey.choose("cuda", survey.look()), total=0, free=0)
        assert (gpu.allocator().requests, probing.sized(found)[0].total) == (0, 16 << 30)
        assert probing.sized(found)[0].free == 4 << 30


def test_the_table_knows_every_kind_that_a_plan_can_name() -> None:
    assert set(devices.KINDS) == {"cpu", "mps", "cuda", "xpu"}
    assert devices.functions("cpu").streams is devices.functions("mps").streams is False
