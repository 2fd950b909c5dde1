"""Which device draws, why another cannot, and what each can be trusted to compute in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from machines import CPU_TORCH, CUDA_TORCH, GIB, gpu, machine

from sdcli import schema
from sdcli.errors import DeviceUnusable, Usage
from sdcli.machine import dtypes, memories, survey
from sdcli.machine.hardware import Hardware, Probe
from sdcli.machine.nvml import Nvidia
from sdcli.machine.packages import Torch


def _names(devices: tuple[Hardware, ...]) -> list[str]:
    return [device.device for device in devices]


def test_a_gpu_that_torch_can_use_is_taken_first_and_described_whole() -> None:
    chosen = survey.choose("auto", machine(gpu()))
    assert (chosen.device, chosen.name, chosen.source, chosen.capability, chosen.driver, chosen.uuid) == (
        "cuda:0", "RTX 4060", "nvml", "8.9", "581.42", "GPU-0",
    )  # fmt: skip
    assert (chosen.total, chosen.free, chosen.ram_total, chosen.ram_free) == (8 * GIB, 7 * GIB, 16 * GIB, 10 * GIB)
    assert chosen.dtypes == {"fp32": "assumed", "bf16": "assumed", "fp16": "assumed"}
    assert survey.gpu_warning(chosen, survey=machine(gpu())) is None


def test_without_a_gpu_the_cpu_draws_and_nothing_is_said() -> None:
    seen = machine()
    cpu = survey.choose("auto", seen)
    assert (cpu.device, cpu.total, cpu.free, cpu.isa, cpu.threads) == ("cpu", 16 * GIB, 10 * GIB, "avx2", 6)
    assert survey.gpu_warning(cpu, survey=seen) is None


def test_a_gpu_that_torch_cannot_use_leaves_the_cpu_one_line_and_the_fix() -> None:
    seen = machine(gpu(), torch=CPU_TORCH)
    chosen = survey.choose("auto", seen)
    assert chosen.device == "cpu"
    warning = survey.gpu_warning(chosen, survey=seen)
    assert warning is not None and warning.code == "gpu-unusable"
    assert warning.message == "RTX 4060 is not used: torch 2.13.0+cpu is a CPU build"
    assert "torch==2.13.0+cu130" in warning.hint and "\n" not in warning.message


def test_who_asks_for_the_cpu_is_not_told_of_the_gpu() -> None:
    seen = machine(gpu(), torch=CPU_TORCH)
    assert survey.gpu_warning(survey.choose("cpu", seen), survey=seen, asked="cpu") is None


def test_asking_for_that_gpu_ends_with_8_and_the_same_fix() -> None:
    with pytest.raises(DeviceUnusable) as caught:
        survey.choose("cuda", machine(gpu(), torch=CPU_TORCH))
    assert caught.value.code == 8 and "CPU build" in caught.value.message and "torch==2.13.0+cu130" in caught.value.hint


def test_a_gpu_too_old_for_any_torch_offers_the_cpu() -> None:
    with pytest.raises(DeviceUnusable) as caught:
        survey.choose("cuda:0", machine(gpu("NVIDIA GeForce GT 710", capability="3.5")))
    assert "3.5" in caught.value.message and caught.value.hint.endswith("--device cpu")


def test_a_driver_too_old_for_any_torch_is_named() -> None:
    nvidia = Nvidia(gpus=(gpu(),), driver="470.1", cuda="11.4")
    problem = survey.gpu_problem(machine(nvidia=nvidia))
    assert problem is not None and "470.1" in problem.message and "525" in problem.message


def test_of_two_gpus_the_usable_one_is_taken_under_its_own_number() -> None:
    old = gpu("NVIDIA GeForce GTX 1080", capability="6.1")
    seen = machine(old, gpu(index=1))
    assert _names(survey.usable(seen)) == ["cuda:1", "cpu"]
    assert survey.choose("auto", seen).device == "cuda:1"
    assert survey.choose("cuda", seen).device == "cuda:1"
    assert survey.gpu_problem(seen) is None, "there is a GPU to draw on"
    (unusable,) = survey.unusable_gpus(seen)
    assert unusable.device == "cuda:0" and set(unusable.dtypes.values()) == {"unavailable"}
    with pytest.raises(DeviceUnusable, match="cuda:1"):
        survey.choose("cuda:0", seen)


def test_a_gpu_that_is_asked_for_by_number_is_given_by_number() -> None:
    seen = machine(gpu(), gpu(index=1))
    assert [survey.choose(name, seen).device for name in ("cuda", "cuda:0", "CUDA:1", " cpu ")] == [
        "cuda:0", "cuda:0", "cuda:1", "cpu",
    ]  # fmt: skip
    with pytest.raises(DeviceUnusable, match="cuda:2"):
        survey.choose("cuda:2", seen)


def test_hidden_gpus_are_meant_to_be_hidden() -> None:
    seen = machine(gpu(), environment={"CUDA_VISIBLE_DEVICES": ""})
    chosen = survey.choose("auto", seen)
    assert chosen.device == "cpu" and survey.gpu_warning(chosen, survey=seen) is None
    with pytest.raises(DeviceUnusable, match="CUDA_VISIBLE_DEVICES"):
        survey.choose("cuda", seen)


def test_asking_for_a_gpu_where_there_is_none_offers_what_there_is() -> None:
    for device in ("cuda", "mps"):
        with pytest.raises(DeviceUnusable) as caught:
            survey.choose(device, machine())
        assert caught.value.hint == "--device cpu"


@pytest.mark.parametrize(
    "device", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1234", "cpu:0", "mps:0", "\x1b[2J", "cuda:٣"]
)
def test_a_device_that_cannot_be_is_a_usage_error_that_names_those_that_can(device: str) -> None:
    with pytest.raises(Usage) as caught:
        survey.choose(device, machine(gpu()))
    assert "cuda:1" in caught.value.message and "\x1b" not in caught.value.message


def test_apple_silicon_draws_on_its_gpu_within_what_macos_lets_it_hold() -> None:
    seen = machine(torch=Torch(version="2.13.0"), apple=True, isa="neon", ram=24)
    chosen = survey.choose("auto", seen)
    assert (chosen.device, chosen.name, chosen.total) == ("mps", "Apple M2", 16 * GIB)
    assert chosen.dtypes == {"fp32": "assumed", "bf16": "unavailable", "fp16": "assumed"}
    assert _names(survey.usable(seen)) == ["mps", "cpu"]


def test_a_gpu_in_the_hosts_memory_has_the_hosts_bytes() -> None:
    chosen = survey.choose("auto", machine(gpu("NVIDIA GB10", capability="12.1", gib=0)))
    assert (chosen.total, chosen.free) == (16 * GIB, 10 * GIB)


def test_a_broken_driver_and_a_missing_one_are_told_apart_from_no_gpu() -> None:
    broken = machine(
        nvidia=Nvidia(reason="the NVIDIA driver was updated while in use: restart the machine", broken=True)
    )
    problem = survey.gpu_problem(broken)
    assert problem is not None and problem.code == "gpu-no-driver" and "restart" in problem.message
    missing = survey.gpu_problem(machine(driverless=True))
    assert missing is not None and "driver" in missing.message
    assert survey.gpu_problem(machine(nvidia=Nvidia(reason="the NVIDIA driver is not loaded"))) is None


def test_a_plan_for_another_machine_is_not_warned_about_this_one() -> None:
    imagined = survey.choose("cpu", machine())
    seen = machine(gpu(), torch=CPU_TORCH)
    assert survey.gpu_warning(imagined, survey=seen) is not None
    assert survey.gpu_warning(replace(imagined, source="as-if"), survey=seen) is None


# --- number types


@pytest.mark.parametrize(
    ("isa", "bf16"),
    [("amx", "assumed"), ("avx512_bf16", "assumed"), ("neon_bf16", "assumed"), ("avx512", "unavailable"),
     ("avx2", "unavailable"), ("neon", "unavailable"), ("", "unavailable")],
)  # fmt: skip
def test_a_cpu_computes_in_bf16_only_with_instructions_for_it_and_never_in_fp16(isa: str, bf16: str) -> None:
    assert dtypes.cpu(isa) == {"fp32": "assumed", "bf16": bf16, "fp16": "unavailable"}


@pytest.mark.parametrize(
    ("capability", "bf16", "fp16"),
    [("5.2", "unavailable", "unavailable"), ("6.1", "unavailable", "assumed"), ("7.5", "unavailable", "assumed"),
     ("8.0", "assumed", "assumed"), ("12.0", "assumed", "assumed"), (None, "assumed", "assumed")],
)  # fmt: skip
def test_a_gpu_computes_in_what_its_capability_has(capability: str | None, bf16: str, fp16: str) -> None:
    assert dtypes.cuda(capability) == {"fp32": "assumed", "bf16": bf16, "fp16": fp16}


def test_gtx_16xx_carries_a_warning_and_its_turing_sisters_do_not() -> None:
    noted = survey.choose("auto", machine(gpu("NVIDIA GeForce GTX 1660 SUPER", capability="7.5")))
    assert "fp16" in noted.notes[0]
    assert survey.choose("auto", machine(gpu("NVIDIA GeForce RTX 2060", capability="7.5"))).notes == ()
    assert "notes" not in schema.to_json(noted), "notes are for people; the JSON keeps its keys"


def test_a_probe_on_this_machine_replaces_what_was_assumed() -> None:
    slow = Probe(dtypes={"fp32": "probed", "bf16": "unavailable"}, ratio={"bf16": 3.0}, seconds=0.8)
    probes = {("Ryzen 5 5600", "avx512_bf16", "2.13.0+cpu"): slow}
    chosen = survey.choose("cpu", machine(torch=CPU_TORCH, isa="avx512_bf16", probes=probes))
    assert chosen.dtypes == {"fp32": "probed", "bf16": "unavailable", "fp16": "unavailable"}
    other = survey.choose("cpu", machine(torch=CUDA_TORCH, isa="avx512_bf16", probes=probes))
    assert other.dtypes["bf16"] == "assumed", "another torch, another answer"


def test_hardware_goes_through_json_without_what_belongs_to_this_process() -> None:
    chosen = survey.choose("auto", machine(gpu()))
    data = schema.to_json(chosen)
    assert list(data) == [
        "device", "name", "source", "total", "free", "ram_total", "ram_free", "amd", "integrated", "capability",
        "driver", "isa", "threads", "dtypes", "openvino", "compiler",
    ]  # fmt: skip
    back = schema.from_json(Hardware, data)
    assert back.uuid is None and schema.to_json(back) == data


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("NVIDIA GeForce RTX 4060", "RTX 4060"),
        ("NVIDIA H200", "H200"),
        ("Tesla T4", "Tesla T4"),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "A100-SXM4-80GB MIG 3g.40gb"),
        ("", "NVIDIA GPU"),
    ],
)
def test_gpus_are_called_what_people_call_them(long: str, short: str) -> None:
    assert survey.short_name(long) == short


def test_this_machine_can_be_looked_at_and_holds_together() -> None:
    devices = survey.usable(survey.look())
    for device in devices:
        assert 0 <= device.free <= device.total and device.threads >= 1
        assert set(device.dtypes) == set(dtypes.NAMES)
    assert devices[-1].device == "cpu" and devices[-1].ram_total > 0


def test_a_look_brings_the_probes_that_are_remembered() -> None:
    fast = Probe(dtypes={"bf16": "probed"}, ratio={"bf16": 0.5}, seconds=0.8)
    assert memories.remember_probe(("Ryzen 5 5600", "avx512_bf16", "2.13.0+cpu"), fast)
    assert survey.look().probes == {("Ryzen 5 5600", "avx512_bf16", "2.13.0+cpu"): fast}
