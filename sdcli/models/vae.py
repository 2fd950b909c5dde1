"""The analytic VAE (diffusers' AutoencoderKL): parameters, and work and memory peak of decoding or encoding a size.

`decode(config, height, width)`, `decode_tiled(config, height, width, tile)` and `encode(config, height, width)` take
pixels and give a `Pass`; peaks are live elements, so `Pass.activation_peak(dtype_bytes)` serves every dtype. Weights,
the input latents and kernels' workspace are excluded; the output image is included. Results are kept.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdcli.errors import BadFile, Usage
from sdcli.models.blocks import Extent, downsample, pixel_attention, resnet, upsample
from sdcli.models.trace import AT_A_USUAL_SIZE, Leaf, Trace, check_size, key_of, names, number, numbers
from sdcli.terminal import show

OVERLAP = 0.25  # of a tile, shared with its neighbour


class Pass(NamedTuple):
    """One run of the encoder or decoder over a whole batch."""

    macs: int
    peak_elements: int  # live at once with fused attention
    largest_scores: int  # elements of the attention matrix in the middle, were it written out
    leaves: tuple[Leaf, ...]

    def activation_peak(self, dtype_bytes: int) -> int:
        """Live bytes at the worst moment; weights and inputs excluded."""
        return self.peak_elements * dtype_bytes


def scale(config: Mapping[str, Any]) -> int:
    """Pixels per latent along one side: 8 for Stable Diffusion."""
    return 1 << (len(_widths(config)) - 1)


def parameters(config: Mapping[str, Any]) -> int:
    """Weights of encoder and decoder together: 83,653,863 for SD1.5 and SDXL alike."""
    side = scale(config)
    both = (*encode(config, height=side, width=side).leaves, *decode(config, height=side, width=side).leaves)
    return sum([leaf.parameters for leaf in both])


def decode(config: Mapping[str, Any], *, height: int, width: int, batch: int = 1) -> Pass:
    """Latents of an image of height × width pixels into the image."""
    return _pass("decode", _key(config, height, width, batch), height, width, batch)


def encode(config: Mapping[str, Any], *, height: int, width: int, batch: int = 1) -> Pass:
    """An image of height × width pixels into latents."""
    return _pass("encode", _key(config, height, width, batch), height, width, batch)


def decode_tiled(config: Mapping[str, Any], *, height: int, width: int, tile: int = 512) -> Pass:
    """Decoding in overlapping tiles of tile × tile pixels; the decoded tiles wait until the last one, then are blended.

    An image no larger than one tile is decoded whole. `leaves` are those of the first tile, the largest.
    """
    side = scale(config)
    if tile < side:
        raise Usage(f"a tile of {tile} pixels is smaller than one latent of {side}", hint=AT_A_USUAL_SIZE)
    if height <= tile and width <= tile:
        return decode(config, height=height, width=width)
    channels = number(config, "out_channels", 3)
    macs, waiting, peak, scores = 0, 0, 0, 0
    leaves: tuple[Leaf, ...] = ()
    rows, columns = _spans(height // side, tile // side), _spans(width // side, tile // side)
    sizes = set(itertools.product(rows, columns))
    passes = {(tall, wide): decode(config, height=tall * side, width=wide * side) for tall, wide in sizes}
    for tall in rows:
        for wide in columns:
            one = passes[tall, wide]
            macs += one.macs
            scores = max(scores, one.largest_scores)
            if waiting + one.peak_elements > peak:
                peak = waiting + one.peak_elements
            leaves = leaves or one.leaves
            waiting += channels * tall * wide * side * side
    image = channels * height * width
    # at the end: every tile, the rows cut from them, and the whole image
    peak = max(peak, waiting + 2 * image)
    return Pass(macs=macs, peak_elements=peak, largest_scores=scores, leaves=leaves)


def encode_tiled(config: Mapping[str, Any], *, height: int, width: int, tile: int = 512) -> Pass:
    """Encoding in such tiles: their latents wait until the last one, which is little beside one tile's work."""
    side = scale(config)
    if height <= tile and width <= tile:
        return encode(config, height=height, width=width)
    channels = 2 * number(config, "latent_channels", 4)
    sizes = list(itertools.product(_spans(height // side, tile // side), _spans(width // side, tile // side)))
    passes = [encode(config, height=tall * side, width=wide * side) for tall, wide in sizes]
    waiting = sum(channels * tall * wide for tall, wide in sizes)
    return Pass(
        macs=sum(one.macs for one in passes), peak_elements=passes[0].peak_elements + waiting,
        largest_scores=passes[0].largest_scores, leaves=passes[0].leaves,
    )  # fmt: skip


def _spans(latents: int, tile: int) -> list[int]:
    """Sizes of the tiles along one side, the last ones cut off by the edge."""
    step = max(1, int(tile * (1 - OVERLAP)))
    return [min(tile, latents - start) for start in range(0, latents, step)]


def _key(config: Mapping[str, Any], height: int, width: int, batch: int) -> str:
    check_size("height", height, scale(config))
    check_size("width", width, scale(config))
    check_size("batch", batch)
    return key_of(config, "VAE")


def _widths(config: Mapping[str, Any]) -> list[int]:
    value = config.get("block_out_channels")
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= 8:
        raise BadFile("config: block_out_channels of the VAE should be a list of 1 to 8 widths")
    return numbers(config, "block_out_channels", len(value))


@functools.lru_cache(maxsize=256)
def _pass(direction: str, key: str, height: int, width: int, batch: int) -> Pass:
    config: dict[str, Any] = json.loads(key)
    _check_supported(config)
    trace = Trace(batch)
    if direction == "decode":
        _decoder(trace, config, height, width)
    else:
        _encoder(trace, config, height, width)
    return Pass(
        macs=sum([leaf.macs for leaf in trace.leaves]),
        peak_elements=trace.peak,
        largest_scores=trace.scores,
        leaves=tuple(trace.leaves),
    )


def _check_supported(config: Mapping[str, Any]) -> None:
    kind = config.get("_class_name") or "AutoencoderKL"
    if kind != "AutoencoderKL":
        raise BadFile(f"{show(kind, 60)} is not a VAE that sdcli supports")
    levels = len(_widths(config))
    for key, supported in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        types = names(config, key, (supported,) * levels)
        if len(types) != levels:
            raise BadFile(f"config: {levels} widths but {len(types)} {key}")
        for name in types:
            if name != supported:
                raise BadFile(f"config: {key} {show(name, 60)} is not supported")


def _decoder(trace: Trace, config: Mapping[str, Any], height: int, width: int) -> None:
    widths = _widths(config)[::-1]
    side, layers = scale(config), number(config, "layers_per_block", 1)
    latent = Extent(number(config, "latent_channels", 4), height // side, width // side)
    quantised = 0
    if config.get("use_post_quant_conv", True):
        quantised = latent.elements(trace.batch)
        trace.conv("post_quant_conv", latent.channels, latent.channels, 1, latent.height, latent.width)
        trace.hold(quantised)  # the caller references it until the decoder has returned
    at = _convolution(trace, "decoder.conv_in", latent, widths[0])
    at = _middle(trace, config, "decoder.mid_block", at)
    for index, channels in enumerate(widths):
        entered = at.elements(trace.batch)
        prefix, inside = f"decoder.up_blocks.{index}", 0
        for layer in range(layers + 1):
            at = resnet(trace, f"{prefix}.resnets.{layer}", at, channels, time=None)
            trace.drop(inside)
            inside = at.elements(trace.batch)
        if index < len(widths) - 1:
            at = upsample(trace, f"{prefix}.upsamplers.0", at)
            trace.drop(inside)
        trace.drop(entered)
    _end(trace, "decoder", at, number(config, "out_channels", 3))
    trace.drop(quantised)


def _encoder(trace: Trace, config: Mapping[str, Any], height: int, width: int) -> None:
    widths = _widths(config)
    layers = number(config, "layers_per_block", 1)
    at = Extent(number(config, "in_channels", 3), height, width)
    at = _convolution(trace, "encoder.conv_in", at, widths[0])
    for index, channels in enumerate(widths):
        entered = at.elements(trace.batch)
        prefix, inside = f"encoder.down_blocks.{index}", 0
        for layer in range(layers):
            at = resnet(trace, f"{prefix}.resnets.{layer}", at, channels, time=None)
            trace.drop(inside)
            inside = at.elements(trace.batch)
        if index < len(widths) - 1:
            at = downsample(trace, f"{prefix}.downsamplers.0", at, channels, 0)
            trace.drop(inside)
        trace.drop(entered)
    at = _middle(trace, config, "encoder.mid_block", at)
    latents = 2 * number(config, "latent_channels", 4)
    at = _end(trace, "encoder", at, latents)
    if config.get("use_quant_conv", True):
        _convolution(trace, "quant_conv", at, latents, kernel=1)


def _middle(trace: Trace, config: Mapping[str, Any], name: str, at: Extent) -> Extent:
    """ResNet, attention with one head, ResNet."""
    entered = one = at.elements(trace.batch)
    at = resnet(trace, f"{name}.resnets.0", at, at.channels, time=None)
    if config.get("mid_block_add_attention", True):
        at = pixel_attention(trace, f"{name}.attentions.0", at, 1, at.channels)
        trace.drop(one)
    at = resnet(trace, f"{name}.resnets.1", at, at.channels, time=None)
    trace.drop(one + entered)
    return at


def _end(trace: Trace, name: str, at: Extent, channels: int) -> Extent:
    one = at.elements(trace.batch)
    trace.norm(f"{name}.conv_norm_out", "GroupNorm", at.channels, (at.channels, at.height, at.width))
    trace.touch(2 * one)  # normed beside the input, then its SiLU beside it
    result = _convolution(trace, f"{name}.conv_out", at, channels)
    trace.drop(one)
    return result


def _convolution(trace: Trace, name: str, at: Extent, channels: int, kernel: int = 3) -> Extent:
    trace.conv(name, at.channels, channels, kernel, at.height, at.width)
    result = at.with_channels(channels)
    trace.hold(result.elements(trace.batch))
    return result
