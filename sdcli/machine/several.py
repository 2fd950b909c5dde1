"""--devices: which of this machine's devices draw at once, and what each may take of what they share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from sdcli.errors import DeviceUnusable, Usage
from sdcli.machine.hardware import Hardware
from sdcli.machine.survey import Survey, choose, usable
from sdcli.terminal import show

EXAMPLE = "--devices all"
MOST_PROCESSES = 64


@dataclass(frozen=True)
class Seat:
    """A device, or a part of the CPU, that draws in a process of its own."""

    name: str
    hardware: Hardware


def seats(
    text: str, survey: Survey, without_own: Callable[[Hardware], Hardware] = lambda hardware: hardware
) -> tuple[Seat, ...]:  # fmt: skip
    """Each as it would be alone, but with its part of the host's memory only; `without_own`: what they hold already
    counts as free."""
    found = [seat for entry in text.split(",") for seat in _of(entry.strip().lower(), text, survey)]
    names = [seat.name for seat in found]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise Usage(f"--devices names {repeated} more than once", hint=EXAMPLE)
    if len(found) > MOST_PROCESSES:
        raise Usage(f"--devices: {len(found)} processes are more than {MOST_PROCESSES}", hint=EXAMPLE)
    return tuple(replace(seat, hardware=part(without_own(seat.hardware), len(found))) for seat in found)


def part(hardware: Hardware, of: int) -> Hardware:
    """With as much of the host's free memory as each of so many processes may take."""
    free = hardware.free // of if hardware.shares_memory else hardware.free
    return replace(hardware, free=free, ram_free=hardware.ram_free // of)


def _of(entry: str, text: str, survey: Survey) -> Iterator[Seat]:
    gpus = [hardware for hardware in usable(survey) if hardware.kind != "cpu"]
    several = re.fullmatch(r"cpu:(\d{1,4})x(\d{1,4})", entry, re.ASCII)
    if entry == "all":
        yield from (Seat(hardware.device, hardware) for hardware in gpus or [choose("cpu", survey)])
    elif several is not None:
        yield from _processes(int(several[1]), int(several[2]), _chosen("cpu", survey))
    elif re.fullmatch(r"\d{1,3}", entry, re.ASCII):
        hardware = _chosen(f"{gpus[0].kind if gpus else 'cuda'}:{int(entry)}", survey)
        yield Seat(hardware.device, hardware)
    elif entry and entry != "auto":
        hardware = _chosen(entry, survey)
        yield Seat(hardware.device, hardware)
    else:
        raise Usage(f'--devices: "{show(text, 60)}" is not a list of devices', hint=EXAMPLE)


def _chosen(name: str, survey: Survey) -> Hardware:
    try:
        return choose(name, survey)
    except (DeviceUnusable, Usage) as error:  # which speaks of --device
        error.message, error.hint = (
            error.message.replace("--device ", "--devices ").replace("--device:", "--devices:"),
            EXAMPLE,
        )
        raise


def _processes(count: int, threads: int, cpu: Hardware) -> Sequence[Seat]:
    if not count or not threads:
        raise Usage(f"--devices cpu:{count}x{threads} names no worker", hint=f"--devices cpu:{cpu.threads}x1")
    if count * threads > cpu.threads:
        raise Usage(
            f"--devices cpu:{count}x{threads} is {count * threads} threads, and this machine has cores for "
            f"{cpu.threads}",
            hint=f"--devices cpu:{max(1, cpu.threads // threads)}x{min(threads, cpu.threads)}",
        )
    return _divided(cpu, count, threads)


def divided(cpu: Hardware, count: int, threads: int) -> tuple[Seat, ...]:
    """So many processes of so many threads, each with its part of the memory."""
    return tuple(_divided(part(cpu, count), count, threads))


def _divided(cpu: Hardware, count: int, threads: int) -> Sequence[Seat]:
    own = replace(cpu, threads=threads, fast_threads=0)
    return [Seat(f"cpu:{number}" if count > 1 else "cpu", own) for number in range(1, count + 1)]
