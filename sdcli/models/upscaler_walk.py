"""The analytic upscaler: layers, work and memory of the nets of ESRGAN's kind, and the tiles that they go over an image
in. A walk mirrors the forward pass of draw/upscale.py."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.models.trace import Leaf, Trace, check_size, key_of, number

RRDB, COMPACT = "RRDBNet", "SRVGGNetCompact"
CHANNELS = 3
KERNEL = 3
DENSE = 4  # convolutions of a dense block that grow it; a fifth joins what they made
TRIPLE = 3  # dense blocks in a row
LEAST_OVERLAP, MOST_OVERLAP = 8, 32  # pixels that are computed beyond each edge of what is kept of a tile
MOST_TIMES = 3


@dataclass(frozen=True, kw_only=True)
class Work:
    """One image, or one tile of it, through a net."""

    parameters: int
    macs: int
    peak_elements: int  # live at once, without weights and what goes in
    result_elements: int
    leaves: tuple[Leaf, ...]


def analyse(config: Mapping[str, Any], *, height: int, width: int) -> Work:
    """Of height × width pixels."""
    check_size("height", height)
    check_size("width", width)
    return _analyse(key_of(config, "upscaler"), height, width)


@functools.lru_cache(maxsize=64)
def _analyse(key: str, height: int, width: int) -> Work:
    config, trace = json.loads(key), Trace(1)
    (_rrdb if config["architecture"] == RRDB else _compact)(trace, config, height, width)
    return Work(
        parameters=sum(leaf.parameters for leaf in trace.leaves), macs=sum(leaf.macs for leaf in trace.leaves),
        peak_elements=trace.peak, result_elements=CHANNELS * height * width * number(config, "scale") ** 2,
        leaves=tuple(trace.leaves),
    )  # fmt: skip


def multiple(config: Mapping[str, Any]) -> int:
    """Of which sides have to be: some nets first fold so many pixels into one."""
    return number(config, "unshuffle", 1)


# --- ESRGAN and Real-ESRGAN


def _rrdb(trace: Trace, config: Mapping[str, Any], height: int, width: int) -> None:
    features, growth, folded = number(config, "features"), number(config, "growth"), multiple(config)
    height, width = -(-height // folded), -(-width // folded)
    one, inward = features * height * width, CHANNELS * folded * folded
    trace.conv("conv_first", inward, features, KERNEL, height, width)
    trace.touch((inward * height * width if folded > 1 else 0) + one)
    trace.hold(one)
    for block in range(number(config, "blocks")):
        for dense in range(1, TRIPLE + 1):
            _dense(trace, f"body.{block}.rdb{dense}", features, growth, height, width)
            if dense > 1:
                trace.drop(one)  # what went into it
        if block:
            trace.drop(one)
    trace.conv("conv_body", features, features, KERNEL, height, width)
    trace.touch(one)
    trace.drop(one)  # the first convolution's result, now added
    for step in range(1, int(config["doublings"]) + 1):
        before, one, height, width = one, 4 * one, 2 * height, 2 * width
        trace.conv(f"conv_up{step}", features, features, KERNEL, height, width)
        trace.touch(2 * one)  # each pixel four times, and the result beside it
        trace.drop(before)
        trace.hold(one)
    trace.conv("conv_hr", features, features, KERNEL, height, width)
    trace.hold(one)
    trace.conv("conv_last", features, CHANNELS, KERNEL, height, width)
    trace.touch(CHANNELS * height * width)
    trace.drop(trace.live)


def _dense(trace: Trace, name: str, features: int, growth: int, height: int, width: int) -> None:
    """Each convolution sees what went in and what those before it made. The result stays."""
    one = height * width
    for step in range(1, DENSE + 1):
        inward = features + (step - 1) * growth
        trace.conv(f"{name}.conv{step}", inward, growth, KERNEL, height, width)
        trace.touch((inward * one if step > 1 else 0) + growth * one)
        trace.hold(growth * one)
    joined = features + DENSE * growth
    trace.conv(f"{name}.conv{DENSE + 1}", joined, features, KERNEL, height, width)
    trace.touch((joined + features) * one)
    trace.drop(DENSE * growth * one)
    trace.hold(features * one)


# --- Real-ESRGAN's compact nets


def _compact(trace: Trace, config: Mapping[str, Any], height: int, width: int) -> None:
    features, pixels = number(config, "features"), height * width
    one, result = features * pixels, CHANNELS * number(config, "scale") ** 2
    inward = CHANNELS
    for layer in range(number(config, "convolutions") + 1):
        trace.conv(f"body.{2 * layer}", inward, features, KERNEL, height, width)
        trace.touch(one)
        if layer == 0:
            trace.hold(one)
        trace.extra(_activation(f"body.{2 * layer + 1}", features, (1, features, height, width)))
        trace.touch(one)
        inward = features
    trace.conv(f"body.{2 * number(config, 'convolutions') + 2}", features, result, KERNEL, height, width)
    trace.touch(result * pixels)
    trace.drop(one)
    trace.hold(result * pixels)
    trace.touch(result * pixels)  # its channels as pixels; then the image itself, as large, is added
    trace.drop(trace.live)


def _activation(name: str, channels: int, shape: tuple[int, ...]) -> Leaf:
    """A slope for each channel."""
    return Leaf(name, "PReLU", "norm", (channels,), (), False, channels, shape, 0, math.prod(shape))


# --- tiles


@dataclass(frozen=True)
class Span:
    """Of one side: `size` pixels from `start` on are computed, those from `first` to `last` kept."""

    start: int
    size: int
    first: int
    last: int


def spans(length: int, tile: int, step: int = 1) -> tuple[Span, ...]:
    """As few tiles as there may be, of equal size and evenly spread; each reaches beyond what is kept of it, but at the
    edge. `length` is a multiple of `step`, and so is where each starts; `tile`, the most pixels of one, is one of 8.
    Without it, all at once."""
    if not tile or length <= tile:
        return (Span(0, length, 0, length),)
    beyond = overlap(tile)
    count = -(-(length - 2 * beyond) // (tile - 2 * beyond))
    tile = min(tile, -(-(-(-(length - 2 * beyond) // count) + 2 * beyond) // 8) * 8)
    room = length - tile
    starts = [room * number // (count - 1) // step * step for number in range(count)]
    cuts = [(left + right + tile) // 2 for left, right in itertools.pairwise(starts)]
    edges = [0, *cuts, length]
    return tuple(Span(start, tile, *pair) for start, pair in zip(starts, itertools.pairwise(edges), strict=True))


def overlap(tile: int) -> int:
    return min(MOST_OVERLAP, max(LEAST_OVERLAP, tile // 16))


def padded(length: int, config: Mapping[str, Any]) -> int:
    step = multiple(config)
    return -(-length // step) * step


@dataclass(frozen=True, kw_only=True)
class Enlarged:
    """All that a net does to an image, in tiles of one size."""

    tiles: int
    macs: int
    largest: Work  # of one tile
    given_elements: int  # that go into it
    width: int  # of the result
    height: int


def enlarged(config: Mapping[str, Any], width: int, height: int, *, times: int, tile: int) -> Enlarged:
    works = list[Work]()
    count = macs = given = 0
    for _ in range(times):
        across, down = (spans(padded(side, config), tile, multiple(config)) for side in (width, height))
        works.append(analyse(config, height=down[0].size, width=across[0].size))
        count += len(across) * len(down)
        macs += len(across) * len(down) * works[-1].macs
        given = max(given, CHANNELS * across[0].size * down[0].size)
        width, height = width * number(config, "scale"), height * number(config, "scale")
    largest = max(works, key=lambda one: one.peak_elements)
    return Enlarged(tiles=count, macs=macs, largest=largest, given_elements=given, width=width, height=height)


def times(config: Mapping[str, Any], width: int, height: int, to: tuple[int, int]) -> int:
    """How often a net goes over an image until that is large enough."""
    scale = number(config, "scale")
    for count in range(1, MOST_TIMES):
        if scale == 1 or (width * scale**count >= to[0] and height * scale**count >= to[1]):
            return count
    return MOST_TIMES
