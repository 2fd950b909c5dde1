"""AMD and Intel GPUs, found in folders as Linux shows them; and what follows for devices and doctor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sysfs_by_hand as by_hand
from machines import CPU_TORCH, CUDA_TORCH, GIB, gpu, machine

from sdcli.cli import doctor
from sdcli.errors import DeviceUnusable
from sdcli.machine import dtypes, installation, survey, sysfs
from sdcli.machine.packages import Torch
from sdcli.machine.survey import Survey
from sdcli.machine.sysfs import AMD, SysfsGpu

ROCM_TORCH = Torch(version="2.13.0+rocm7.2", hip="7.2.1")
XPU_TORCH = Torch(version="2.13.0+xpu", xpu=True)


@pytest.fixture(autouse=True)
def level_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intel's driver is there unless a test says otherwise."""
    monkeypatch.setattr(installation, "_loads", lambda library: library == installation.XPU_DRIVER)


def read(root: Path, **environment: str) -> tuple[SysfsGpu, ...]:
    return sysfs.read(root, environment)


def seen(root: Path, torch: Torch | None, **environment: str) -> Survey:
    return machine(torch=torch, others=read(root, **environment))


def screen(found: Survey) -> str:
    return "\n".join(doctor.screen(doctor.examine(seen=found)))


def ending(found: Survey) -> int:
    return doctor.exit_code(doctor.examine(seen=found).diagnosis)


# --- what is read


def test_an_amd_gpu_is_read_with_name_size_and_what_is_free(tmp_path: Path) -> None:
    by_hand.amd(tmp_path)
    (one,) = read(tmp_path)
    assert (one.vendor, one.name, one.architecture, one.number) == (AMD, "Radeon RX 7900 XTX", "gfx1100", 0)
    assert (one.total, one.free, one.integrated, one.lacking) == (16 * GIB, 15 * GIB, False, None)


def test_the_name_the_driver_knows_is_the_first_choice_and_without_any_it_is_the_architecture(tmp_path: Path) -> None:
    by_hand.amd(tmp_path, product="AMD Instinct MI210", target=90010)
    assert [one.name for one in read(tmp_path)] == ["AMD Instinct MI210"]
    by_hand.amd(tmp_path, 1, target=120001)
    (tmp_path / "usr/share/hwdata/pci.ids").unlink()
    assert read(tmp_path)[1].name == "AMD GPU (gfx1201)"


def test_a_gpu_in_the_processor_has_the_hosts_memory_that_it_may_use(tmp_path: Path) -> None:
    by_hand.amd(tmp_path, target=110501, total=GIB // 2, used=GIB // 4, shared=10 * GIB)
    (one,) = read(tmp_path)
    assert (one.architecture, one.integrated) == ("gfx1151", True)
    assert (one.total, one.free) == (GIB // 2 + 10 * GIB, GIB // 4 + 8 * GIB)
    chosen = survey.choose("auto", machine(torch=ROCM_TORCH, others=(one,), ram=12))
    assert chosen.integrated and chosen.shares_memory and chosen.free == 6 * GIB, "no more than the host has"


@pytest.mark.parametrize(
    ("environment", "numbers"),
    [
        ({}, [0, 1, 2]),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, [1, None, 0]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [None, 0, None]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [0, None, None]),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}, [None, None, 0]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, [None, None, None]),
        ({"HIP_VISIBLE_DEVICES": "1,x,0"}, [None, 0, None]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-000000000000abc2, GPU-000000000000abc0"}, [1, None, 0]),
    ],
)
def test_amd_gpus_are_numbered_as_hip_does(
    tmp_path: Path, environment: dict[str, str], numbers: list[int | None]
) -> None:
    for number in range(3):
        by_hand.amd(tmp_path, number)
    assert [one.number for one in read(tmp_path, **environment)] == numbers


def test_an_architecture_that_the_environment_names_counts(tmp_path: Path) -> None:
    by_hand.amd(tmp_path, target=100301)
    assert [one.architecture for one in read(tmp_path)] == ["gfx1031"]
    assert [one.architecture for one in read(tmp_path, HSA_OVERRIDE_GFX_VERSION="10.3.0")] == ["gfx1030"]


def test_what_this_user_may_not_open_and_what_a_container_lacks_are_told_apart(tmp_path: Path) -> None:
    by_hand.amd(tmp_path)
    (closed,) = sysfs.read(tmp_path, {}, may_open=lambda path: path.name != "kfd")
    assert closed.lacking == "this user may not open /dev/kfd" and "usermod -aG render" in (closed.remedy or "")
    assert closed.number is None
    (tmp_path / "dev/kfd").unlink()
    (missing,) = read(tmp_path)
    assert "/dev/kfd is missing" in (missing.lacking or "")
    assert "--device /dev/kfd --device /dev/dri" in (missing.remedy or "")


