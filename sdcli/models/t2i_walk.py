"""The analytic T2I-Adapter: convolutions over an image, once, and a map of features for every level of the UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdcli.errors import BadFile, Usage
from sdcli.models.blocks import Extent
from sdcli.models.trace import Trace, number
from sdcli.terminal import show

CLASS = "T2IAdapter"
FULL, FULL_XL, LIGHT = "full_adapter", "full_adapter_xl", "light_adapter"
TYPES = (FULL, FULL_XL, LIGHT)
CHANNELS = (320, 640, 1280, 1280)
EDGE = 8  # pixels along the edge of a latent


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What one does with one image. Its features stay for all steps."""

    parameters: int
    macs: int
    peak_elements: int  # live at once while it computes, without weights and the image
    features: tuple[Extent, ...]

    @property
    def elements(self) -> int:
        return sum(each.elements(1) for each in self.features)


def unshuffled(config: Mapping[str, Any]) -> int:
    """How many pixels along its edge go into one place: sides of images have to be multiples of it."""
    return number(config, "downscale_factor", EDGE)


def analyse(config: Mapping[str, Any], *, height: int, width: int) -> Adapter:
    """For an image as large as latents of height × width stand for."""
    kind = config.get("adapter_type", FULL)
    if kind not in TYPES:
        raise BadFile(f"config: adapter_type {show(kind, 60)} is not supported")
    edge, inputs = unshuffled(config), number(config, "in_channels", 3)
    high, wide = height * EDGE, width * EDGE
    if high % edge or wide % edge:
        near = "x".join(str(max(edge, side // edge * edge)) for side in (wide, high))
        raise Usage(f"{wide}×{high} is no multiple of {edge} pixels", hint=f"--size {near}")
    channels = _channels(config)
    walk = _AdapterWalk(Extent(inputs * edge**2, high // edge, wide // edge), number(config, "num_res_blocks", 2))
    if kind == LIGHT:
        walk.light(channels)
    else:
        walk.full(channels, kind)
    leaves = walk.trace.leaves
    return Adapter(
        parameters=sum(leaf.parameters for leaf in leaves), macs=sum(leaf.macs for leaf in leaves),
        peak_elements=walk.trace.peak, features=tuple(walk.features),
    )  # fmt: skip


def _channels(config: Mapping[str, Any]) -> list[int]:
    value = config.get("channels", CHANNELS)
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 < len(value) <= 8:
        raise BadFile("config: channels should be a list of 2 to 8 whole numbers")
    return [number({"channels": each}, "channels") for each in value]


class _AdapterWalk:
    """The forward pass of diffusers' three classes, `at` being the image with its pixels in channels."""

    def __init__(self, at: Extent, layers: int) -> None:
        self.trace, self.layers, self.at = Trace(1), layers, at
        self.features: list[Extent] = []
        self.inside = False  # whether `at` is a result within a level; what came into the level is held outside
        self.trace.hold(at.elements(1))

    def full(self, channels: list[int], kind: str) -> None:
        self.inside = True  # nothing else holds the image in channels
        self._convolve("conv_in", channels[0], 3)
        for level, width in enumerate(channels):
            before = self._begin()
            if level == 2 if kind == FULL_XL else level > 0:
                self._halve()
            if self.at.channels != width:
                self._convolve(f"body.{level}.in_conv", width, 1)
            self._residuals(f"body.{level}", 1)
            self._end(before)

    def light(self, channels: list[int]) -> None:
        for level, width in enumerate([*channels, channels[-1]]):
            before = self._begin()
            if level:
                self._halve()
            self._convolve(f"body.{level}.in_conv", width // 4, 1)
            self._residuals(f"body.{level}", 3)
            self._convolve(f"body.{level}.out_conv", width, 1)
            self._end(before)

    def _begin(self) -> Extent:
        self.inside = False
        return self.at

    def _end(self, before: Extent) -> None:
        if not self.features:  # what came into another level is a map itself
            self.trace.drop(before.elements(1))
        self.features.append(self.at)

    def _becomes(self, at: Extent) -> None:
        """A result takes the place of what it was made from."""
        self.trace.hold(at.elements(1))
        if self.inside:
            self.trace.drop(self.at.elements(1))
        self.at, self.inside = at, True

    def _convolve(self, name: str, width: int, kernel: int) -> None:
        after = self.at.with_channels(width)
        self.trace.conv(f"adapter.{name}", self.at.channels, width, kernel, after.height, after.width)
        self._becomes(after)

    def _halve(self) -> None:
        self._becomes(Extent(self.at.channels, -(-self.at.height // 2), -(-self.at.width // 2)))

    def _residuals(self, name: str, kernel: int) -> None:
        at, one = self.at, self.at.elements(1)
        for layer in range(self.layers):
            for block, size in (("block1", 3), ("block2", kernel)):
                conv = f"adapter.{name}.resnets.{layer}.{block}"
                self.trace.conv(conv, at.channels, at.channels, size, at.height, at.width)
            # a convolution and its activation, or the last one and the sum; beside those what came in, and into each
            self.trace.touch(2 * one if layer == 0 else 3 * one)
        self._becomes(at)


def taken_by(unet: Mapping[str, Any], *, height: int, width: int) -> tuple[Extent, ...]:
    """What a UNet adds features to, on its way down and, where there is one more map, in its middle."""
    kinds = unet.get("down_block_types") or ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    widths = unet.get("block_out_channels") or CHANNELS
    high, wide, taken = height, width, []
    for level, (kind, channels) in enumerate(zip(kinds, widths, strict=False)):
        before = Extent(channels, high, wide)
        if level < len(kinds) - 1:
            high, wide = -(-high // 2), -(-wide // 2)
        taken.append(before if "CrossAttn" in kind else Extent(channels, high, wide))
    return (*taken, Extent(widths[-1], high, wide))
