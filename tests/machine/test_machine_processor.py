"""Cores this process may use, and the instruction set that decides whether bf16 is worth anything."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from linux_trees import cgroup1, cgroup2, cpuinfo, topology, write

from sdcli.machine import processor
from sdcli.machine.processor import Processor

ZEN5 = "fpu sse2 avx fma avx2 avx512f avx512_bf16"


def _read(root: Path, affinity: set[int], **environment: str) -> Processor:
    return processor.read(root, "linux", environment, affinity)


def _eight_threads_on_four_cores(root: Path) -> Path:
    topology(root, [(0, i % 4) for i in range(8)])
    return write(root, {"proc/cpuinfo": cpuinfo("AMD Ryzen 5 5600 6-Core Processor", ZEN5, 8)})


def test_two_threads_of_one_core_are_one_core(tmp_path: Path) -> None:
    cpu = _read(_eight_threads_on_four_cores(tmp_path), set(range(8)))
    assert (cpu.name, cpu.cores, cpu.threads, cpu.isa) == ("Ryzen 5 5600", 4, 4, "avx512_bf16")


def test_affinity_leaves_the_cores_it_touches(tmp_path: Path) -> None:
    root = _eight_threads_on_four_cores(tmp_path)
    assert _read(root, {0, 4}).threads == 1, "0 and 4 are the same core"
    assert _read(root, {0, 1, 4}).threads == 2


def test_two_sockets_have_cores_of_the_same_number(tmp_path: Path) -> None:
    root = topology(tmp_path, [(package, core) for package in range(2) for core in range(3)])
    assert _read(root, set(range(6))).threads == 6


def test_a_quota_of_two_and_a_half_cpus_keeps_two_busy(tmp_path: Path) -> None:
    root = cgroup2(_eight_threads_on_four_cores(tmp_path), "/", {"": {"cpu.max": "250000 100000\n"}})
    cpu = _read(root, set(range(8)))
    assert (cpu.threads, cpu.cores) == (2, 4)


def test_a_quota_below_one_cpu_still_leaves_one(tmp_path: Path) -> None:
    root = cgroup2(_eight_threads_on_four_cores(tmp_path), "/", {"": {"cpu.max": "50000 100000"}})
    assert _read(root, set(range(8))).threads == 1


def test_the_tightest_quota_of_all_levels_decides(tmp_path: Path) -> None:
    groups = {"a": {"cpu.max": "300000 100000"}, "a/b": {"cpu.max": "max 100000"}, "": {}}
    assert _read(cgroup2(_eight_threads_on_four_cores(tmp_path), "/a/b", groups), set(range(8))).threads == 3


def _two_fast_cores_and_four_slow_ones(root: Path, file: str, fast: tuple[int, int], slow: int) -> Path:
    """The fast ones have two threads each, as Intel's have."""
    topology(root, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5)])
    speeds = [fast[0], fast[0], fast[1], fast[1], *[slow] * 4]
    return write(root, {f"sys/devices/system/cpu/cpu{i}/{file}": str(speed) for i, speed in enumerate(speeds)})


@pytest.mark.parametrize(
    ("file", "fast", "slow"),
    [("cpufreq/cpuinfo_max_freq", (5_500_000, 5_700_000), 4_300_000), ("cpu_capacity", (1024, 1009), 446)],
)
def test_cores_of_two_kinds_are_counted_apart(tmp_path: Path, file: str, fast: tuple[int, int], slow: int) -> None:
    root = _two_fast_cores_and_four_slow_ones(tmp_path, file, fast, slow)
    cpu = _read(root, set(range(8)))
    assert (cpu.threads, cpu.fast) == (6, 2)
    assert _read(root, {0, 1, 2, 3}).fast == 0, "all of one kind"
    assert _read(root, {4, 5, 6}).fast == 0
    assert _read(root, set(range(8)), OMP_NUM_THREADS="2").fast == 0, "no more than two anyway"


def test_cores_of_one_kind_or_of_unknown_speed_are_not_told_apart(tmp_path: Path) -> None:
    root = _eight_threads_on_four_cores(tmp_path)
    assert _read(root, set(range(8))).fast == 0
    write(root, {f"sys/devices/system/cpu/cpu{i}/cpufreq/cpuinfo_max_freq": "4700000" for i in range(8)})
    assert _read(root, set(range(8))).fast == 0


