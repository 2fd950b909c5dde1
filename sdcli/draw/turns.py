"""A run whose images differ in the weights of LoRAs: these are folded into the model, one set after another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from sdcli.events import Done, Event
from sdcli.plan.batches import Batch
from sdcli.plan.plan import Plan, Setup
from sdcli.request.request import LoraWeight

Run = Callable[[Plan, Iterable[Batch], Mapping[int, bytes] | None], Iterator[Event]]


def run(
    engine: Run, plan: Plan, batches: Iterable[Batch] | None = None, kept: Mapping[int, bytes] | None = None
) -> Iterator[Event]:
    """What an engine's `run` does, turn by turn: batches of the same weights that follow each other are one."""
    every = plan.numbered() if batches is None else batches
    if not any(job.lora_weights for job in plan.jobs):
        yield from engine(plan, every, kept)
        return
    done = None
    for weights, turn in itertools.groupby(every, key=lambda batch: batch[1][0].lora_weights):
        own = replace(plan, setup=weighted(plan.setup, weights))
        for event in engine(own, list(turn) if isinstance(every, Sequence) else turn, kept):
            if isinstance(event, Done):
                done = event
            else:
                yield event
    if done is not None:
        yield done


def weighted(setup: Setup, weights: Iterable[LoraWeight]) -> Setup:
    """The setup with these weights of its LoRAs."""
    scales = {one.name: one.weight for one in weights}
    adapters = tuple(
        replace(one, scale=scales[one.name]) if one.kind == "lora" and one.name in scales else one
        for one in setup.adapters
    )
    return replace(setup, adapters=adapters)
