"""The pretend GPU behaves as torch says that a real one does."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.pretend_gpu import Pretended, device, pretend, runtime
from tests.pretend_gpu.allocator import Allocator, Block, OutOfSpace, least

MIB = 1 << 20


@pytest.fixture
def gpu() -> Iterator[Pretended]:
    with pretend(device("2GiB")) as made, torch.no_grad():
        yield made


LACKING = {"xpu": ["host_memory_stats", "ipc_collect", "set_sync_debug_mode", "default_stream"]}


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_what_is_answered_is_part_of_torch(kind: str) -> None:
    module = torch.get_device_module(kind)
    assert [name for name in runtime.names(kind) if not hasattr(module, name)] == LACKING.get(kind, [])


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [(1, 512, 2 * MIB), (MIB, MIB, 2 * MIB), (MIB + 1, MIB + 512, 20 * MIB), (21 * MIB // 2, 21 * MIB // 2, 12 * MIB)],
)
def test_blocks_come_from_segments_as_torch_documents(size: int, allocated: int, reserved: int) -> None:
    allocator = Allocator(1 << 30)
    allocator.allocate(size)
    assert (allocator.allocated.now, allocator.reserved.now) == (allocated, reserved)


def test_whatever_is_freed_merges_and_nothing_is_lost() -> None:
    allocator, chance = Allocator(256 * MIB), random.Random(1)
    live: list[Block] = []
    for _ in range(5000):
        if live and chance.random() < 0.5:
            allocator.free(live.pop(chance.randrange(len(live))))
            continue
        try:
            live.append(allocator.allocate(chance.choice([100, 5000, 700_000, 3 * MIB, 12 * MIB, 40 * MIB])))
        except OutOfSpace:
            assert allocator.reserved.now > 100 * MIB
        assert allocator.allocated.now <= allocator.reserved.now <= allocator.limit
    for block in live:
        allocator.free(block)
    allocator.empty_cache()
    assert (allocator.allocated.now, allocator.reserved.now) == (0, 0)


def test_the_least_memory_is_what_the_same_calls_need_with_their_gaps() -> None:
    allocator = Allocator(1 << 40)
    first, second, third = (allocator.allocate(size * MIB) for size in (12, 40, 12))
    allocator.free(second)
    beside = allocator.allocate(10 * MIB)  # in the gap of 40, which then is too small for the next
    allocator.allocate(36 * MIB)
    allocator.free(first)
    allocator.free(third)
    allocator.free(beside)
    assert (allocator.allocated.peak, least(allocator.log)) == (70 * MIB, 100 * MIB)
    assert least([(MIB, 0), 0, None, (21 * MIB, 0)]) == 22 * MIB


def test_views_share_their_bytes_and_all_of_them_are_freed(gpu: Pretended) -> None:
    whole = torch.ones(1000, device="cuda")
    part = whole[:10].view(2, 5)
    del whole
    assert gpu.allocator().allocated.now == 4096
    del part
    gc.collect()
    assert gpu.allocator().allocated.now == 0


def test_two_devices_in_one_call_are_refused_but_single_numbers_are_not(gpu: Pretended) -> None:
    here = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
        here + torch.ones(3)
    assert (here * torch.tensor(2.0)).cpu().tolist() == [2.0] * 3


def test_beyond_its_memory_it_raises_what_torch_raises(gpu: Pretended) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.empty(1 << 30, device="cuda")
    assert gpu.allocator().allocated.now == 0


def test_copies_and_waits_are_counted(gpu: Pretended) -> None:
    host = torch.ones(256)
    here = host.to("cuda")
    assert (gpu.traffic.to_device, dict(gpu.restart().waits)) == (1024, {"copy to the device": 1})
    host.pin_memory().to("cuda", non_blocking=True)
    assert (gpu.traffic.to_device, dict(gpu.restart().waits)) == (1024, {})
    here.sum().item()
    host[here[0].long()]
    assert dict(gpu.restart().waits) == {"item": 1, "__getitem__": 1}


def test_a_parameter_stays_itself_while_its_data_comes_and_goes(gpu: Pretended) -> None:
    layer = torch.nn.Linear(8, 8)
    weight = layer.weight
    layer.to("cuda")
    assert layer.weight is weight and weight.device.type == "cuda"
    layer.to("cpu")
    gc.collect()
    assert layer.weight is weight and gpu.allocator().allocated.now == 0


def test_the_matrix_librarys_workspace_is_counted_apart(gpu: Pretended) -> None:
    here = torch.ones(4, 4, device="cuda")
    made = here @ here
    assert (gpu.held(), gpu.allocator().allocated.now) == (1024, 1024 + (8 << 20) + (128 << 10))
    del here, made
    gc.collect()
    assert gpu.held() == 0


def test_blank_tensors_are_counted_alike_and_hold_nothing() -> None:
    def counted(blank: bool) -> tuple[int, ...]:
        with pretend(device("8GiB"), blank=blank) as gpu:
            images = torch.randn(2, 3, 9, 9).to("cuda", memory_format=torch.channels_last)
            layer = torch.nn.Conv2d(3, 8, 3, stride=2).to("cuda")
            with torch.inference_mode():
                rows = layer(images).flatten(2).transpose(1, 2)
                weights = torch.softmax(rows @ rows.transpose(1, 2), dim=-1)
                assert bool(torch.isfinite(weights).all())
                shape = weights.cpu().shape
            return (*shape, gpu.allocator().most_allocated, gpu.allocator().requests, gpu.traffic.to_host)

    assert counted(blank=True) == counted(blank=False)
    with pretend(device("80GiB"), blank=True) as gpu:
        large = torch.empty(1 << 34, device="cuda")
        assert gpu.held() == 4 << 34 and float(large[:3].cpu().sum()) == 0


@pytest.mark.parametrize(
    ("described", "name", "sizes"),
    [("8GiB/6GiB", "RTX 3060", "6.0 of 8.0 GiB"), ("rocm:16GiB/9GiB", "Radeon RX 7900 XTX", "9.0 of 16.0 GiB"),
     ("xpu:16GiB/9GiB", "Arc A770", "9.0 of 16.0 GiB"), ("mps:24GiB/20GiB", "GiB free", "16.0 of 16.0 GiB")],
)  # fmt: skip
def test_a_whole_command_believes_in_it(tmp_path: Path, described: str, name: str, sizes: str) -> None:
    root = Path(__file__).parents[2]
    words = [sys.executable, "-P", "-m", "tests.pretend_gpu", described, "plan", "a cat", "-m", "sd15"]
    done = subprocess.run(words, env={"PYTHONPATH": str(root), "SDCLI_HOME": str(tmp_path), "HOME": str(tmp_path)},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert name in done.stdout and sizes in done.stdout
