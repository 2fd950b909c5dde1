"""`--as-if`: sizes as people write them, machines as they describe them, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.errors import Usage
from sdcli.machine import as_if
from sdcli.machine.hardware import Hardware
from sdcli.machine.memory import Memory
from sdcli.machine.processor import Processor
from sdcli.sizes import GIB, parse_size

HOST = Memory(total=32 * GIB, available=30 * GIB)
CHIP = Processor(name="Ryzen 5 5600", isa="avx2", cores=6, threads=6)


def _parse(text: str) -> Hardware:
    return as_if.parse(text, HOST, CHIP)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8", 8 * GIB), ("8GiB", 8 * GIB), ("8 gib", 8 * GIB), ("8G", 8 * GIB), ("6.5", int(6.5 * GIB)),
        (".5", GIB // 2),
        ("6000MiB", 6000 << 20), ("6000M", 6000 << 20), ("24GB", 24 * 10**9), ("500MB", 500 * 10**6), ("1T", 1 << 40),
    ],
)  # fmt: skip
def test_sizes_mean_what_people_mean_by_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "8 GiBs", "-8", "8e3", "0", "0.0001", "inf", "nan", "8,5", "٣", "1" * 40, "9999999T", "8.", "8kB"],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_a_gpu_of_8_gib_in_this_machine() -> None:
    one = _parse("cuda:8GiB")
    assert (one.device, one.kind, one.source) == ("cuda:0", "cuda", "as-if")
    assert (one.total, one.free, one.ram_total, one.ram_free) == (8 * GIB, 8 * GIB, 32 * GIB, 30 * GIB)
    assert (one.isa, one.threads) == ("avx2", 6)
    assert one.dtypes == {"fp32": "assumed", "bf16": "assumed", "fp16": "assumed"}


@pytest.mark.parametrize(("backend", "device", "maker"), [("rocm", "cuda:0", "AMD"), ("xpu", "xpu:0", "Intel")])
def test_gpus_of_other_makers_have_torchs_names(backend: str, device: str, maker: str) -> None:
    one = _parse(f"{backend}:16GiB/12GiB,ram:64GiB")
    assert (one.device, one.backend, one.name) == (device, backend, f"a 16 GiB {maker} GPU")
    assert (one.total, one.free, one.ram_total) == (16 * GIB, 12 * GIB, 64 * GIB)
    assert set(one.dtypes.values()) == {"assumed"} and one.uuid is None and one.driver is None


def test_a_gpu_that_is_partly_taken_in_a_machine_of_64_gib() -> None:
    one = _parse("cuda:24GiB/20GiB,ram:64GiB")
    assert (one.total, one.free, one.ram_total, one.ram_free) == (24 * GIB, 20 * GIB, 64 * GIB, 64 * GIB)


def test_a_processor_has_the_hosts_memory_for_its_own() -> None:
    one = _parse("cpu,ram:16")
    assert (one.device, one.total, one.free, one.ram_free) == ("cpu", 16 * GIB, 16 * GIB, 16 * GIB)
    assert one.dtypes["bf16"] == one.dtypes["fp16"] == "unavailable", "this one has AVX2 only"
    assert _parse("CPU").free == 30 * GIB


def test_a_mac_shares_its_memory_with_the_gpu_up_to_what_macos_lets_it_hold() -> None:
    one = _parse("mps,ram:24GiB")
    assert (one.kind, one.total, one.ram_total) == ("mps", 16 * GIB, 24 * GIB)
    assert one.free <= one.ram_free


@pytest.mark.parametrize(
    "text",
    [
        "", "cuda", "cuda:", "cuda:0", "cuda:8GiB/", "cuda:8/9", "cuda:8/2/1", "cuda:x", "rocm", "xpu:", "hip:8",
        "cpu:8", "cpu,ram", "cpu,ram:", "cpu,ram:0", "cuda:8,vram:4", "cuda:8,ram:16,ram:16", "cuda:8 ram:16", "mps:8",
        "\x1b[31mcpu",
        "cuda:8GiB\n,ram",
    ],
)  # fmt: skip
def test_what_is_no_machine_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(Usage) as caught:
        _parse(text)
    assert "cuda:24GiB/20GiB" in caught.value.message and "\x1b" not in caught.value.message
    _parse(caught.value.hint.split("--as-if ")[1])  # the line that is offered works


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.text(alphabet="cpumsdarox:/,.ramGiBM0123456789 ", max_size=24) | st.text(max_size=16))
def test_any_text_is_a_machine_that_holds_together_or_a_usage_error(text: str) -> None:
    try:
        one = _parse(text)
    except Usage:
        return
    assert 0 < one.free <= one.total and 0 < one.ram_free <= one.ram_total
    assert one.source == "as-if" and one.kind in ("cpu", "mps", "cuda", "xpu")


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(1, 512), st.integers(1, 512), st.integers(1, 4096), st.sampled_from(["", "GiB", "G", " gib"]))
def test_what_is_written_is_what_is_planned_for(total: int, free: int, ram: int, unit: str) -> None:
    free, total = sorted((free, total))
    one = _parse(f"cuda:{total}{unit}/{free}{unit},ram:{ram}{unit}")
    assert (one.total, one.free, one.ram_total) == (total * GIB, free * GIB, ram * GIB)
