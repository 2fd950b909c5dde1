"""`--as-if`: a hypothetical machine to plan for."""

from __future__ import annotations

import re

from sdcli.errors import Usage
from sdcli.machine import dtypes, memory, processor
from sdcli.machine.hardware import Hardware
from sdcli.machine.memory import Memory
from sdcli.machine.processor import Processor
from sdcli.sizes import GIB, parse_size
from sdcli.terminal import show

FORMS = "cpu, mps, cuda:8GiB, cuda:24GiB/20GiB (20 of them free), each with ,ram:64GiB"


def parse(text: str, host: Memory | None = None, chip: Processor | None = None) -> Hardware:
    """`cpu|mps|cuda:SIZE[/FREE][,ram:SIZE]`. RAM, cores and instruction set default to this machine's."""
    device, _, rest = text.strip().partition(",")
    match = re.fullmatch(r"(cpu|mps)|cuda:([^/,:]+)(?:/([^/,:]+))?", device.strip(), re.IGNORECASE)
    if match is None:
        raise _wrong(text)
    size = _size(match[2], text) if match[2] else 0
    free = _size(match[3], text) if match[3] else size
    if free > size:
        raise _wrong(text, "free exceeds the total")
    return _hardware((match[1] or "cuda").lower(), size, free, _host(rest, text, host), chip or processor.read())


def _host(rest: str, text: str, host: Memory | None) -> Memory:
    if not rest.strip():
        return host or memory.read()
    name, _, size = rest.partition(":")
    if name.strip().lower() != "ram" or not size:
        raise _wrong(text)
    bytes_ = _size(size, text)
    return Memory(total=bytes_, available=bytes_)


def _hardware(kind: str, size: int, free: int, host: Memory, chip: Processor) -> Hardware:
    total = {"cpu": host.total, "mps": memory.apple_limit(host.total)}.get(kind, size)
    supported = {"cpu": dtypes.cpu(chip.isa), "mps": dtypes.mps()}.get(kind, dtypes.cuda(None))
    name = {"cpu": chip.name, "mps": "an Apple GPU"}.get(kind, _gpu_name(size))
    return Hardware(
        device="cuda:0" if kind == "cuda" else kind,
        name=name,
        source="as-if",
        total=total,
        free=free if kind == "cuda" else min(total, host.available),
        ram_total=host.total,
        ram_free=host.available,
        isa=chip.isa,
        threads=chip.threads,
        dtypes=supported,
    )


def _gpu_name(size: int) -> str:
    number = f"{size / GIB:.3g}"
    return f"{'an' if number.startswith('8') or number in ('11', '18') else 'a'} {number} GiB NVIDIA GPU"


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
