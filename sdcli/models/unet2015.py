"""The U-Net of 2015 (Ronneberger, Fischer, Brox): the shape that diffusion models adopted."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from sdcli.errors import BadFile, Usage
from sdcli.models.blocks import Extent
from sdcli.models.trace import AT_A_USUAL_SIZE, number, numbers
from sdcli.models.walk import Skip, Unet, Walk


class ClassicWalk(Walk):
    """The U-Net of 2015: 3×3 convolutions without padding, max-pooling, cropped skips, no time, no text."""

    def __init__(self, config: Mapping[str, Any], height: int, width: int, batch: int) -> None:
        super().__init__(config, batch)
        widths = config.get("block_out_channels") or [64, 128, 256, 512, 1024]
        if not isinstance(widths, (list, tuple)) or not 2 <= len(widths) <= 16:
            raise BadFile("config: block_out_channels should be a list of 2 to 16 widths")
        self.widths = numbers(config, "block_out_channels", len(widths), widths)
        self.latent = Extent(number(config, "in_channels", 1), height, width)

    def run(self) -> Unet:
        at, deepest = self.latent, len(self.widths) - 1
        channels = number(self.config, "out_channels", 2)
        for level, width in enumerate(self.widths[:-1]):
            walk = functools.partial(self._down, level, at)
            at = self.block(f"down_blocks.{level}", "down", "conv, conv, pool", level, at, width, walk)
        walk = functools.partial(self._two_convs, "mid_block", at, self.widths[-1])
        at = self.block("mid_block", "mid", "conv, conv", deepest, at, self.widths[-1], walk)
        for index in range(deepest):
            level = deepest - 1 - index
            walk = functools.partial(self._up, index, at)
            entering = Extent(at.channels, 2 * at.height, 2 * at.width)
            at = self.block(f"up_blocks.{index}", "up", "up, conv, conv", level, entering, self.widths[level], walk)
        self.block("conv_out", "out", "Conv2d", 0, at, channels, functools.partial(self._out, at, channels))
        return self.finish(self.latent, 0, time_channels=0, text_channels=0, time_enters=0, text_enters=0)

    def _down(self, level: int, at: Extent) -> Extent:
        trace, name = self.trace, f"down_blocks.{level}"
        at = self._two_convs(name, at, self.widths[level])
        self.push(f"{name}.conv2", at)
        pooled = Extent(at.channels, at.height // 2, at.width // 2)
        self._check_size(name, pooled)
        trace.hold(pooled.elements(trace.batch))
        return pooled

    def _up(self, index: int, at: Extent) -> Extent:
        """A transposed convolution doubles the image; the skip is cropped to it and joined."""
        trace, name = self.trace, f"up_blocks.{index}"
        source, skip = self.waiting.pop()
        rising = Extent(skip.channels, 2 * at.height, 2 * at.width)
        trace.conv(f"{name}.up", at.channels, rising.channels, 2, rising.height, rising.width, kind="ConvTranspose2d")
        trace.hold(rising.elements(trace.batch))
        trace.drop(at.elements(trace.batch))
        joined = rising.with_channels(2 * skip.channels)
        self.skips.append(
            Skip(
                source=source,
                target=f"{name}.conv1",
                channels=skip.channels,
                resolution=(skip.height, skip.width),
                concatenated_channels=joined.channels,
            )
        )
        trace.hold(joined.elements(trace.batch))
        trace.drop(rising.elements(trace.batch) + skip.elements(trace.batch))
        return self._two_convs(name, joined, skip.channels)

    def _two_convs(self, name: str, at: Extent, width: int) -> Extent:
        for layer in (1, 2):
            at = self._conv_relu(f"{name}.conv{layer}", at, width)
        return at

    def _conv_relu(self, name: str, at: Extent, width: int) -> Extent:
        trace = self.trace
        result = Extent(width, at.height - 2, at.width - 2)
        self._check_size(name, result)
        trace.conv(name, at.channels, width, 3, result.height, result.width)
        trace.touch(2 * result.elements(trace.batch))
        trace.hold(result.elements(trace.batch))
        if len(trace.leaves) > 1:  # the image itself belongs to the caller
            trace.drop(at.elements(trace.batch))
        return result

    def _out(self, at: Extent, channels: int) -> None:
        self.trace.conv("conv_out", at.channels, channels, 1, at.height, at.width)
        self.trace.touch(self.trace.batch * channels * at.pixels)

    def _check_size(self, name: str, at: Extent) -> None:
        if at.height < 1 or at.width < 1:
            raise Usage(f"too small: nothing is left of the image at {name}", hint=AT_A_USUAL_SIZE)
