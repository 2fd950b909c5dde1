"""A short race between the ways to compute a model's layers on this CPU: flags and other machines mislead."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdcli.draw.attention import blocked
from sdcli.draw.load import DTYPES
from sdcli.draw.packed import Convolution, Linear
from sdcli.machine.hardware import QueryBlock, Trial
from sdcli.plan.techniques.attention import Blocks, rows_at_once
from sdcli.plan.workload import AttentionShape, LayerShape, Workload

THREADS_SECONDS = 0.3  # for numbers of threads, where there are several
SECONDS = 0.7  # for the attentions, and as long for the layers; no round starts after this
GUIDANCE_SECONDS = 0.3
SPLIT = 3  # layers, the heaviest
ROUNDS = 3  # after one to warm up, which counts where there is no time for another
QUERIES = (64, 128, 256, 512)  # per block
WORTH = 0.9  # blocks must take less than this share of the fused kernel's time: else noise would decide

Race = Mapping[str, Callable[[], Tensor]]


@torch.no_grad()
def tried(work: Workload, dtype: str, threads: Sequence[int] = (), sides: int = 1) -> Trial:
    """Every shape computed in every way, in turn; at most two seconds in total. Of several numbers of `threads` the
    fastest is found first, and stays set. `sides` of guidance are in the work."""
    started = time.perf_counter()
    fastest = _threads(work, dtype, threads)
    raced = work.attentions and dtype == "bf16"  # blocks are for bf16
    attention, blocks = _attentions(work, dtype, torch.get_num_threads()) if raced else ({}, ())
    execution = _layers(work, dtype)
    way = min(execution, key=execution.__getitem__, default="eager")
    return Trial(
        dtype=dtype, threads=fastest, attention=attention, execution=execution, blocks=blocks,
        guidance=_guidance(work, dtype, sides, way) if sides > 1 else {}, seconds=time.perf_counter() - started,
    )  # fmt: skip


def _threads(work: Workload, dtype: str, numbers: Sequence[int]) -> int:
    """Work is split evenly, so a slow core holds up all others, unless it is worth more than what it costs."""
    if len(numbers) < 2 or not work.layers:
        return 0
    layer, given = layer_of(work.layers[0][0], dtype)

    def with_threads(number: int) -> Callable[[], Tensor]:
        def call() -> Tensor:
            torch.set_num_threads(number)
            return layer(given)  # type: ignore[no-any-return]

        return call

    race = {str(number): with_threads(number) for number in numbers}
    seconds = _raced(race, time.perf_counter() + THREADS_SECONDS)
    fastest = int(min(seconds, key=seconds.__getitem__))
    torch.set_num_threads(fastest)
    return fastest


def _attentions(work: Workload, dtype: str, threads: int) -> tuple[dict[str, float], tuple[QueryBlock, ...]]:
    """Seconds in a call, fused and in blocks where those are faster; nowhere, then in the best blocks everywhere."""
    end = time.perf_counter() + SECONDS
    fused = mixed = everywhere = 0.0
    chosen: dict[int, int] = {}
    for number, (shape, often) in enumerate(work.attentions):
        seconds = _raced(_ways(shape, dtype, threads), _share(end, len(work.attentions) - number))
        calls = often * math.ceil(shape.heads / rows_at_once(shape.heads, threads))
        best = min((name for name in seconds if name != "fused"), key=seconds.__getitem__, default="fused")
        worth = seconds[best] < WORTH * seconds["fused"]
        if worth:
            chosen[shape.keys] = int(best)
        fused += calls * seconds["fused"]
        everywhere += calls * seconds[best]
        mixed += calls * seconds[best if worth else "fused"]
    blocks = tuple(QueryBlock(keys=keys, queries=queries) for keys, queries in sorted(chosen.items()))
    return {"fused": fused, "blocked": mixed if blocks else everywhere}, blocks


def _ways(shape: AttentionShape, dtype: str, threads: int) -> Race:
    """As many heads as are computed at once."""
    heads = rows_at_once(shape.heads, threads)
    query, key, value = (_values(1, heads, shape.keys, shape.width, dtype=dtype) for _ in range(3))

    def in_blocks(queries: int) -> Callable[[], Tensor]:
        return lambda: blocked(query, key, value, Blocks(rows=heads, queries=queries))

    ways: dict[str, Callable[[], Tensor]] = {
        "fused": lambda: functional.scaled_dot_product_attention(query, key, value)
    }
    return ways | {str(queries): in_blocks(queries) for queries in QUERIES if queries <= shape.keys}


def _layers(work: Workload, dtype: str) -> dict[str, float]:
    """Seconds in a call, as far as the time goes, heaviest layers first; none where this build of torch cannot pack."""
    end = time.perf_counter() + SECONDS
    sums, covered = {"eager": 0.0, "packed": 0.0}, 0
    for number, (shape, often) in enumerate(work.layers):
        if covered and time.perf_counter() > end:
            break
        try:
            seconds = _raced(_both(shape, dtype), _share(end, len(work.layers) - number))
        except (RuntimeError, AttributeError):  # no oneDNN, or not for this dtype on this CPU
            return {}
        covered += often * shape.macs
        for way in sums:
            sums[way] += often * seconds[way]
    return {way: seconds * work.macs / max(1, covered) for way, seconds in sums.items()}


def _guidance(work: Workload, dtype: str, sides: int, way: str) -> dict[str, float]:
    """Seconds of the heaviest layers, guidance's sides at once and one after the other."""
    end = time.perf_counter() + GUIDANCE_SECONDS
    sums = {"batched": 0.0, "in-turn": 0.0}
    heaviest = work.layers[:SPLIT]
    for number, (shape, often) in enumerate(heaviest):
        at_once, one = (_both(shape._replace(images=shape.images // of), dtype)[way] for of in (1, sides))
        seconds = _raced({"batched": at_once, "one": one}, _share(end, len(heaviest) - number))
        sums["batched"] += often * seconds["batched"]
        sums["in-turn"] += often * seconds["one"] * sides
    return sums


def _both(shape: LayerShape, dtype: str) -> Race:
    layer, given = layer_of(shape, dtype)
    packed: Linear | Convolution
    if isinstance(layer, nn.Conv2d):
        packed = Convolution(layer)
        packed.weight_for(given)  # once per image size, so outside the race
    else:
        packed = Linear(layer.weight.data, layer.bias)
    return {"eager": lambda: layer(given), "packed": lambda: packed(given)}


def layer_of(shape: LayerShape, dtype: str) -> tuple[nn.Conv2d | nn.Linear, Tensor]:
    """diffusers' layer, and what comes in."""
    layer: nn.Conv2d | nn.Linear
    if shape.kernel:
        layer = nn.Conv2d(shape.inward, shape.outward, shape.kernel, padding=shape.kernel // 2, device="meta")
        layer.weight = nn.Parameter(_image(*layer.weight.shape, dtype=dtype))
        given = _image(shape.images, shape.inward, *shape.size, dtype=dtype)
    else:
        layer = nn.Linear(shape.inward, shape.outward, device="meta")
        layer.weight = nn.Parameter(_values(*layer.weight.shape, dtype=dtype))
        given = _values(shape.images, *shape.size, shape.inward, dtype=dtype)
    layer.bias = nn.Parameter(_values(shape.outward, dtype=dtype))
    return layer, given


def _image(*shape: int, dtype: str) -> Tensor:
    return _values(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def _values(*shape: int, dtype: str) -> Tensor:
    """Which values does not matter, but zeros and denormals may be faster or slower than any others."""
    return torch.empty(shape, dtype=DTYPES[dtype]).uniform_(-1.0, 1.0)


def _share(end: float, waiting: int) -> float:
    """When a shape's turn ends, where as many are `waiting`, itself included."""
    now = time.perf_counter()
    return now + max(0.0, end - now) / waiting


def _raced(race: Race, end: float) -> dict[str, float]:
    """Seconds of the fastest call of each, in turn, so that a busy machine slows all of them alike."""
    first = {name: _timed(call) for name, call in race.items()}
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        if time.perf_counter() > end:
            break
        for name, call in race.items():
            best[name] = min(best.get(name, math.inf), _timed(call))
    return best or first


def _timed(call: Callable[[], Tensor]) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before
