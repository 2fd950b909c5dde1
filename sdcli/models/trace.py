"""A forward pass counted without running it: its leaves in call order, and the elements alive as tensors come and go.

The analytic UNet, VAE and text encoder are walks over one `Trace`. Sizes are counted in elements, so that one walk
serves every dtype; a caller's variable that still holds a tensor keeps it alive here too, as it does in Python.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from sdcli.errors import BadFile, Usage

MOST_LEAVES = 50_000  # the largest known UNet has 2,000; a hostile config must not fill memory
AT_A_USUAL_SIZE = "sdcli inspect-unet sd15 --at 512x512 --batch 1 --tokens 77"
LARGEST = 1 << 24  # no width, size or count in a real config comes near it


class Leaf(NamedTuple):
    """One module with weights, or one attention product (`<attention>.attention`, without weights)."""

    name: str
    type: str  # the torch class: Conv2d, Linear, GroupNorm …
    kind: str  # convolution | linear | attention | norm | embedding
    weight_shape: tuple[int, ...]
    kernel: tuple[int, ...]  # of convolutions, else empty
    bias: bool
    parameters: int
    output_shape: tuple[int, ...]
    macs: int
    elements: int  # of its output; activation bytes = elements × size of the dtype

    @property
    def keys(self) -> int:
        """How many tokens an attention product attends to."""
        return self.macs // (2 * self.elements)


STREAMED_LAYERS = 3  # counted: the one computing, the one fetched ahead, and one not yet freed


class Span(NamedTuple):
    """Leaves that run between two moments."""

    elements: int  # alive at most meanwhile
    layer: int  # parameters of the largest of them
    row: int  # parameters of those in a row that are there at once where layers are streamed


class Trace:
    """Collects leaves; `hold` and `drop` count what stays alive, `touch` what is needed briefly on top."""

    __slots__ = ("_moments", "batch", "leaves", "live", "peak", "scores")

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.leaves: list[Leaf] = []
        self.live = 0
        self.peak = 0
        self._moments: list[tuple[int, int]] = []  # leaves by then, the most elements alive since the one before
        self.scores = 0  # elements of the largest attention matrix, where it is written out (no fused kernel)

    def hold(self, elements: int) -> None:
        self.live += elements
        self.touch(0)

    def drop(self, elements: int) -> None:
        self.live -= elements

    def touch(self, elements: int) -> None:
        most, leaves = self.live + elements, len(self.leaves)
        if most > self.peak:
            self.peak = most
        moments = self._moments
        if not moments or moments[-1][0] < leaves:
            moments.append((leaves, most))
        elif most > moments[-1][1]:
            moments[-1] = (leaves, most)

    def spans(self) -> tuple[Span, ...]:
        self.touch(0)  # whatever leaves came last
        parameters = [leaf.parameters for leaf in self.leaves if leaf.parameters]
        sums = [0, *accumulate(parameters)]
        rows = [
            sums[min(layer + 2, len(parameters))] - sums[max(0, layer + 2 - STREAMED_LAYERS)]
            for layer in range(len(parameters))
        ]
        spans, first, done = [], 0, 0
        for leaves, elements in self._moments:
            last = first + sum(bool(leaf.parameters) for leaf in self.leaves[done:leaves])
            part = slice(first, max(last, first + 1))  # attention has no parameters: then the layer that follows
            spans.append(Span(elements, max(parameters[part], default=0), max(rows[part], default=0)))
            first, done = last, leaves
        return worst_of(spans)

    def _add(self, leaf: Leaf) -> None:
        if len(self.leaves) >= MOST_LEAVES:
            raise BadFile(f"the config describes more than {MOST_LEAVES:,} layers")
        self.leaves.append(leaf)

    def conv(
        self, name: str, inputs: int, outputs: int, kernel: int, height: int, width: int, *, kind: str = "Conv2d"
    ) -> None:
        """A convolution whose output is height × width."""
        weights = inputs * outputs * kernel * kernel
        shape = (inputs, outputs, kernel, kernel) if kind == "ConvTranspose2d" else (outputs, inputs, kernel, kernel)
        # a transposed convolution multiplies once per input position, stride² fewer than output positions
        positions = height * width // (kernel * kernel) if kind == "ConvTranspose2d" else height * width
        output = (self.batch, outputs, height, width)
        self._add(
            Leaf(
                name, kind, "convolution", shape, (kernel, kernel), True, weights + outputs, output,
                self.batch * positions * weights, self.batch * outputs * height * width,
            )
        )  # fmt: skip

    def linear(self, name: str, inputs: int, outputs: int, rows: tuple[int, ...] = (), *, bias: bool = True) -> None:
        """A Linear over every one of `rows` (tokens) of each batch entry."""
        count = self.batch
        for size in rows:
            count *= size
        self._add(
            Leaf(
                name, "Linear", "linear", (outputs, inputs), (), bias, inputs * outputs + (outputs if bias else 0),
                (self.batch, *rows, outputs), count * inputs * outputs, count * outputs,
            )
        )  # fmt: skip

    def norm(self, name: str, kind: str, channels: int, output: tuple[int, ...]) -> None:
        """A GroupNorm or LayerNorm; `output` without the batch."""
        elements = self.batch
        for size in output:
            elements *= size
        self._add(
            Leaf(
                name, kind, "norm", (channels,), (), True, 2 * channels, (self.batch, *output), 0, elements,
            )
        )  # fmt: skip

    def embedding(self, name: str, entries: int, channels: int, output: tuple[int, ...]) -> None:
        elements = self.batch
        for size in output:
            elements *= size
        self._add(
            Leaf(
                name, "Embedding", "embedding", (entries, channels), (), False, entries * channels,
                (self.batch, *output), 0, elements,
            )
        )  # fmt: skip

    def attention(self, name: str, heads: int, queries: int, keys: int, width: int) -> None:
        """Both products of attention, QKᵀ and PV, over heads of `width` channels each."""
        scores = self.batch * heads * queries * keys
        if scores > self.scores:
            self.scores = scores
        self._add(
            Leaf(
                f"{name}.attention", "scaled_dot_product_attention", "attention", (), (), False, 0,
                (self.batch, heads, queries, width), 2 * scores * width, self.batch * heads * queries * width,
            )
        )  # fmt: skip

    def extra(self, leaf: Leaf) -> None:
        self._add(leaf)


def worst_of(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Those that can be the worst moment: each of the others is at most one of these in all respects."""
    worst: list[Span] = []
    for span in sorted(set(spans), reverse=True):
        if not any(other.layer >= span.layer and other.row >= span.row for other in worst):
            worst.append(span)
    return tuple(worst)


