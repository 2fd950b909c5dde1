"""The pretend GPU behaves as torch says that a real one does."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
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


LACKING = {"xpu": ["host_memory_stats", "ipc_collect", "set_sync_debug_mode", "default_stream", "CUDAGraph"]}


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


def captured(step: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        step()
        with torch.cuda.graph(graph, stream=side):
            return graph, step()


def test_a_graph_computes_nothing_until_it_is_replayed_and_then_from_what_its_inputs_hold(gpu: Pretended) -> None:
    weights, given = torch.ones(3, 3, device="cuda"), torch.ones(2, 3, device="cuda")
    graph, out = captured(lambda: torch.relu(given @ weights)[:, :2].add_(1))
    assert torch.isnan(out).all()
    gpu.restart()
    for value in (2.0, -5.0):
        given.fill_(value)
        graph.replay()
        assert out.cpu().tolist() == [[max(0.0, 3 * value) + 1] * 2] * 2
    assert gpu.traffic.launches["replay"] == 2 and "mm" not in gpu.traffic.launches


REFUSED: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda here: here.sum().item(),
    "synchronize": lambda here: torch.cuda.synchronize(),
    "pageable memory": lambda here: here + torch.ones(3).to("cuda", non_blocking=True),
    "pageable memory and": lambda here: here.cpu(),
    "nonzero": lambda here: here.nonzero(),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_a_capture_cannot_take_is_refused(gpu: Pretended, why: str) -> None:
    here = torch.ones(3, device="cuda")
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with (
        torch.cuda.stream(side),
        pytest.raises(RuntimeError, match="due to a previous error") as error,
        torch.cuda.graph(graph, stream=side),
    ):
        REFUSED[why](here)
    assert f"not permitted when stream is capturing ({why.split()[0]}" in str(
        error.value.__context__
    ) or why.startswith("pageable")
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        graph.replay()
    assert float(here.sum()) == 3


def test_a_replay_notices_that_memory_it_reads_was_freed(gpu: Pretended) -> None:
    layer = torch.nn.Linear(3, 3).to("cuda")
    given = torch.ones(1, 3, device="cuda")
    graph, _ = captured(lambda: layer(given))
    graph.replay()
    layer.weight.data = layer.weight.data.clone()  # as weights that come and go are
    with pytest.raises(RuntimeError, match="reads memory that was freed"):
        graph.replay()


def test_a_graph_keeps_a_pool_of_its_own_while_it_lives(gpu: Pretended) -> None:
    given = torch.ones(1 << 20, device="cuda")  # 4 MiB
    before = gpu.allocator().reserved.now
    graph, out = captured(lambda: given.add(1).add(1).add(1))
    torch.cuda.empty_cache()
    assert gpu.allocator().reserved.now == before + (20 << 20), "from one segment, since each block is used again"
    assert gpu.held() == 8 << 20, "of which only the result is allocated"
    del out
    torch.cuda.empty_cache()
    assert gpu.allocator().reserved.now == before + (20 << 20)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty((2 << 30) - (64 << 20) - before, dtype=torch.uint8, device="cuda")
    del graph
    gc.collect()
    torch.cuda.empty_cache()
    assert gpu.allocator().reserved.now == before


def test_memory_may_run_out_while_a_graph_is_captured(gpu: Pretended) -> None:
    given = torch.ones(1 << 20, device="cuda")
    kept = []
    with pytest.raises(torch.OutOfMemoryError):
        captured(lambda: kept.append(torch.empty(900 << 18, device="cuda")) or given + 1)
    kept.clear()
    gc.collect()
    assert gpu.held() == 4 << 20


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
