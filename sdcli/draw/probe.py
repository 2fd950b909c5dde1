"""Which dtypes this device computes correctly and fast: tried briefly, since flags and versions mislead.

Some builds of torch emulate bf16 hundreds of times slower than fp32, and some get convolutions wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdcli.draw import devices
from sdcli.draw.oom import first_line
from sdcli.errors import DeviceUnusable
from sdcli.machine.dtypes import NAMES
from sdcli.machine.hardware import Hardware, Probe
from sdcli.plan.calibration import context
from sdcli.terminal import show

SECONDS = 0.6  # no round starts after this
ROUNDS = 4
RIGHT = 0.03  # largest error of a correct result, relative to the values' spread
HOPELESS = 4.0  # times slower than fp32 in the small trial: no large trial then
EMULATED = 2.0  # times slower than fp32: emulation takes three times as long at least; less is a busy machine's noise


def probe(device: str = "cpu", threads: int = 0) -> Probe:
    """Convolutions and products as in a UNet, in fp32 and in the half precisions, at most a second in total."""
    started = time.perf_counter()
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        return _probe(torch.device(device), started)
    finally:
        torch.set_num_threads(before)


def sized(hardware: Hardware) -> Hardware:
    """The hardware with the name and the memory that torch tells; DeviceUnusable where torch has no such device."""
    device = torch.device(hardware.device)
    module: Any = torch.get_device_module(device)
    own = 0 if module.is_initialized() else context(hardware.backend)  # what asking takes itself
    try:
        about = module.get_device_properties(device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceUnusable(
            f"torch cannot use {show(hardware.name, 60)} as {hardware.device}: {first_line(error)}", hint="--device cpu"
        ) from None
    free, total = devices.functions(device).free(), int(about.total_memory)
    integrated = bool(getattr(about, "is_integrated_gpu", hardware.integrated))
    most = min(total, hardware.ram_free) if integrated else total
    note = f"{hardware.device} does not tell how much of its memory is free; all of it is planned with"
    return replace(
        hardware,
        name=str(about.name),
        source="torch",
        total=total,
        free=most if free is None else min(free + own, most),
        integrated=integrated,
        driver=getattr(about, "driver_version", None),
        notes=(*hardware.notes, *((note,) if free is None else ())),
    )


@torch.no_grad()
def _probe(device: torch.device, started: float) -> Probe:
    # fp16 is never used on a CPU: its convolutions take hundreds of times as long there, and so would the trial
    halves = {"bf16": torch.bfloat16} if device.type == "cpu" else {"bf16": torch.bfloat16, "fp16": torch.float16}
    correct = {"fp32": torch.float32} | {name: dtype for name, dtype in halves.items() if _right(device, dtype)}
    small = _race(_small, device, correct, started)
    hopeful = {name: dtype for name, dtype in correct.items() if small[name] < HOPELESS * small["fp32"]}
    seconds = small | _race(_large, device, hopeful, started)
    exact = seconds["fp32"]
    ratio = {name: seconds[name] / (exact if name in hopeful else small["fp32"]) for name in correct}
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


# What must come out right: every kind of layer in a UNet and a VAE, small.
_CHECKED: tuple[Callable[[Callable[..., Tensor]], Tensor], ...] = (
    lambda values: _conv(values, 64, 16),
    lambda values: _conv(values, 64, 17, stride=2),
    lambda values: _conv(values, 64, 16, kernel=1),
    lambda values: _product(values, 77, 320),
)


def _error(work: Callable[[Callable[..., Tensor]], Tensor], device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference from fp32 on the same (rounded) values, relative to their spread."""
    result = work(_values(device, dtype)).float()
    exact = work(lambda *shape: _values(device, dtype)(*shape).float())
    return float((result - exact).abs().max() / exact.std())


def _right(device: torch.device, dtype: torch.dtype) -> bool:
    try:
        return all(_error(work, device, dtype) < RIGHT for work in _CHECKED)
    except RuntimeError:  # an operation that does not exist on this device in that dtype
        return False


def _race(
    work: Callable[[Callable[..., Tensor]], Tensor], device: torch.device, dtypes: Mapping[str, torch.dtype],
    started: float,
) -> dict[str, float]:  # fmt: skip
    """Seconds of the fastest of a few rounds; dtypes take turns so that a busy machine slows all of them alike."""
    inputs = {name: _values(device, dtype) for name, dtype in dtypes.items()}
    best = {name: _timed(work, values) for name, values in inputs.items()}  # this round also warms up
    for _ in range(ROUNDS):
        if time.perf_counter() - started > SECONDS:
            break
        for name, values in inputs.items():
            best[name] = min(best[name], _timed(work, values))
    return best


def _timed(work: Callable[[Callable[..., Tensor]], Tensor], values: Callable[..., Tensor]) -> float:
    before = time.perf_counter()
    float(work(values).sum())  # reading a number waits for the device
    return time.perf_counter() - before


def _values(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Normal values, the same for every dtype up to rounding, made once per shape."""
    tensors: dict[tuple[int, ...], Tensor] = {}

    def values(*shape: int) -> Tensor:
        if shape not in tensors:
            generator = torch.Generator("cpu").manual_seed(sum(shape))
            tensors[shape] = torch.randn(shape, generator=generator).to(device=device, dtype=dtype)
        return tensors[shape]

    return values
