"""Memory that can really be had: of the host, within containers, of this process, on a disk."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linux_trees import GIB, cgroup1, cgroup2, meminfo, write

from sdcli.machine import memory
from sdcli.machine.memory import Memory

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def _host(root: Path, total: int = 64 * GIB, available: int = 60 * GIB) -> Path:
    return write(root, {"proc/meminfo": meminfo(total, available)})


def _read(root: Path) -> Memory:
    return memory.read(root, "linux")


def test_a_bare_host_has_what_the_kernel_calls_available(tmp_path: Path) -> None:
    assert _read(_host(tmp_path)) == Memory(total=64 * GIB, available=60 * GIB)


def test_a_kernel_without_memavailable_is_counted_from_free_and_cache(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": "MemTotal: 4096 kB\nMemFree: 1000 kB\nBuffers: 24 kB\nCached: 1024 kB\n"})
    assert _read(tmp_path).available == 2048 * 1024


def test_nothing_to_read_is_no_memory_rather_than_a_crash(tmp_path: Path) -> None:
    assert _read(tmp_path) == Memory(total=0, available=0)


def test_a_container_of_16_gib_gives_16_less_what_is_used_and_the_file_cache_counts_as_free(tmp_path: Path) -> None:
    stat = f"anon {2 * GIB}\nfile {7 * GIB}\ninactive_file {4 * GIB}\nactive_file {3 * GIB}\n"
    group = {"memory.max": str(16 * GIB), "memory.current": str(9 * GIB), "memory.stat": stat, "memory.high": "max"}
    result = _read(cgroup2(_host(tmp_path), "/", {"": group}))
    assert result == Memory(total=16 * GIB, available=14 * GIB, limited=True)


def test_the_tightest_of_nested_groups_decides(tmp_path: Path) -> None:
    groups = {
        "slice": {"memory.max": str(8 * GIB), "memory.current": str(7 * GIB)},
        "slice/job": {"memory.max": str(32 * GIB), "memory.current": str(1 * GIB)},
    }
    result = _read(cgroup2(_host(tmp_path), "/slice/job", groups))
    assert result == Memory(total=8 * GIB, available=1 * GIB, limited=True)


def test_memory_high_counts_as_a_limit_because_above_it_everything_crawls(tmp_path: Path) -> None:
    group = {"memory.max": str(16 * GIB), "memory.high": str(12 * GIB), "memory.current": "0"}
    assert _read(cgroup2(_host(tmp_path), "/job", {"job": group})).total == 12 * GIB


def test_a_container_that_has_more_than_the_host_has_what_the_host_has(tmp_path: Path) -> None:
    group = {"memory.max": str(128 * GIB), "memory.current": str(GIB)}
    assert _read(cgroup2(_host(tmp_path), "/", {"": group})) == Memory(total=64 * GIB, available=60 * GIB)


def test_a_group_over_its_limit_has_nothing_left_and_no_less(tmp_path: Path) -> None:
    group = {"memory.max": str(4 * GIB), "memory.current": str(5 * GIB)}
    assert _read(cgroup2(_host(tmp_path), "/", {"": group})).available == 0


def test_an_unlimited_group_changes_nothing(tmp_path: Path) -> None:
    group = {"memory.max": "max", "memory.current": str(GIB)}
    assert _read(cgroup2(_host(tmp_path), "/", {"": group})) == Memory(total=64 * GIB, available=60 * GIB)


def test_version_1_is_read_the_same_way(tmp_path: Path) -> None:
    group = {
        "memory.limit_in_bytes": str(16 * GIB),
        "memory.usage_in_bytes": str(9 * GIB),
        "memory.stat": f"inactive_file 5\ntotal_inactive_file {4 * GIB}\ntotal_active_file {1 * GIB}\n",
    }
    result = _read(cgroup1(_host(tmp_path), "memory", "/docker/1f", {"docker/1f": group}))
    assert result == Memory(total=16 * GIB, available=12 * GIB, limited=True)


def test_version_1s_number_for_unlimited_is_no_limit(tmp_path: Path) -> None:
    group = {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": str(9 * GIB)}
    assert _read(cgroup1(_host(tmp_path), "memory", "/", {"": group})) == Memory(total=64 * GIB, available=60 * GIB)


def test_a_limit_further_up_than_the_container_sees_is_found_in_version_1s_statistics(tmp_path: Path) -> None:
    group = {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.usage_in_bytes": str(2 * GIB),
        "memory.stat": f"hierarchical_memory_limit {6 * GIB}\n",
    }
    result = _read(cgroup1(_host(tmp_path), "memory", "/a", {"a": group}))
    assert result == Memory(total=6 * GIB, available=4 * GIB, limited=True)


def test_a_container_whose_path_exists_only_outside_finds_its_limits_at_the_mount(tmp_path: Path) -> None:
    group = {"memory.limit_in_bytes": str(3 * GIB), "memory.usage_in_bytes": str(GIB)}
    result = _read(cgroup1(_host(tmp_path), "memory", "/docker/1f", {"": group}, within="/docker/1f"))
    assert result == Memory(total=3 * GIB, available=2 * GIB, limited=True)


@pytest.mark.parametrize("path", ["/../../outside", "/gone", "/docker/1f/../../x", "no slash", ""])
def test_odd_paths_never_lead_out_of_the_mount(tmp_path: Path, path: str) -> None:
    group = {"memory.max": str(5 * GIB), "memory.current": "0"}
    write(tmp_path, {"outside/memory.max": "1", "x/memory.max": "1"})
    assert _read(cgroup2(_host(tmp_path), path, {"": group})).total == 5 * GIB


def test_both_versions_mounted_at_once_are_told_apart_by_the_controller(tmp_path: Path) -> None:
    group = {"memory.limit_in_bytes": str(2 * GIB), "memory.usage_in_bytes": "0"}
    cgroup1(_host(tmp_path), "memory", "/a", {"a": group})
    info = tmp_path / "proc/self/mountinfo"
    info.write_text(info.read_text() + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n")
    write(tmp_path, {"sys/fs/cgroup/unified/memory.max": str(GIB)})
    assert _read(tmp_path).total == 2 * GIB


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.text(alphabet="0123456789max \n-", max_size=12),
    st.text(alphabet="0123456789 \n-", max_size=12),
    st.text(alphabet="inactve_fl0123456789 \n", max_size=40),
)
def test_whatever_stands_in_the_control_files_the_answer_stays_within_the_host(
    tmp_path_factory: pytest.TempPathFactory, limit: str, used: str, stat: str
) -> None:
    root = _host(tmp_path_factory.mktemp("tree"))
    result = _read(cgroup2(root, "/", {"": {"memory.max": limit, "memory.current": used, "memory.stat": stat}}))
    assert 0 <= result.available <= result.total <= 64 * GIB


def test_apples_gpu_may_hold_two_thirds_of_a_small_memory_and_three_quarters_of_a_large_one() -> None:
    assert memory.apple_limit(24 * GIB) == 16 * GIB
    assert memory.apple_limit(64 * GIB) == 48 * GIB


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_what_other_systems_are_asked_is_answered_on_this_one_too(platform: str) -> None:
    host, here = memory.read(platform=platform), memory.read()
    assert 0 < host.available <= host.total and (host.total == here.total or here.limited)
    now = memory.resident(platform=platform)
    assert now is not None and now > 1 << 20
    assert memory.peak(platform=platform) is None or platform in (sys.platform, "darwin")


def test_a_tool_that_is_missing_or_fails_has_printed_nothing() -> None:
    assert memory.output("no-such-tool-anywhere") == ""
    assert memory.output(sys.executable, "-c", "print(1); raise SystemExit(3)") == ""
    assert memory.output(sys.executable, "-c", "print(1)").strip() == "1"


# --- this process


@linux_only
def test_the_peak_keeps_what_was_held_and_starts_again_when_it_is_reset() -> None:
    before = memory.resident()
    assert before is not None
    size = 64 << 20
    with mmap.mmap(-1, size) as block:  # given back to the system for certain, unlike what malloc holds
        block[:: mmap.PAGESIZE] = b"x" * (size // mmap.PAGESIZE)
        resident = memory.resident()
    assert resident is not None and resident - before > 60 << 20
    high = memory.peak()
    assert high is not None and high >= resident - (8 << 20), "the kernel counts both in batches"
    if not memory.reset_peak():
        pytest.skip("this kernel does not reset VmHWM")
    after = memory.peak()
    assert after is not None and after < resident - (48 << 20)


def test_the_peak_falls_back_to_what_the_system_counts_for_every_process(tmp_path: Path) -> None:
    result = memory.peak(tmp_path, "linux")
    if sys.platform == "win32":
        assert result is None
    else:
        assert result is not None and result > 1 << 20


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_systems_without_clear_refs_say_that_the_peak_stays(platform: str) -> None:
    assert memory.reset_peak(platform=platform) is False


def test_a_sandbox_that_only_pretends_to_reset_is_found_out(tmp_path: Path) -> None:
    status = "VmHWM:\t  900000 kB\nVmRSS:\t  100000 kB\n"
    write(tmp_path, {"proc/self/clear_refs": "", "proc/self/status": status})
    assert memory.reset_peak(tmp_path, "linux") is False
    assert (tmp_path / "proc/self/clear_refs").read_text() == "5"
    (tmp_path / "proc/self/status").write_text("VmHWM:\t  100100 kB\nVmRSS:\t  100000 kB\n")
    assert memory.reset_peak(tmp_path, "linux") is True


# --- disk


def test_the_disk_of_a_folder_that_is_not_there_yet_is_that_of_its_parent(tmp_path: Path) -> None:
    asked = []

    def usage(folder: Path) -> int:
        asked.append(folder)
        if not folder.exists():
            raise FileNotFoundError(folder)
        return 7

    assert memory.disk_free(tmp_path / "a" / "b", usage) == 7
    assert asked == [tmp_path / "a" / "b", tmp_path / "a", tmp_path]
    real = memory.disk_free(tmp_path / "a" / "b")
    assert real is not None and real > 0


def test_a_path_that_no_system_has_is_no_disk() -> None:
    def never(folder: Path) -> int:
        raise OSError

    assert memory.disk_free("x", never) is None