@pytest.mark.parametrize(
    ("driver", "words", "remedy"),
    [("", "no driver holds it", "sudo modprobe amdgpu"), ("radeon", "its driver is radeon", None),
     ("amdgpu", "does not offer it to ROCm", None)],
)  # fmt: skip
def test_an_amd_gpu_without_compute_says_why(tmp_path: Path, driver: str, words: str, remedy: str | None) -> None:
    by_hand.amd(tmp_path, driver=driver, compute=False)
    (one,) = read(tmp_path)
    assert words in (one.lacking or "") and (one.remedy, one.number) == (remedy, None)


def test_intel_gpus_are_read_with_those_on_boards_first_and_their_size_is_unknown(tmp_path: Path) -> None:
    by_hand.intel(tmp_path, integrated=True, driver="i915")
    by_hand.intel(tmp_path, 1)
    board, built_in = read(tmp_path)
    assert (board.name, board.number, board.integrated) == ("Arc A770", 0, False)
    assert (built_in.name, built_in.number, built_in.integrated) == ("Iris Xe Graphics", 1, True)
    assert board.total == board.free == 0


def test_an_intel_gpu_without_its_driver_says_so(tmp_path: Path) -> None:
    by_hand.intel(tmp_path, driver="")
    (one,) = read(tmp_path)
    assert "no driver holds it" in (one.lacking or "") and one.remedy == "sudo modprobe xe"


def test_a_machine_without_sysfs_or_with_strange_files_has_no_gpu_and_no_failure(tmp_path: Path) -> None:
    assert read(tmp_path) == ()
    folder = by_hand.amd(tmp_path)
    (folder / "mem_info_vram_total").write_text("\x00many")
    (tmp_path / "sys/class/kfd/kfd/topology/nodes/1/properties").write_bytes(b"\xff\xfe gfx_target_version")
    (one,) = read(tmp_path)
    assert one.total == 0 and one.lacking is not None


# --- devices


@pytest.mark.parametrize("by_name", ["auto", "cuda", "cuda:0"])
def test_an_amd_gpu_is_called_cuda_as_torch_does(tmp_path: Path, by_name: str) -> None:
    by_hand.amd(tmp_path)
    chosen = survey.choose(by_name, seen(tmp_path, ROCM_TORCH))
    assert (chosen.device, chosen.kind, chosen.backend, chosen.source) == ("cuda:0", "cuda", "rocm", "sysfs")
    assert (chosen.total, chosen.free, chosen.name) == (16 * GIB, 15 * GIB, "Radeon RX 7900 XTX")
    assert chosen.uuid is None and chosen.capability is None


def test_of_several_the_one_with_memory_of_its_own_and_most_of_it_free_comes_first(tmp_path: Path) -> None:
    by_hand.amd(tmp_path, 0, target=110501, total=GIB, shared=100 * GIB)
    by_hand.amd(tmp_path, 1, used=12 * GIB)
    by_hand.amd(tmp_path, 2, used=GIB)
    found = seen(tmp_path, ROCM_TORCH)
    assert [device.device for device in survey.usable(found)] == ["cuda:2", "cuda:1", "cuda:0", "cpu"]
    assert survey.choose("cuda:1", found).device == "cuda:1"


def test_an_intel_gpu_is_called_xpu(tmp_path: Path) -> None:
    by_hand.intel(tmp_path)
    found = seen(tmp_path, XPU_TORCH)
    assert [survey.choose(name, found).device for name in ("auto", "xpu", "XPU:0")] == ["xpu:0"] * 3
    with pytest.raises(DeviceUnusable, match="xpu:1 is not available here; use xpu:0 or cpu"):
        survey.choose("xpu:1", found)


@pytest.mark.parametrize(("device", "maker"), [("xpu", "Intel"), ("cuda", "NVIDIA or AMD")])
def test_asking_for_a_gpu_that_is_not_there_names_whose_it_would_be(device: str, maker: str) -> None:
    with pytest.raises(DeviceUnusable, match=f"there is no {maker} GPU") as caught:
        survey.choose(device, machine())
    assert caught.value.hint == "--device cpu"


@pytest.mark.parametrize(
    ("architecture", "bf16"),
    [("gfx90a", "assumed"), ("gfx942", "assumed"), ("gfx1100", "assumed"), ("gfx1201", "assumed"),
     ("gfx1030", "unavailable"), ("gfx906", "unavailable"), (None, "assumed")],
)  # fmt: skip
def test_bf16_is_for_the_architectures_that_compute_in_it(architecture: str | None, bf16: str) -> None:
    assert dtypes.rocm(architecture) == {"fp32": "assumed", "bf16": bf16, "fp16": "assumed"}


# --- what is missing


