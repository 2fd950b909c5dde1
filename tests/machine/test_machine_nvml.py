"""NVIDIA GPUs: what is read, that the library is always closed, and which GPUs CUDA will show."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import nvml_by_hand
import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvml_by_hand import GIB, Fake, FakeNvml

from sdcli.machine import nvml
from sdcli.machine.nvml import Gpu

REPOSITORY = Path(__file__).resolve().parents[2]


def _two() -> tuple[Fake, Fake]:
    slow = Fake(name="NVIDIA GeForce GTX 1060", uuid="GPU-aaaa1111", capability=(6, 1), cores=1280, clock=1900)
    return slow, Fake(uuid="GPU-aaaa2222")


def test_the_stand_in_has_the_functions_of_the_real_bindings() -> None:
    for name, function in inspect.getmembers(FakeNvml, inspect.isfunction):
        if name.startswith("nvml"):
            parameters = list(inspect.signature(getattr(pynvml, name)).parameters)
            assert list(inspect.signature(function).parameters) == ["self", *parameters], name


def test_everything_the_planner_needs_is_read_and_the_library_is_closed() -> None:
    library = FakeNvml(*_two())
    nvidia = nvml.read(library)
    assert (nvidia.driver, nvidia.cuda, nvidia.reason, nvidia.broken) == ("581.42", "13.0", None, False)
    slow, fast = nvidia.gpus
    assert (slow.index, slow.name, slow.capability) == (0, "NVIDIA GeForce GTX 1060", "6.1")
    assert (fast.uuid, fast.total, fast.free, fast.capability) == ("GPU-aaaa2222", 8 * GIB, 7 * GIB, "8.9")
    assert (slow.speed, fast.speed) == (1280 * 1900, 3072 * 3105)
    assert library.opened == library.closed == 1


def test_an_old_driver_is_asked_in_the_old_way_and_what_it_lacks_is_left_open() -> None:
    old = nvml.read(FakeNvml(Fake(), lacks=["nvmlDeviceGetMemoryInfo_v2", "nvmlSystemGetCudaDriverVersion_v2"]))
    assert old == nvml.read(FakeNvml(Fake()))
    names = ("nvmlDeviceGetNumGpuCores", "nvmlDeviceGetMigMode", "nvmlSystemGetDriverVersion")
    older = nvml.read(FakeNvml(Fake(), lacks=names))
    assert (older.driver, older.reason, older.gpus[0].speed, older.gpus[0].total) == (None, None, 0, 8 * GIB)


def test_a_library_that_breaks_halfway_is_closed_and_becomes_a_reason() -> None:
    class Breaking(FakeNvml):
        def nvmlDeviceGetUUID(self, handle: Fake) -> str:
            raise OSError("exception: access violation")

    library = Breaking(Fake())
    nvidia = nvml.read(library)
    assert nvidia.gpus == () and "access violation" in (nvidia.reason or "")
    assert library.opened == library.closed == 1


def test_a_library_of_something_else_is_a_reason_not_a_crash() -> None:
    nvidia = nvml.read(object())
    assert nvidia.gpus == () and nvidia.reason and not nvidia.broken


@pytest.mark.parametrize(
    ("status", "words", "broken"),
    [(9, "not loaded", False), (13, "too old", True), (18, "updated", True), (77, "77", False)],
)
def test_a_driver_that_does_not_open_says_why(status: int, words: str, broken: bool) -> None:
    library = FakeNvml(Fake(), init=status)
    nvidia = nvml.read(library)
    assert words in (nvidia.reason or "") and nvidia.broken is broken
    assert library.closed == 0, "what was not opened must not be closed"


def test_a_lost_gpu_is_left_out_and_named_and_the_others_keep_their_numbers() -> None:
    nvidia = nvml.read(FakeNvml(Fake(lost=True), Fake(uuid="GPU-b")))
    assert [gpu.index for gpu in nvidia.gpus] == [1]
    assert nvidia.broken and "GPU 0" in (nvidia.reason or "")


def test_a_driver_without_gpus_says_so_and_is_not_broken() -> None:
    nvidia = nvml.read(FakeNvml())
    assert nvidia.reason == "the NVIDIA driver sees no GPU" and not nvidia.broken


def test_a_split_gpu_shows_its_slices_with_the_gpus_capability() -> None:
    part = Fake(name="", uuid="MIG-1", total=20 * GIB, free=19 * GIB, capability=None)
    whole = Fake(name="NVIDIA A100", uuid="GPU-a", capability=(8, 0), split=True, slices=(part,))
    (gpu,) = nvml.read(FakeNvml(whole)).gpus
    assert gpu.split and [(s.uuid, s.name, s.capability, s.total) for s in gpu.slices] == [
        ("MIG-1", "NVIDIA A100", "8.0", 20 * GIB)
    ]


def test_a_gpu_that_shares_the_hosts_memory_has_none_of_its_own() -> None:
    (gpu,) = nvml.read(FakeNvml(Fake(name="NVIDIA GB10", total=0))).gpus
    assert (gpu.total, gpu.free) == (0, 0)


# --- the real bindings, in a process of their own: they keep the library they loaded

READ = "import sys; from sdcli.machine import nvml; print(nvml.read())"
READ_BY_BINDINGS = "import pynvml; from sdcli.machine import nvml; print(nvml.read(pynvml))"


def _read_in(folder: Path, code: str = READ) -> str:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's library goes by another name")
def test_without_a_driver_the_real_bindings_say_that_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no library, and found before the one of a driver that is installed")
    assert _read_in(tmp_path, READ_BY_BINDINGS) == str(nvml.Nvidia(reason="there is no NVIDIA driver"))


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's library goes by another name")
def test_without_a_driver_the_answer_is_the_same_and_the_bindings_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no library, and found before the one of a driver that is installed")
    answer = str(nvml.Nvidia(reason="there is no NVIDIA driver"))
    assert _read_in(tmp_path) == answer
    assert _read_in(tmp_path, READ + "; print('pynvml' in sys.modules)") == f"{answer}\nFalse"


@pytest.mark.system
@pytest.mark.skipif(nvml_by_hand.compiler() is None or sys.platform != "linux", reason="no C compiler")
def test_a_drivers_library_is_read_by_the_real_bindings_as_by_the_stand_in(tmp_path: Path) -> None:
    nvml_by_hand.compiled(tmp_path)
    assert _read_in(tmp_path) == str(nvml.read(FakeNvml(Fake())))


# --- which of them CUDA shows


def _gpus(*speeds: int) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(index=i, uuid=f"GPU-{i}{i}aa-{i}", name=f"GPU {i}", total=GIB, free=GIB, speed=speed)
        for i, speed in enumerate(speeds)
    )


def _shown(gpus: tuple[Gpu, ...], value: str | None, order: str | None = None) -> list[str]:
    environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    if order is not None:
        environment["CUDA_DEVICE_ORDER"] = order
    return [gpu.name for gpu in nvml.visible(gpus, environment)]


def test_cuda_counts_from_the_fastest_and_the_pci_order_only_where_it_is_asked_for() -> None:
    gpus = _gpus(10, 30, 20)
    assert _shown(gpus, None) == ["GPU 1", "GPU 2", "GPU 0"]
    assert _shown(gpus, "0") == ["GPU 1"]
    assert _shown(gpus, None, "PCI_BUS_ID") == ["GPU 0", "GPU 1", "GPU 2"]
    assert _shown(gpus, "0", "PCI_BUS_ID") == ["GPU 0"]


def test_equal_gpus_stay_in_pci_order() -> None:
    assert _shown(_gpus(5, 5, 5), None) == ["GPU 0", "GPU 1", "GPU 2"]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["GPU 1"]),
        ("2,0", ["GPU 2", "GPU 0"]),
        (" 1 , 0 ", ["GPU 1", "GPU 0"]),
        ("1,-1,0", ["GPU 1"]),
        ("0,7,1", ["GPU 0"]),
        ("1,1", []),
        ("1gpu,0", ["GPU 1", "GPU 0"]),
        ("GPU-11aa", ["GPU 1"]),
        ("GPU-11aa-1", ["GPU 1"]),
        ("GPU-22,GPU-00", ["GPU 2", "GPU 0"]),
        ("GPU-", []),
        ("GPU-99,GPU-00", []),
        ("GPU-00,1", ["GPU 0"]),
        ("GPU-00,GPU-00", []),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(value: str, names: list[str]) -> None:
    assert _shown(_gpus(5, 5, 5), value) == names


def test_the_beginning_of_two_uuids_names_neither() -> None:
    twins = tuple(Gpu(index=i, uuid=f"GPU-ab{i}", name=str(i), total=1, free=1) for i in range(2))
    assert _shown(twins, "GPU-ab") == []
    assert _shown(twins, "GPU-ab1") == ["1"]


def test_a_split_gpu_is_shown_as_its_first_slice_and_a_slice_by_its_own_name() -> None:
    parts = tuple(Gpu(index=0, uuid=f"MIG-{i}b", name=f"part {i}", total=1, free=1) for i in range(2))
    whole = Gpu(index=0, uuid="GPU-a", name="A100", total=2, free=2, split=True, slices=parts)
    empty = Gpu(index=1, uuid="GPU-b", name="A100", total=2, free=2, split=True)
    assert _shown((whole, empty), None) == ["part 0"]
    assert _shown((whole, empty), "GPU-a") == ["part 0"]
    assert _shown((whole, empty), "MIG-1b") == ["part 1"]
    assert _shown((whole, empty), "GPU-b") == []


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.integers(0, 4),
    st.one_of(st.none(), st.text(alphabet="0123456789,-+ GPUMIGab", max_size=20), st.text(max_size=12)),
)
def test_any_text_shows_some_of_the_gpus_each_at_most_once(count: int, value: str | None) -> None:
    gpus = _gpus(*range(count))
    shown = nvml.visible(gpus, {} if value is None else {"CUDA_VISIBLE_DEVICES": value})
    assert set(shown) <= set(gpus) and len(set(shown)) == len(shown)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.permutations(range(4)), st.integers(0, 4))
def test_gpus_named_by_number_and_by_uuid_are_the_same_gpus(order: list[int], count: int) -> None:
    gpus = _gpus(7, 7, 7, 7)
    chosen = order[:count]
    by_number = ",".join(map(str, chosen))
    by_uuid = ",".join(gpus[number].uuid for number in chosen)
    assert _shown(gpus, by_number) == _shown(gpus, by_uuid) == [f"GPU {number}" for number in chosen]


def test_a_gpu_without_its_driver_is_seen_on_the_bus(tmp_path: Path) -> None:
    for slot, vendor, kind in (("00", "0x8086", "0x030000"), ("01", "0x10de", "0x040300")):
        folder = tmp_path / "sys/bus/pci/devices" / slot
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor + "\n")
        (folder / "class").write_text(kind + "\n")
    assert not nvml.on_the_bus(tmp_path), "the sound chip of an NVIDIA GPU is no GPU"
    (tmp_path / "sys/bus/pci/devices/01/class").write_text("0x030200\n")
    assert nvml.on_the_bus(tmp_path)
    assert not nvml.on_the_bus(tmp_path / "nothing")
