"""The device's peak compute rate, and how long it is busy: what a step's time is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from sdcli.draw.load import DTYPES

SECONDS = 0.25  # for each shape
# Shapes of SD1.5's and SDXL's layers, and one large product: devices differ in which is fastest.
PRODUCTS = (
    (2048, 2048, 2048),
    (4096, 640, 640),
    (2048, 1280, 5120),
    (8192, 320, 2560),
    (512, 1280, 1280),
)  # rows, in, out
CONVOLUTIONS = ((320, 64), (640, 32), (1280, 16))  # channels, edge; 3 × 3, two images


@torch.no_grad()
def best(dtype: str, device: str) -> float:
    """The most floating-point operations per second over a few matrix products and convolutions."""
    target = torch.device(device)
    trials = [_product(*shape, DTYPES[dtype], target) for shape in PRODUCTS]
    trials += [_convolution(*shape, DTYPES[dtype], target) for shape in CONVOLUTIONS]
    return max(operations / _seconds(work, target) for work, operations in trials)


Trial = tuple[Callable[[], Tensor], int]  # the work, and its floating-point operations


def _product(rows: int, inward: int, outward: int, dtype: torch.dtype, device: torch.device) -> Trial:
    values, weight = _values((rows, inward), dtype, device), _values((outward, inward), dtype, device)
    return lambda: functional.linear(values, weight), 2 * rows * inward * outward


def _convolution(channels: int, edge: int, dtype: torch.dtype, device: torch.device) -> Trial:
    image = _values((2, channels, edge, edge), dtype, device).contiguous(memory_format=torch.channels_last)
    weight = _values((channels, channels, 3, 3), dtype, device).contiguous(memory_format=torch.channels_last)
    return lambda: functional.conv2d(image, weight, padding=1), 2 * 2 * 9 * channels * channels * edge * edge


def _values(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0)).to(device=device, dtype=dtype)


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """The fastest of a few rounds; on a GPU a round is many calls, so that launch overhead does not count."""
    calls = 1 if device.type == "cpu" else 20
    fastest, end = float("inf"), time.perf_counter() + SECONDS
    _wait(work(), device)
    while True:
        before = time.perf_counter()
        for _ in range(calls):
            result = work()
        _wait(result, device)
        now = time.perf_counter()
        fastest = min(fastest, (now - before) / calls)
        if now > end:
            return fastest


def _wait(result: Tensor, device: torch.device) -> None:
    if device.type != "cpu":
        float(result.flatten()[0])


class Busy:
    """How long a GPU's kernels run within the block. Profiling slows the launches, not the kernels."""

    def __init__(self) -> None:
        self._profiler: Any = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._profiler.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.cuda.synchronize()
        self._profiler.__exit__(*error)
        kernels = [event for event in self._profiler.events() if event.device_type.name == "CUDA"]
        self.seconds = sum(event.self_device_time_total for event in kernels) / 1e6