def test_each_gpu_names_the_build_that_it_lacks_and_the_line_that_installs_it(tmp_path: Path) -> None:
    by_hand.amd(tmp_path / "amd")
    by_hand.intel(tmp_path / "intel")
    for root, line in [(tmp_path / "amd", "torch==2.13.0+rocm7.2"), (tmp_path / "intel", "torch==2.13.0+xpu")]:
        found = seen(root, CPU_TORCH)
        text = screen(found)
        assert "torch 2.13.0+cpu is a CPU build" in text and "✗ torch can't use" in text
        assert f"-m pip install {line} --index-url https://download.pytorch.org/whl/{line.split('+')[1]}" in text
        assert ending(found) == 8
        warning = survey.gpu_warning(survey.choose("auto", found), survey=found)
        assert warning is not None and "is not used" in warning.message and line in warning.hint


def test_the_command_runs_with_any_kind_of_installation(tmp_path: Path) -> None:
    by_hand.amd(tmp_path)
    (one,) = read(tmp_path)
    place = installation.Installation(kind="uv tool", prefix=Path("/env"), python="python")
    line = installation.fix_for_others(place, CPU_TORCH, one, origin="/src")
    assert line == "uv tool install --reinstall --torch-backend=rocm7.2 /src"
    older = Torch(version="2.10.0+cpu")  # for which there is no such build
    place = installation.Installation(kind="venv", prefix=Path("/env"), python="python")
    assert "torch==2.13.0+rocm7.2" in (installation.fix_for_others(place, older, one, has_pip=True) or "")


def test_a_gpu_that_works_is_no_problem(tmp_path: Path) -> None:
    by_hand.amd(tmp_path)
    found = seen(tmp_path, ROCM_TORCH)
    assert "✓ cuda:0" in screen(found) and "16.0 GiB, 15.0 free" in screen(found) and ending(found) == 0
    assert survey.gpu_problem(found) is None


def test_an_intel_gpu_says_that_its_memory_is_not_known_yet(tmp_path: Path) -> None:
    by_hand.intel(tmp_path)
    text = screen(seen(tmp_path, XPU_TORCH))
    assert "✓ xpu:0" in text and "0.0 GiB" not in text and "memory as torch tells" in text


def test_a_missing_compute_driver_of_intel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand.intel(tmp_path)
    monkeypatch.setattr(installation, "_loads", lambda library: False)
    found = seen(tmp_path, XPU_TORCH)
    assert "libze_intel_gpu.so.1" in screen(found) and "apt install libze-intel-gpu1" in screen(found)
    assert ending(found) == 8


def test_gpus_built_into_processors_are_listed_but_no_problem_until_their_torch_is_there(tmp_path: Path) -> None:
    by_hand.intel(tmp_path, integrated=True)
    found = seen(tmp_path, CPU_TORCH)
    assert "– not used" in screen(found) and ending(found) == 0
    assert survey.gpu_warning(survey.choose("auto", found), survey=found) is None
    assert survey.choose("auto", seen(tmp_path, XPU_TORCH)).device == "xpu:0"


def test_an_architecture_that_no_torch_is_built_for_is_named(tmp_path: Path) -> None:
    by_hand.amd(tmp_path, target=80003)
    found = seen(tmp_path, ROCM_TORCH)
    assert "torch 2.13.0+rocm7.2 is not built for gfx803" in screen(found) and ending(found) == 8
    with pytest.raises(DeviceUnusable, match="gfx803") as caught:
        survey.choose("cuda", found)
    assert caught.value.hint == "--device cpu"
    assert ending(seen(tmp_path, CPU_TORCH)) == 0, "no build would help"


def test_a_closed_device_is_a_problem_with_the_line_that_opens_it(tmp_path: Path) -> None:
    by_hand.amd(tmp_path)
    found = machine(torch=ROCM_TORCH, others=sysfs.read(tmp_path, {}, may_open=lambda path: False))
    assert "may not open /dev/kfd" in screen(found) and "sudo usermod -aG render,video $USER" in screen(found)
    with pytest.raises(DeviceUnusable, match="may not open /dev/kfd") as caught:
        survey.choose("cuda", found)
    assert "usermod" in caught.value.hint


def test_hidden_gpus_are_meant_to_be_hidden(tmp_path: Path) -> None:
    by_hand.amd(tmp_path)
    found = seen(tmp_path, ROCM_TORCH, HIP_VISIBLE_DEVICES="")
    assert "HIP_VISIBLE_DEVICES hides it" in screen(found) and ending(found) == 0
    assert survey.choose("auto", found).device == "cpu"


def test_an_nvidia_gpu_that_works_makes_anothers_idleness_no_problem(tmp_path: Path) -> None:
    by_hand.amd(tmp_path)
    found = machine(gpu(), torch=CUDA_TORCH, others=read(tmp_path))
    assert [device.device for device in survey.usable(found)] == ["cuda:0", "cpu"]
    assert ending(found) == 0 and "is a CUDA 13.0 build" in screen(found)


@pytest.mark.skipif(os.name != "posix", reason="links and permissions of POSIX")
def test_this_machine_can_be_read() -> None:
    for one in sysfs.read():
        assert one.name and 0 <= one.free <= max(one.total, one.free)