def beside_weights(spans: Iterable[Span], size: int, *, layer: int = 0, row: int = 0) -> int:
    """The most bytes alive at once, with weights that come and go with their layers. `size`: bytes of an element;
    `layer`, `row`: bytes of a parameter of the layer that runs, and of those that are streamed."""
    return max(span.elements * size + span.layer * layer + span.row * row for span in spans)


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What one call of a component takes."""

    parameters: int
    macs: int
    peak_elements: int
    leaves: tuple[Leaf, ...]
    spans: tuple[Span, ...]

    def activation_peak(self, dtype_bytes: int) -> int:
        """Live bytes at the worst moment; weights excluded."""
        return self.peak_elements * dtype_bytes

    def beside_weights(self, dtype_bytes: int, *, layer: int = 0, row: int = 0) -> int:
        """The same with weights that come and go: bytes per parameter of the layer that runs, and of those streamed."""
        return beside_weights(self.spans, dtype_bytes, layer=layer, row=row)


def key_of(config: Mapping[str, Any], what: str) -> str:
    """The config as text, by which what was counted of it is remembered."""
    try:
        return json.dumps(dict(config), sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadFile(f"the {what}'s config is not plain JSON") from error


def check_size(name: str, value: int, lowest: int = 1) -> None:
    if not lowest <= value <= LARGEST:
        raise Usage(f"{name} {value} is outside {lowest} to {LARGEST}", hint=AT_A_USUAL_SIZE)


def number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number of plausible size, or BadFile naming the key."""
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
        raise BadFile(f"config: {key} should be a whole number above 0, not {_short(value)}")
    return value


def numbers(config: Mapping[str, Any], key: str, count: int, default: Any = None) -> list[int]:
    """One number per level: a list of `count`, or one number for all."""
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, (list, tuple)):
        if len(value) != count:
            raise BadFile(f"config: {key} should have {count} values, one per level, not {len(value)}")
        return [number({key: item}, key) for item in value]
    return [number({key: value}, key)] * count


def names(config: Mapping[str, Any], key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """A short list of block type names."""
    value = config.get(key)
    if value is None:
        value = default
    if (
        not isinstance(value, (list, tuple))
        or not 0 < len(value) <= 16
        or not all(isinstance(item, str) for item in value)
    ):
        raise BadFile(f"config: {key} should be a list of 1 to 16 block types")
    return tuple(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
