"""Which number types this device computes rightly and fast: tried for a moment, since flags and versions mislead.

Some builds of torch emulate bf16 hundreds of times slower than fp32, some get convolutions wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from sdcli.machine.hardware import Probe

NAMES = ("fp32", "bf16", "fp16")
SECONDS = 0.6  # no new round is begun after this
ROUNDS = 4
RIGHT = 0.03  # largest error of a right result, relative to the values' spread
HOPELESS = 4.0  # times slower than fp32 in the small trial: not worth the large one
EMULATED = 2.0  # times slower than fp32: emulation takes three times as long at least; less is a busy machine's noise


def probe(device: str = "cpu", threads: int = 0) -> Probe:
    """Convolutions and products as a UNet has them, in fp32 and in the half precisions, at most a second in all."""
    started = time.perf_counter()
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        return _probe(torch.device(device), started)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def _probe(device: torch.device, started: float) -> Probe:
    # fp16 is never used on a CPU: its convolutions there take hundreds of times as long, and the trial itself would
    halves = {"bf16": torch.bfloat16} if device.type == "cpu" else {"bf16": torch.bfloat16, "fp16": torch.float16}
    tried = {"fp32": torch.float32} | {name: dtype for name, dtype in halves.items() if _right(device, dtype)}
    small = _race(_small, device, tried, started)
    worth = {name: dtype for name, dtype in tried.items() if small[name] < HOPELESS * small["fp32"]}
    seconds = small | _race(_large, device, worth, started)
    exact = seconds["fp32"]
    ratio = {name: seconds[name] / (exact if name in worth else small["fp32"]) for name in tried}
    dtypes = {
        name: "probed" if name == "fp32" or ratio.get(name, EMULATED) < EMULATED else "unavailable" for name in NAMES
    }
    return Probe(dtypes=dtypes, ratio=ratio, seconds=time.perf_counter() - started)


def _small(values: Callable[..., Tensor]) -> Tensor:
    return _conv(values, 64, 16) + _product(values, 64, 64).sum()


def _large(values: Callable[..., Tensor]) -> Tensor:
    return _conv(values, 320, 32) + _product(values, 1024, 640).sum()


def _conv(values: Callable[..., Tensor], channels: int, edge: int, *, kernel: int = 3, stride: int = 1) -> Tensor:
    image = values(2, channels, edge, edge).contiguous(memory_format=torch.channels_last)
    weight = values(channels, channels, kernel, kernel).contiguous(memory_format=torch.channels_last)
    return functional.conv2d(image, weight * (channels * kernel * kernel) ** -0.5, stride=stride, padding=kernel // 2)


def _product(values: Callable[..., Tensor], rows: int, width: int) -> Tensor:
    return functional.linear(values(rows, width), values(width, width) * width**-0.5)


# What must come out right: all kinds of layers a UNet and a VAE are made of, small.
_CHECKED: tuple[Callable[[Callable[..., Tensor]], Tensor], ...] = (
    lambda values: _conv(values, 64, 16),
    lambda values: _conv(values, 64, 17, stride=2),
    lambda values: _conv(values, 64, 16, kernel=1),
    lambda values: _product(values, 77, 320),
)


def _error(work: Callable[[Callable[..., Tensor]], Tensor], device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference to fp32 on the same (rounded) values, relative to their spread."""
    found = work(_values(device, dtype)).float()
    wanted = work(lambda *shape: _values(device, dtype)(*shape).float())
    return float((found - wanted).abs().max() / wanted.std())


def _right(device: torch.device, dtype: torch.dtype) -> bool:
    try:
        return all(_error(work, device, dtype) < RIGHT for work in _CHECKED)
    except RuntimeError:  # an operation this device does not have in that dtype
        return False


def _race(
    work: Callable[[Callable[..., Tensor]], Tensor], device: torch.device, tried: Mapping[str, torch.dtype],
    started: float,
) -> dict[str, float]:  # fmt: skip
    """Seconds of the fastest of a few rounds, the dtypes in turn so that a busy machine slows them alike."""
    made = {name: _values(device, dtype) for name, dtype in tried.items()}
    best = {name: _timed(work, values) for name, values in made.items()}  # this round warms up, too
    for _ in range(ROUNDS):
        if time.perf_counter() - started > SECONDS:
            break
        for name, values in made.items():
            best[name] = min(best[name], _timed(work, values))
    return best


def _timed(work: Callable[[Callable[..., Tensor]], Tensor], values: Callable[..., Tensor]) -> float:
    before = time.perf_counter()
    float(work(values).sum())  # asks for a number, and so waits for the device
    return time.perf_counter() - before


def _values(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Normal values, the same for every dtype up to rounding, made once per shape."""
    kept: dict[tuple[int, ...], Tensor] = {}

    def values(*shape: int) -> Tensor:
        if shape not in kept:
            generator = torch.Generator("cpu").manual_seed(sum(shape))
            kept[shape] = torch.randn(shape, generator=generator).to(device=device, dtype=dtype)
        return kept[shape]

    return values