@pytest.mark.parametrize(("quota", "threads"), [("300000", 3), ("-1", 4), ("nonsense", 4)])
def test_version_1_has_quota_and_period_in_two_files(tmp_path: Path, quota: str, threads: int) -> None:
    group = {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"}
    root = cgroup1(_eight_threads_on_four_cores(tmp_path), "cpu,cpuacct", "/d", {"d": group})
    assert _read(root, set(range(8))).threads == threads


def test_without_sys_the_cores_come_from_cpuinfo(tmp_path: Path) -> None:
    blocks = "".join(f"processor\t: {i}\nphysical id\t: 0\ncore id\t\t: {i // 2}\n\n" for i in range(4))
    assert _read(write(tmp_path, {"proc/cpuinfo": blocks}), {0, 1, 2, 3}).threads == 2


def test_nothing_to_read_is_as_many_cores_as_affinity_names(tmp_path: Path) -> None:
    cpu = _read(tmp_path, {0, 1, 2})
    assert (cpu.threads, cpu.name, cpu.isa) == (3, "CPU", "")


@pytest.mark.parametrize(("asked", "threads"), [("2", 2), ("3,2", 3), ("99", 4), ("0", 4), ("many", 4), ("", 4)])
def test_omp_num_threads_is_obeyed_as_a_limit(tmp_path: Path, asked: str, threads: int) -> None:
    assert _read(_eight_threads_on_four_cores(tmp_path), set(range(8)), OMP_NUM_THREADS=asked).threads == threads


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ("sse2 avx fma avx2 avx512f avx512_bf16 amx_tile amx_bf16", "amx"),
        ("sse2 avx fma avx2 avx512f avx512_bf16 amx_tile", "avx512_bf16"),
        (ZEN5, "avx512_bf16"),
        ("sse2 avx fma avx2 avx512f", "avx512"),
        ("sse2 avx fma avx2", "avx2"),
        ("sse2 avx", "avx"),
        ("fpu sse2", "sse2"),
        ("fpu", ""),
    ],
)
def test_the_widest_instruction_set_is_named(tmp_path: Path, flags: str, isa: str) -> None:
    assert _read(write(tmp_path, {"proc/cpuinfo": cpuinfo("x", flags)}), {0}).isa == isa


@pytest.mark.parametrize(
    ("features", "isa"), [("fp asimd bf16 sve", "neon_bf16"), ("fp asimd", "neon"), ("neon vfpv4", "neon")]
)
def test_arm_says_features_and_names_no_model(tmp_path: Path, features: str, isa: str) -> None:
    write(tmp_path, {"proc/cpuinfo": f"processor\t: 0\nFeatures\t: {features}\n", "proc/device-tree/model": "Pi 5\0"})
    cpu = _read(tmp_path, {0})
    assert (cpu.isa, cpu.name) == (isa, "Pi 5")


@pytest.mark.parametrize(
    ("environment", "isa"),
    [
        ({}, "avx512_bf16"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "avx2"),
        ({"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}, "avx512"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "avx512_bf16"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "avx512_bf16"),
        ({"DNNL_MAX_CPU_ISA": "SSE41"}, "sse2"),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, "avx2"),
        ({"ATEN_CPU_CAPABILITY": "avx512"}, "avx512_bf16"),
        ({"ONEDNN_MAX_CPU_ISA": "ALL"}, "avx512_bf16"),
    ],
)
def test_an_instruction_set_held_back_by_the_environment_counts_as_absent(
    environment: dict[str, str], isa: str
) -> None:
    assert processor.limited("avx512_bf16", environment) == isa
    assert processor.limited("neon", environment) == "neon"


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("AMD Ryzen 5 5600 6-Core Processor", "Ryzen 5 5600"),
        ("Intel(R) Core(TM) i7-12700K CPU @ 3.60GHz", "Core i7-12700K"),
        ("Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz", "Xeon Gold 6330"),
        ("12th Gen Intel(R) Core(TM) i5-12400F", "12th Gen Intel Core i5-12400F"),
        ("AMD EPYC", "AMD EPYC"),
        ("Apple M2 Pro", "Apple M2 Pro"),
        ("", "CPU"),
    ],
)
def test_names_lose_what_says_nothing(long: str, short: str) -> None:
    assert processor.short_name(long) == short


def test_a_mac_uses_its_fast_cores() -> None:
    answers = {
        "machdep.cpu.brand_string": "Apple M2 Pro", "hw.physicalcpu": "10", "hw.perflevel0.physicalcpu": "6",
        "hw.optional.arm64": "1", "hw.optional.arm.FEAT_BF16": "1",
    }  # fmt: skip
    assert processor._mac(lambda name: answers.get(name, "")) == ("Apple M2 Pro", "neon_bf16", 10, 6)


def test_an_older_mac_has_all_its_cores_and_intels_instructions() -> None:
    answers = {
        "machdep.cpu.brand_string": "Intel(R) Core(TM) i7-8700B CPU @ 3.20GHz",
        "hw.physicalcpu": "6",
        "hw.optional.avx2_0": "1",
    }
    assert processor._mac(lambda name: answers.get(name, "")) == ("Core i7-8700B", "avx2", 6, 6)


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_another_systems_reader_on_this_one_ends_with_at_least_one_core(platform: str) -> None:
    cpu = processor.read(platform=platform, environment={})
    assert cpu.cores >= cpu.threads >= 1 and cpu.name


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_this_machine_is_described_within_its_affinity() -> None:
    cpu = processor.read(environment={})
    assert 1 <= cpu.threads <= len(os.sched_getaffinity(0)) and cpu.threads <= cpu.cores
    assert cpu.load is None or cpu.load >= 0
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        assert cpu.isa in ("sse2", "avx", "avx2", "avx512", "avx512_bf16", "amx")
