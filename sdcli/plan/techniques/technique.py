"""What every technique file says about its slot: choices, legality, reason. A new technique is one more such file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sdcli.machine.hardware import Hardware
from sdcli.models.model import Model
from sdcli.plan.plan import Budget, Phase, Setup


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a technique looks at when it gives its reason: the machine, the budget, and any setup's predicted peaks."""

    hardware: Hardware
    model: Model
    budget: Budget
    guided: bool
    phases: Callable[[Setup], tuple[Phase, ...]]
    peaks: Callable[[Setup], tuple[int, int]]  # device and host, measured where remembered
    # slot, choice → bytes above the budgets at the least of the faster ways with it; None: there are none
    lacking: Callable[[str, str], tuple[int, int] | None]

    def heaviest(self, setup: Setup) -> str:
        """The phase that sets the device's peak."""
        return max(self.phases(setup), key=lambda phase: phase.device).name


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One slot. `choices` stand in order of preference where price and peak are equal."""

    slot: str  # the field of Setup
    choices: tuple[str, ...]
    without: str  # what one has when the technique is not used
    illegal: Callable[[Setup, Hardware, Model], str | None]
    because: Callable[[Setup, Situation], str]
    phrases: Mapping[str, str]  # how a table of ways names a choice; a choice without a phrase is not mentioned
    by_pin: frozenset[str] = frozenset()  # never looked at unless pinned
    lossy: frozenset[str] = frozenset()  # shown among the ways, chosen only when pinned
    moves_pixels: bool = True

    @property
    def flag(self) -> str:
        return self.slot.replace("_", "-")

    def of(self, setup: Setup) -> str:
        choice: str = getattr(setup, self.slot)
        return choice

    def put(self, setup: Setup, choice: str) -> Setup:
        return replace(setup, **{self.slot: choice})  # type: ignore[arg-type]


def place_name(hardware: Hardware) -> str:
    """The device as a sentence has it."""
    return "the CPU" if hardware.kind == "cpu" else "the GPU"


def gib(count: int | float) -> str:
    """1.7: the one decimal that reasons use, in GiB; MiB below a tenth."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 0.1 * (1 << 30) else f"{count / (1 << 20):.0f} MiB"
