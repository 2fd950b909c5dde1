"""Legal setups weighed: predicted peaks and time, the best of them, and the table of those worth showing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from sdcli.machine.hardware import Hardware
from sdcli.plan.forecast import Forecast, budget
from sdcli.plan.pins import candidates
from sdcli.plan.plan import Alternative, Budget, Setup
from sdcli.plan.techniques import TECHNIQUES
from sdcli.plan.techniques.technique import gib
from sdcli.plan.upscaler_tile import settled

BY_NAME = tuple(sorted(TECHNIQUES, key=lambda technique: technique.slot))  # the order in TECHNIQUES must not matter
LOSSY = tuple(technique for technique in TECHNIQUES if technique.lossy)
MOST_ALTERNATIVES = 32
MUCH_SMALLER = 0.97  # a row of the table saves at least this much over a faster one


# Sorts by least time, then least memory, then each technique's first choice, techniques by name. Memory as counted: if
# measured peaks were compared with counted ones, yesterday's setup could lose a tie to one never tried, and the same
# seed would give another image.
Price = tuple[float, int, int, tuple[int, ...]]


class Weighed(NamedTuple):
    """A legal setup with its predicted peaks and time."""

    setup: Setup
    device: int
    host: int
    slowdown: float
    over: tuple[int, int]  # bytes above the budgets of device and host
    lossy: bool
    price: Price

    @property
    def fits(self) -> bool:
        return self.over == (0, 0)


def weigh(setup: Setup, forecast: Forecast, limits: Budget, fastest: float) -> Weighed:
    device, host = forecast.peaks(setup)
    slowdown = round(forecast.seconds(setup) / fastest, 3)
    return Weighed(
        setup=setup,
        device=device,
        host=host,
        slowdown=slowdown,
        over=(max(0, device - limits.device), max(0, host - limits.host)),
        lossy=any(technique.of(setup) in technique.lossy for technique in LOSSY),
        price=(slowdown, *forecast.counted(setup), tuple([technique.rank(setup) for technique in BY_NAME])),
    )


def choose(options: Sequence[Weighed], pins: Mapping[str, str]) -> Weighed:
    """The fastest that fits; if nothing fits, the one least over budget. Lossy choices only if pinned."""
    lossy = any(pins.get(technique.slot) in technique.lossy for technique in LOSSY)
    allowed = [option for option in options if lossy or not option.lossy]
    fitting = [option for option in allowed if option.fits]
    if fitting:
        return min(fitting, key=lambda option: option.price)
    return min(allowed, key=lambda option: (sum(option.over), option.price))


def lacking(options: Sequence[Weighed], chosen: Weighed, slot: str, choice: str) -> tuple[int, int] | None:
    """Bytes above the budgets of the smallest faster setup with this choice; None if there is none."""
    faster = [option for option in options if option.price < chosen.price and option.lossy <= chosen.lossy]
    return min((option.over for option in faster if getattr(option.setup, slot) == choice), key=sum, default=None)


def front(options: Sequence[Weighed], chosen: Weighed, forecast: Forecast) -> tuple[Alternative, ...]:
    """The table's rows: none slower and hardly smaller than another. Largest first, the chosen one always included."""
    rows: list[Weighed] = []
    prices: set[tuple[float, int, int, bool]] = set()
    for option in sorted(options, key=lambda option: option.price):
        price = (option.slowdown, option.device, option.host, option.lossy)
        if option is chosen or (price not in prices and not any(_covers(row, option) for row in rows)):
            rows.append(option)
        prices.add(price)
    while len(rows) > MOST_ALTERNATIVES:
        rows.remove(next(row for row in reversed(rows) if row is not chosen))
    rows.sort(key=lambda row: (-row.device, row.slowdown))
    return tuple([_alternative(row, row is chosen, forecast) for row in rows])


def _covers(row: Weighed, other: Weighed) -> bool:
    """Whether a faster row makes another one pointless; a lossy row never does."""
    if row.lossy and not other.lossy:
        return False
    return row.device * MUCH_SMALLER <= other.device and row.host * MUCH_SMALLER <= other.host


def _alternative(option: Weighed, chosen: bool, forecast: Forecast) -> Alternative:
    because = None
    if option.over[0]:
        because = f"{gib(option.over[0])} too much"
    elif option.over[1]:
        because = f"{gib(option.over[1])} of RAM too much"
    elif chosen:
        because = "fastest fit"
    return Alternative(
        setup=option.setup,
        device_peak=option.device,
        host_peak=option.host,
        slowdown=option.slowdown,
        fits=option.fits,
        chosen=chosen,
        because=because,
        seconds=forecast.total_seconds(option.setup),
    )


def on_the_cpu(forecast: Forecast, hardware: Hardware, fastest: float, max_ram: int | None) -> Alternative:
    """The row for the CPU in a GPU's plan, for comparison. It needs nothing on the device."""
    host = replace(
        hardware, device="cpu", name="CPU", total=hardware.ram_total, free=hardware.ram_free, capability=None,
        driver=None, dtypes={}, uuid=None, amd=False, integrated=False,
    )  # fmt: skip
    other = forecast.on(host)
    start = Setup(threads=host.threads, device=host.device, isa=host.isa)
    setups = candidates(start, host, forecast.model, {"storage": "same", "guidance": "batched", "vae": "whole"})
    limits = budget(host, None, max_ram)
    best = choose([weigh(settled(setup, other, limits), other, limits, fastest) for setup in setups], {})
    return _alternative(best._replace(device=0, over=(0, best.over[1])), False, other)
