"""The building blocks that the UNet and the VAE share, as walks over a `Trace`.

Convention: the caller's variable holds the input until the block has returned; the result stays held.
Each `touch` is the most that lives at once beside the input, in the order of the forward pass.
"""

from __future__ import annotations

from typing import NamedTuple

from sdcli.models.trace import Trace


class Extent(NamedTuple):
    """The shape of a tensor, the batch apart."""

    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def elements(self, batch: int) -> int:
        return batch * self.channels * self.height * self.width

    def with_channels(self, channels: int) -> Extent:
        return Extent(channels, self.height, self.width)


def resnet(
    trace: Trace,
    name: str,
    at: Extent,
    channels: int,
    *,
    time: int | None,
    scale_shift: bool = False,
    resample: str = "",
) -> Extent:
    """norm, SiLU, convolution, time added (or scaling and shifting), norm, SiLU, convolution, shortcut."""
    batch, before = trace.batch, at
    trace.norm(f"{name}.norm1", "GroupNorm", at.channels, (at.channels, at.height, at.width))
    entering = at.elements(batch)
    trace.touch(2 * entering)
    resampled = 0  # the resampled input, beside the caller's own
    if resample:
        at = _resampled(at, resample)
        resampled = at.elements(batch)
        trace.touch(entering + 2 * resampled)
        entering = resampled
    trace.conv(f"{name}.conv1", at.channels, channels, 3, at.height, at.width)
    result = at.with_channels(channels)
    leaving = result.elements(batch)
    if time is not None:
        trace.linear(f"{name}.time_emb_proj", time, 2 * channels if scale_shift else channels)
    trace.norm(f"{name}.norm2", "GroupNorm", channels, (channels, at.height, at.width))
    trace.conv(f"{name}.conv2", channels, channels, 3, at.height, at.width)
    shortcut = 0
    if before.channels != channels:
        trace.conv(f"{name}.conv_shortcut", before.channels, channels, 1, at.height, at.width)
        shortcut = leaving
    # live at the end: the shortcut's result, the branch, their sum, and the sum divided by the output scale
    trace.touch(resampled + max(entering + leaving, (3 if scale_shift else 2) * leaving, shortcut + leaving))
    trace.touch((shortcut or resampled) + 3 * leaving)
    trace.hold(leaving)
    return result


def _resampled(at: Extent, how: str) -> Extent:
    if how == "up":
        return Extent(at.channels, 2 * at.height, 2 * at.width)
    return Extent(at.channels, at.height // 2, at.width // 2)


def downsample(trace: Trace, name: str, at: Extent, channels: int, padding: int) -> Extent:
    """A convolution with stride 2; without padding one row and column are added first, in a copy."""
    extra = 1 if padding == 0 else 0
    height = (at.height + extra + 2 * padding - 3) // 2 + 1
    width = (at.width + extra + 2 * padding - 3) // 2 + 1
    result = Extent(channels, height, width)
    copy = trace.batch * at.channels * (at.height + 1) * (at.width + 1) if extra else 0
    trace.conv(f"{name}.conv", at.channels, channels, 3, height, width)
    trace.touch(copy + result.elements(trace.batch))
    trace.hold(result.elements(trace.batch))
    return result


def upsample(trace: Trace, name: str, at: Extent, size: tuple[int, int] | None = None) -> Extent:
    """Every pixel repeated (to twice the size, or to that of the waiting skip), then a convolution."""
    height, width = size or (2 * at.height, 2 * at.width)
    result = Extent(at.channels, height, width)
    trace.conv(f"{name}.conv", at.channels, at.channels, 3, height, width)
    trace.touch(2 * result.elements(trace.batch))
    trace.hold(result.elements(trace.batch))
    return result


def pixel_attention(trace: Trace, name: str, at: Extent, heads: int, head_width: int) -> Extent:
    """Self-attention between pixels with its own norm and residual (AttnDownBlock2D, the middle of a VAE)."""
    channels, pixels, inner = at.channels, at.pixels, heads * head_width
    trace.norm(f"{name}.group_norm", "GroupNorm", channels, (channels, pixels))
    for part in ("to_q", "to_k", "to_v"):
        trace.linear(f"{name}.{part}", channels, inner, (pixels,))
    trace.attention(name, heads, pixels, pixels, head_width)
    trace.linear(f"{name}.to_out.0", inner, channels, (pixels,))
    one, wide = at.elements(trace.batch), trace.batch * pixels * inner
    # the normed input stays as the keys' source, with q, k and v; then the product and its projection, or two of:
    # the projection, its copy with channels first, the sum with the input, the sum divided
    trace.touch(one + 3 * wide + max(wide + one, 2 * one))
    trace.hold(one)
    return at
