"""Processes that compute a model's layers at once on this CPU: how much they slow each other shows only so."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sdcli.draw.trial import layer_of
from sdcli.plan.processes import Division
from sdcli.plan.workload import Workload

SECONDS = 0.7  # at least, in each division and round
ROUNDS = 2  # each division once, then again: a busy machine slows all alike


def calls(work: Workload, dtype: str, divisions: Sequence[Division]) -> Mapping[Division, float]:
    """UNet calls a second of all processes of a division together."""
    context = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
    pipes, processes = [], []
    try:
        for _ in range(max(one.processes for one in divisions)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_compute, args=(theirs, work, dtype), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        best = dict.fromkeys(divisions, 0.0)
        for one in [one for _ in range(ROUNDS) for one in divisions]:
            for pipe in pipes[: one.processes]:
                pipe.send(one.threads)
            best[one] = max(best[one], sum(1 / pipe.recv() for pipe in pipes[: one.processes]))
        return best
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


@torch.no_grad()
def _compute(pipe: Any, work: Workload, dtype: str) -> None:
    """Seconds of a UNet call's layers, for each number of threads that is sent."""
    layers = [(*layer_of(shape, dtype), often) for shape, often in work.layers]
    while True:
        try:
            torch.set_num_threads(pipe.recv())
        except EOFError:
            return
        for layer, given, _ in layers[:1]:
            layer(given)
        took, passes, end = 0.0, 0, time.perf_counter() + SECONDS
        while not passes or time.perf_counter() < end:
            for layer, given, often in layers:
                before = time.perf_counter()
                layer(given)
                took += often * (time.perf_counter() - before)
            passes += 1
        pipe.send(took / passes)
