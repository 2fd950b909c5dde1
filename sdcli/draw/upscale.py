"""Nets of ESRGAN's kind: small images in, large ones out, in tiles where memory is short."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from sdcli.draw.decode import RGBImage, in_fp32
from sdcli.errors import ImagesFailed
from sdcli.models.upscaler_walk import CHANNELS, DENSE, RRDB, TRIPLE, Span, multiple, padded, spans

SLOPE = 0.2  # of negative numbers
SHARE = 0.2  # of what a block makes, added to what went into it


class Upscaler(nn.Module):
    """What both kinds have; `config` is read from the shapes of a file's tensors."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.scale = int(config["scale"])

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Upscaler:
        return (Dense if config["architecture"] == RRDB else Compact)(config)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def _convolution(inward: int, outward: int) -> nn.Conv2d:
    return nn.Conv2d(inward, outward, 3, padding=1)


def _rectified(result: Tensor) -> Tensor:
    return functional.leaky_relu(result, SLOPE, inplace=True)


# --- ESRGAN and Real-ESRGAN


class DenseBlock(nn.Module):
    """Each convolution sees what went in and what those before it made."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for step in range(1, DENSE + 1):
            self.add_module(f"conv{step}", _convolution(features + (step - 1) * growth, growth))
        self.add_module(f"conv{DENSE + 1}", _convolution(features + DENSE * growth, features))

    def forward(self, given: Tensor) -> Tensor:
        *growing, joining = self.children()
        made = [given]
        for convolution in growing:
            made.append(_rectified(convolution(torch.cat(made, 1) if len(made) > 1 else given)))
        result: Tensor = joining(torch.cat(made, 1))
        return result.mul_(SHARE).add_(given)


class DenseBlocks(nn.Module):
    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for number in range(1, TRIPLE + 1):
            self.add_module(f"rdb{number}", DenseBlock(features, growth))

    def forward(self, given: Tensor) -> Tensor:
        result = given
        for block in self.children():
            result = block(result)
        return result.mul_(SHARE).add_(given)


class Dense(Upscaler):
    """The residual-in-residual dense blocks of ESRGAN, at the size of the image; then its size doubles."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        features, growth, self.folded = int(config["features"]), int(config["growth"]), multiple(config)
        self.conv_first = _convolution(CHANNELS * self.folded**2, features)
        self.body = nn.ModuleList(DenseBlocks(features, growth) for _ in range(int(config["blocks"])))
        self.conv_body = _convolution(features, features)
        self.doublings = int(config["doublings"])
        for step in range(1, self.doublings + 1):
            self.add_module(f"conv_up{step}", _convolution(features, features))
        self.conv_hr = _convolution(features, features)
        self.conv_last = _convolution(features, CHANNELS)

    def forward(self, image: Tensor) -> Tensor:
        """Of [1, 3, height, width] in 0…1; sides are multiples of what is folded into one pixel."""
        first = self.conv_first(functional.pixel_unshuffle(image, self.folded) if self.folded > 1 else image)
        result = first
        for blocks in self.body:
            result = blocks(result)
        result = self.conv_body(result).add_(first)
        del first
        for step in range(1, self.doublings + 1):
            convolution = self.get_submodule(f"conv_up{step}")
            result = _rectified(convolution(functional.interpolate(result, scale_factor=2, mode="nearest")))
        last: Tensor = self.conv_last(_rectified(self.conv_hr(result)))
        return last


# --- Real-ESRGAN's compact nets


class Compact(Upscaler):
    """Convolutions in a row at the size of the image; the last makes every pixel of the large one, as a difference."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        features = int(config["features"])
        self.body = nn.ModuleList()
        for layer in range(int(config["convolutions"]) + 1):
            self.body.append(_convolution(features if layer else CHANNELS, features))
            self.body.append(nn.PReLU(features))
        self.body.append(_convolution(features, CHANNELS * self.scale**2))

    def forward(self, image: Tensor) -> Tensor:
        result = image
        for layer in self.body:
            result = layer(result)
        result = functional.pixel_shuffle(result, self.scale)
        return result.add_(functional.interpolate(image, scale_factor=self.scale, mode="nearest"))


# --- an image


@dataclass(frozen=True)
class Made:
    """A tile is there, of so many."""

    tile: int
    of: int
    seconds: float


def enlarge(net: Upscaler, image: RGBImage, *, times: int, tile: int) -> Iterator[Made | RGBImage]:
    """Each tile as soon as it is there; last the image, which the net went over so many times, in tiles of that side or
    whole. Every pixel comes from one tile, computed some way beyond what is kept of it."""
    width, height, of, done = image.width, image.height, 0, 0
    for _ in range(times):
        of += len(_spans(net, width, tile)) * len(_spans(net, height, tile))
        width, height = width * net.scale, height * net.scale
    pixels = numpy.frombuffer(image.pixels, numpy.uint8).reshape(image.height, image.width, CHANNELS)
    for _ in range(times):
        given, (height, width) = _padded(net, pixels), pixels.shape[:2]
        pixels = numpy.empty((given.shape[0] * net.scale, given.shape[1] * net.scale, CHANNELS), numpy.uint8)
        for down in _spans(net, height, tile):
            for across in _spans(net, width, tile):
                started = time.perf_counter()
                part = given[down.start : down.start + down.size, across.start : across.start + across.size]
                kept, place = _kept(down, net.scale), _kept(across, net.scale)
                pixels[kept[0], place[0]] = _tile(net, part)[kept[1], place[1]]
                done += 1
                yield Made(done, of, time.perf_counter() - started)
        pixels = pixels[: height * net.scale, : width * net.scale]
    yield RGBImage(pixels.shape[1], pixels.shape[0], pixels.tobytes(), image.retried)


def _spans(net: Upscaler, length: int, tile: int) -> tuple[Span, ...]:
    return spans(padded(length, net.config), tile, multiple(net.config))


def _kept(span: Span, scale: int) -> tuple[slice, slice]:
    """Where it goes in the large image, and what of the tile's result it is."""
    first, last = span.first - span.start, span.last - span.start
    return slice(span.first * scale, span.last * scale), slice(first * scale, last * scale)


def _padded(net: Upscaler, pixels: Any) -> Any:
    """Mirrored at the right and below, to sides that the net can fold."""
    height, width = pixels.shape[:2]
    more = padded(height, net.config) - height, padded(width, net.config) - width
    return numpy.pad(pixels, ((0, more[0]), (0, more[1]), (0, 0)), mode="reflect") if any(more) else pixels


@torch.no_grad()
def _tile(net: Upscaler, pixels: Any) -> Any:
    """In fp32 again where the first result is not finite."""
    made = _computed(net, pixels)
    if made is None and net.dtype != torch.float32:
        with in_fp32(net) as widened:
            made = _computed(widened, pixels)
    if made is None:
        raise ImagesFailed("the upscaler's result is not finite, even in fp32", done="it was not written")
    return made


def _computed(net: Upscaler, pixels: Any) -> Any:
    shares = torch.from_numpy(pixels.astype(numpy.float32) / 255.0).permute(2, 0, 1)[None]
    large = net(shares.to(device=net.device, dtype=net.dtype))[0]
    if not bool(torch.isfinite(large.sum(dtype=torch.float32))):  # one number: a tensor of truths would be large too
        return None
    return large.clamp_(0, 1).permute(1, 2, 0).cpu().float().mul_(255).round_().to(torch.uint8).numpy()
