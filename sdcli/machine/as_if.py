"""`--as-if`: a hypothetical machine to plan for."""

from __future__ import annotations

import re

from sdcli.errors import Usage
from sdcli.machine import dtypes, memory, packages, processor
from sdcli.machine.hardware import Hardware
from sdcli.machine.memory import Memory
from sdcli.machine.processor import Processor
from sdcli.sizes import GIB, parse_size
from sdcli.terminal import show

FORMS = "cpu, mps, cuda:8GiB, cuda:24GiB/20GiB (20 of them free), rocm:16GiB, xpu:16GiB, each with ,ram:64GiB"
MAKERS = {"cuda": "NVIDIA", "rocm": "AMD", "xpu": "Intel"}


def parse(text: str, host: Memory | None = None, chip: Processor | None = None) -> Hardware:
    """`cpu|mps|(cuda|rocm|xpu):SIZE[/FREE][,ram:SIZE]`. RAM, cores and instruction set default to this machine's."""
    device, _, rest = text.strip().partition(",")
    match = re.fullmatch(r"(cpu|mps)|(cuda|rocm|xpu):([^/,:]+)(?:/([^/,:]+))?", device.strip(), re.IGNORECASE)
    if match is None:
        raise _wrong(text)
    size = _size(match[3], text) if match[3] else 0
    free = _size(match[4], text) if match[4] else size
    if free > size:
        raise _wrong(text, "free exceeds the total")
    return _hardware((match[1] or match[2]).lower(), size, free, _host(rest, text, host), chip or processor.read())


def _host(rest: str, text: str, host: Memory | None) -> Memory:
    if not rest.strip():
        return host or memory.read()
    name, _, size = rest.partition(":")
    if name.strip().lower() != "ram" or not size:
        raise _wrong(text)
    bytes_ = _size(size, text)
    return Memory(total=bytes_, available=bytes_)


def _hardware(backend: str, size: int, free: int, host: Memory, chip: Processor) -> Hardware:
    own = backend in MAKERS  # memory
    total = size if own else memory.apple_limit(host.total) if backend == "mps" else host.total
    names = {"cpu": chip.name, "mps": "an Apple GPU"}
    return Hardware(
        device={"cuda": "cuda:0", "rocm": "cuda:0", "xpu": "xpu:0"}.get(backend, backend),
        name=_gpu_name(size, MAKERS[backend]) if own else names[backend],
        source="as-if",
        total=total,
        free=free if own else min(total, host.available),
        ram_total=host.total,
        ram_free=host.available,
        amd=backend == "rocm",
        isa=chip.isa,
        threads=chip.threads,
        dtypes=_dtypes(backend, chip),
        openvino=backend == "cpu" and packages.has("openvino"),
        compiler=backend == "cuda" or (backend == "cpu" and packages.compiler("cpu") is not None),
    )


def _dtypes(backend: str, chip: Processor) -> dict[str, str]:
    if backend == "cpu":
        return dtypes.cpu(chip.isa)
    if backend in ("mps", "xpu"):
        return dtypes.mps() if backend == "mps" else dtypes.xpu()
    return dtypes.cuda(None) if backend == "cuda" else dtypes.rocm(None)


def _gpu_name(size: int, maker: str) -> str:
    number = f"{size / GIB:.3g}"
    return f"{'an' if number.startswith('8') or number in ('11', '18') else 'a'} {number} GiB {maker} GPU"


def _size(text: str, whole: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise _wrong(whole, str(error)) from None


def _wrong(text: str, reason: str = "") -> Usage:
    because = f": {reason}" if reason else ""
    return Usage(
        f'--as-if: "{show(text, 60)}" is not a machine{because}; use {FORMS}',
        hint="--as-if cuda:8GiB,ram:32GiB",
    )
