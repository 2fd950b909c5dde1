"""Whether compiling the UNet's blocks pays off in a run: by what was measured on this machine, never assumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from sdcli.plan.plan import Setup
from sdcli.plan.remembered import Measures
from sdcli.terminal import seconds_text


class Compiling(NamedTuple):
    """One run's cost and saving. `rival` is the fastest measured setup that differs only in how layers are computed."""

    rival: Setup
    rival_step: float
    step: float
    seconds: float  # before the first step
    calls: int  # of the UNet in the whole run

    @property
    def saved(self) -> float:
        """Seconds in the steps, the cost not counted."""
        return (self.rival_step - self.step) * self.calls

    @property
    def ratio(self) -> float:
        """The run's steps and their compiling, relative to the rival's steps."""
        return (self.step * self.calls + self.seconds) / (self.rival_step * self.calls)

    @property
    def words(self) -> str:
        """As it stands in a plan's reason."""
        saved = f"would save {seconds_text(self.saved)} of" if self.saved > 0 else "would save nothing of"
        return f"measured here, {saved} this run's steps and take {seconds_text(self.seconds)} before them"


def compiling(setup: Setup, measured: Callable[[Setup], Measures | None], calls: int) -> Compiling | None:
    """None where this machine has not run both."""
    own = measured(replace(setup, execution="compile", attention="fused", blocks=()))
    if own is None or own.step is None or own.compile is None:
        return None
    rivals = [
        replace(setup, execution=execution, attention=attention)
        for execution in ("packed", "eager")
        for attention in ("fused", "blocked")
    ]
    steps = [(found.step, rival) for rival in rivals if (found := measured(rival)) is not None and found.step]
    if not steps:
        return None
    step, rival = min(steps, key=lambda pair: pair[0])
    return Compiling(rival=rival, rival_step=step, step=own.step, seconds=own.compile, calls=calls)
