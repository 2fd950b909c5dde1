"""What every UNet walk shares: blocks and skips as values, the stack of waiting skips, the finished Unet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sdcli.models.blocks import Extent
from sdcli.models.trace import Leaf, Span, Trace, beside_weights
from sdcli.schema import renamed


class Block(NamedTuple):
    """One part of the U. `elements` is the most that lives at once while it runs, waiting skips included."""

    name: str
    role: str  # in | time | down | mid | up | out
    type: str
    level: int  # 0 is the largest resolution
    resolution: tuple[int, int]  # height, width where its layers work
    in_channels: int
    out_channels: int
    parameters: int
    macs: int
    elements: int
    first: int  # leaves[first:last] are its leaves
    last: int


@dataclass(frozen=True, kw_only=True)
class Skip:
    """A tensor kept on the way down and joined to the channels on the way up: last in, first out."""

    source: str = renamed("from")
    target: str = renamed("to")
    channels: int
    resolution: tuple[int, int]
    concatenated_channels: int


@dataclass(frozen=True, kw_only=True)
class Unet:
    """What one call does. Everything grows in proportion to `batch`."""

    type: str
    latent: tuple[int, int, int]  # channels, height, width of the input
    batch: int
    tokens: int
    leaves: tuple[Leaf, ...]
    spans: tuple[Span, ...] = ()  # none where it was measured
    blocks: tuple[Block, ...]
    skips: tuple[Skip, ...]
    parameters: int
    macs: int
    macs_by_kind: Mapping[str, int]  # convolution, linear, attention
    peak_elements: int  # live at once, fused attention, without weights and inputs
    largest_scores: int  # elements of the largest attention matrix over all heads and the batch, were it written out
    time_channels: int
    text_channels: int
    time_enters: int  # ResNets that add the time embedding
    text_enters: int  # transformer blocks that attend to the text
    config: Mapping[str, Any] = field(repr=False, compare=False, hash=False)

    def activation_peak(self, dtype_bytes: int) -> int:
        """Live bytes at the worst moment, with fused attention; weights, inputs and kernels' workspace excluded."""
        return self.peak_elements * dtype_bytes

    def beside_weights(self, dtype_bytes: int, *, layer: int = 0, row: int = 0) -> int:
        """The same with weights that come and go: bytes per parameter of the layer that runs, and of those streamed."""
        return beside_weights(self.spans, dtype_bytes, layer=layer, row=row)

    @property
    def largest_leaf(self) -> int:
        """Parameters of the largest single layer: what streaming layer by layer must hold at least."""
        return max((leaf.parameters for leaf in self.leaves), default=0)


class Walk:
    """The stack of skips and the list of blocks, common to both kinds of UNet."""

    def __init__(self, config: Mapping[str, Any], batch: int) -> None:
        self.config = config
        self.trace = Trace(batch)
        self.blocks: list[Block] = []
        self.skips: list[Skip] = []
        self.waiting: list[tuple[str, Extent]] = []
        self.peak = 0

    def block(
        self, name: str, role: str, kind: str, level: int, at: Extent, channels: int, walk: Callable[[], Any]
    ) -> Any:
        """Run `walk` and record what it added as one block."""
        trace = self.trace
        first = len(trace.leaves)
        self.peak = max(self.peak, trace.peak)
        trace.peak = trace.live
        result = walk()
        leaves = trace.leaves[first:]
        if leaves:
            self.blocks.append(
                Block(
                    name=name,
                    role=role,
                    type=kind,
                    level=level,
                    resolution=(at.height, at.width),
                    in_channels=at.channels,
                    out_channels=channels,
                    parameters=sum([leaf.parameters for leaf in leaves]),
                    macs=sum([leaf.macs for leaf in leaves]),
                    elements=trace.peak,
                    first=first,
                    last=len(trace.leaves),
                )
            )
        self.peak = max(self.peak, trace.peak)
        return result

    def push(self, source: str, at: Extent) -> None:
        """The tensor just held waits for its partner on the way up."""
        self.waiting.append((source, at))

    def finish(self, latent: Extent, tokens: int, **facts: int) -> Unet:
        leaves = tuple(self.trace.leaves)
        by_kind = {"convolution": 0, "linear": 0, "attention": 0}
        for leaf in leaves:
            if leaf.macs:
                by_kind[leaf.kind] += leaf.macs
        return Unet(
            type=str(self.config.get("_class_name") or "UNet2DConditionModel"),
            latent=(latent.channels, latent.height, latent.width),
            batch=self.trace.batch,
            tokens=tokens,
            leaves=leaves,
            spans=self.trace.spans(),
            blocks=tuple(self.blocks),
            skips=tuple(self.skips),
            parameters=sum([leaf.parameters for leaf in leaves]),
            macs=sum(by_kind.values()),
            macs_by_kind=by_kind,
            peak_elements=self.peak,
            largest_scores=self.trace.scores,
            config=self.config,
            **facts,
        )
