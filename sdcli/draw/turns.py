"""A run whose images differ in the weights of LoRAs: these are folded into the model, one set after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sdcli.events import Done, Event
from sdcli.machine.hardware import Hardware
from sdcli.plan.batches import Batch
from sdcli.plan.plan import Plan, Setup
from sdcli.request.request import LoraWeight

if TYPE_CHECKING:
    from sdcli.draw.engines import Engine


class Turns:
    """The engine of a run, turn by turn; batches with the same weights that follow each other are one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(
        self, plan: Plan, batches: Iterable[Batch] | None = None, kept: Mapping[int, bytes] | None = None
    ) -> Iterator[Event]:
        every = plan.numbered() if batches is None else batches
        if not any(job.lora_weights for job in plan.jobs):
            yield from self._engine.run(plan, every, kept)
            return
        done = None
        for weights, turn in itertools.groupby(every, key=lambda batch: batch[1][0].lora_weights):
            own = replace(plan, setup=weighted(plan.setup, weights))
            for event in self._engine.run(own, list(turn) if isinstance(every, Sequence) else turn, kept):
                if isinstance(event, Done):
                    done = event
                else:
                    yield event
        if done is not None:
            yield done

    def without_own(self, hardware: Hardware) -> Hardware:
        return self._engine.without_own(hardware)

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def weighted(setup: Setup, weights: Iterable[LoraWeight]) -> Setup:
    """The setup with these weights of its LoRAs."""
    scales = {one.name: one.weight for one in weights}
    adapters = tuple(
        replace(one, scale=scales[one.name]) if one.kind == "lora" and one.name in scales else one
        for one in setup.adapters
    )
    return replace(setup, adapters=adapters)
