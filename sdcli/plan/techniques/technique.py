"""What every technique defines for its slot: choices, legality, reasons. A new technique is one more such file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.plan import Budget, Phase, Setup
from sdcli.sizes import GIB

NOISE = 0.95  # a way must take less than this share of another's measured time to be called faster


class Situation(NamedTuple):
    """What a technique's reason is based on: the hardware, the budget, and the predicted peaks of any setup."""

    hardware: Hardware
    model: Model
    budget: Budget
    guided: bool
    phases: Callable[[Setup], tuple[Phase, ...]]
    peaks: Callable[[Setup], tuple[int, int]]  # device and host, measured where remembered
    # slot, choice → bytes above the budgets of the smallest faster setup with it; None if there is none
    lacking: Callable[[str, str], tuple[int, int] | None]
    compiling: Callable[[Setup], str | None]  # what compiling costs and saves this run, as far as it was measured here

    def heaviest(self, setup: Setup) -> str:
        """The phase that sets the device's peak."""
        return max(self.phases(setup), key=lambda phase: phase.device).name


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One slot. `choices` are in order of preference where time and memory are equal."""

    slot: str  # the field of Setup
    choices: tuple[str, ...]
    without: str  # the choice that does not use the technique
    because: Callable[[Setup, Situation], str]
    phrases: Mapping[str, str]  # how the table of setups names a choice; one without a phrase is not named
    illegal: Callable[[Setup, Hardware, Model], str | None] = lambda setup, hardware, model: None
    beside: frozenset[str] = frozenset()  # the other slots that `illegal` looks at
    by_pin: frozenset[str] = frozenset()  # considered only when pinned
    lossy: frozenset[str] = frozenset()  # shown in the table, chosen only when pinned
    moves_pixels: bool = True
    alike: frozenset[str] = frozenset()  # choices between which no pixel moves

    @property
    def flag(self) -> str:
        return self.slot.replace("_", "-")

    @cached_property
    def judged(self) -> frozenset[str]:
        """The slots that decide whether a choice is legal."""
        return self.beside | {self.slot}

    def of(self, setup: Setup) -> str:
        choice: str = getattr(setup, self.slot)
        return choice

    def rank(self, setup: Setup) -> int:
        """Of a setup's choice in the order of preference."""
        return self.choices.index(getattr(setup, self.slot))

    def put(self, setup: Setup, choice: str) -> Setup:
        return replace(setup, **{self.slot: choice})  # type: ignore[arg-type]


def gib(count: int | float) -> str:
    """ "1.7 GiB", or MiB below a tenth of a GiB."""
    return f"{count / GIB:.1f} GiB" if count >= 0.1 * GIB else f"{count / (1 << 20):.0f} MiB"
