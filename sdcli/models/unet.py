"""The analytic UNet: `analyse(config, height, width, batch, tokens)` gives every layer, its work and the memory peak.

height and width are in latents (pixels / 8 for Stable Diffusion). Pure Python, exact in parameters, output shapes and
multiply-adds; the activation peak counts live bytes with fused attention and without weights or inputs. Results are
kept, so asking again for the same config and size is free.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from sdcli.errors import BadFile, Usage
from sdcli.models.blocks import Extent, downsample, pixel_attention, resnet, upsample
from sdcli.models.trace import AT_A_USUAL_SIZE, Leaf, check_size, key_of, names, number, numbers
from sdcli.models.unet2015 import ClassicWalk
from sdcli.models.walk import Block, Skip, Unet, Walk
from sdcli.terminal import show

__all__ = ["CLASS_NAMES", "Block", "Skip", "Unet", "analyse"]

CLASS_NAMES = ("UNet2DConditionModel", "UNet2015")


def analyse(config: Mapping[str, Any], *, height: int, width: int, batch: int = 1, tokens: int = 77) -> Unet:
    """Every layer of one call on `batch` latents of height × width (latents, not pixels) and `tokens` text tokens."""
    for name, value in (("height", height), ("width", width), ("batch", batch), ("tokens", tokens)):
        check_size(name, value)
    return _analyse(key_of(config, "UNet"), height, width, batch, tokens)


@functools.lru_cache(maxsize=64)
def _analyse(key: str, height: int, width: int, batch: int, tokens: int) -> Unet:
    config: dict[str, Any] = json.loads(key)
    kind = config.get("_class_name") or "UNet2DConditionModel"
    if kind == "UNet2015":
        return ClassicWalk(config, height, width, batch).run()
    if kind != "UNet2DConditionModel":
        raise BadFile(f"{show(kind, 60)} is not a UNet that sdcli supports", hint="sdcli inspect-unet sd15")
    return UNetWalk(config, height, width, batch, tokens).run()


DOWN_TYPES = (
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "SimpleCrossAttnDownBlock2D",
)
UP_TYPES = ("UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D")
MID_TYPES = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", "UNetMidBlock2DSimpleCrossAttn")
RESAMPLED_BY_RESNET = (
    "ResnetDownsampleBlock2D",
    "SimpleCrossAttnDownBlock2D",
    "ResnetUpsampleBlock2D",
    "SimpleCrossAttnUpBlock2D",
)


class UNetWalk(Walk):
    """The forward pass of diffusers' UNet2DConditionModel, followed without running it."""

    def __init__(self, config: Mapping[str, Any], height: int, width: int, batch: int, tokens: int) -> None:
        super().__init__(config, batch)
        self.tokens = tokens
        self.latent = Extent(number(config, "in_channels", 4), height, width)
        self.down_types = _types(config, "down_block_types", DOWN_TYPES, "CrossAttnDownBlock2D", "DownBlock2D")
        self.up_types = _types(config, "up_block_types", UP_TYPES, "CrossAttnUpBlock2D", "UpBlock2D")
        self.mid_type = config.get("mid_block_type", MID_TYPES[0])
        if self.mid_type is not None and self.mid_type not in MID_TYPES:
            raise _unsupported("mid_block_type", self.mid_type)
        levels = len(self.down_types)
        if len(self.up_types) != levels:
            raise BadFile(f"config: {levels} down_block_types but {len(self.up_types)} up_block_types")
        self.levels = levels
        self._check_supported()
        self.widths = numbers(config, "block_out_channels", levels, [320, 640, 1280, 1280])
        self.layers = numbers(config, "layers_per_block", levels, 2)
        self.heads = numbers(config, "attention_head_dim", levels, 8)  # named head_dim, is the number of heads
        self.context = numbers(config, "cross_attention_dim", levels, 1280)
        self.depths = self._depths()
        self.up_depths = self._up_depths()
        self.only_cross, self.mid_only_cross = self._only_cross()
        self.linear = bool(config.get("use_linear_projection"))
        self.cross_norm = config.get("cross_attention_norm")
        self.scale_shift = self._scale_shift()
        self.time_enters = 0
        self.text_enters = 0

    def _check_supported(self) -> None:
        config = self.config
        if config.get("num_attention_heads") is not None:
            raise BadFile("config: num_attention_heads is not used by this kind of UNet (attention_head_dim is)")
        if config.get("dual_cross_attention"):
            raise BadFile("config: dual_cross_attention is not supported")
        if config.get("attention_type", "default") not in ("default", None):
            raise _unsupported("attention_type", config["attention_type"])
        if config.get("cross_attention_norm") not in (None, "layer_norm", "group_norm"):
            raise _unsupported("cross_attention_norm", config["cross_attention_norm"])

    def _scale_shift(self) -> bool:
        how = self.config.get("resnet_time_scale_shift") or "default"
        if how not in ("default", "scale_shift"):
            raise _unsupported("resnet_time_scale_shift", how)
        return bool(how == "scale_shift")

    def _depths(self) -> list[Any]:
        """Transformer blocks per attention: one number, one per level, or a list per layer of a level."""
        value = self.config.get("transformer_layers_per_block", 1)
        if not isinstance(value, (list, tuple)):
            return numbers(self.config, "transformer_layers_per_block", self.levels, 1)
        if len(value) != self.levels:
            raise BadFile(f"config: transformer_layers_per_block should have {self.levels} values, not {len(value)}")
        return [_depth(item) for item in value]

    def _up_depths(self) -> list[Any]:
        value = self.config.get("reverse_transformer_layers_per_block")
        if value is None:
            return self.depths[::-1]
        if not isinstance(value, (list, tuple)) or len(value) != self.levels:
            raise BadFile(f"config: reverse_transformer_layers_per_block should have {self.levels} values")
        return [_depth(item) for item in value]

    def _only_cross(self) -> tuple[list[bool], bool]:
        value = self.config.get("only_cross_attention", False)
        mid = self.config.get("mid_block_only_cross_attention")
        if isinstance(value, (list, tuple)):
            if len(value) != self.levels:
                raise BadFile(f"config: only_cross_attention should have {self.levels} values, not {len(value)}")
            return [bool(item) for item in value], bool(mid)
        return [bool(value)] * self.levels, bool(value if mid is None else mid)

    # the pass

    def run(self) -> Unet:
        config, trace = self.config, self.trace
        time = self._time()
        self.time = time * 2 if config.get("class_embeddings_concat") else time
        self._encoder_projection()
        at = self.block("conv_in", "in", "Conv2d", 0, self.latent, self.widths[0], self._conv_in)
        for level, kind in enumerate(self.down_types):
            walk = functools.partial(self._down, level, kind, at)
            at = self.block(f"down_blocks.{level}", "down", kind, level, at, self.widths[level], walk)
        if self.mid_type is not None:
            walk = functools.partial(self._mid, at)
            at = self.block("mid_block", "mid", self.mid_type, self.levels - 1, at, at.channels, walk)
        held = 0  # the last up block's skips are still referenced when the next one starts
        for index, kind in enumerate(self.up_types):
            level = self.levels - 1 - index
            rise = functools.partial(self._up, index, kind, at, held)
            at, held = self.block(f"up_blocks.{index}", "up", kind, level, at, self.widths[level], rise)
        self.block("conv_out", "out", "Conv2d", 0, at, number(config, "out_channels", 4), lambda: self._out(at))
        if self.waiting:
            raise BadFile(f"config: {len(self.waiting)} skip connections of the down blocks are never used")
        trace.drop(trace.live)
        return self.finish(
            self.latent,
            self.tokens,
            time_channels=time,
            text_channels=self.text_channels if self.text_enters else 0,
            time_enters=self.time_enters,
            text_enters=self.text_enters,
        )

    def _conv_in(self) -> Extent:
        kernel = number(self.config, "conv_in_kernel", 3)
        at = _convolved(self.latent, self.widths[0], kernel)
        self.trace.conv("conv_in", self.latent.channels, at.channels, kernel, at.height, at.width)
        self.trace.hold(at.elements(self.trace.batch))
        self.push("conv_in", at)
        return at

    def _out(self, at: Extent) -> None:
        trace = self.trace
        if self.config.get("norm_num_groups", 32) is not None:
            trace.norm("conv_norm_out", "GroupNorm", at.channels, (at.channels, at.height, at.width))
            trace.touch(2 * at.elements(trace.batch))
        kernel = number(self.config, "conv_out_kernel", 3)
        result = _convolved(at, number(self.config, "out_channels", 4), kernel)
        trace.conv("conv_out", at.channels, result.channels, kernel, result.height, result.width)

    # time, text and other conditions

    def _time(self) -> int:
        """The time embedding and what is added to it; returns its width."""
        config, first = self.config, self.widths[0]
        kind = config.get("time_embedding_type") or "positional"
        if kind not in ("positional", "fourier"):
            raise _unsupported("time_embedding_type", kind)
        time = number(config, "time_embedding_dim", first * (4 if kind == "positional" else 2))
        inputs = first if kind == "positional" else time
        at = Extent(inputs, 1, 1)
        self.block(
            "time_embedding", "time", "TimestepEmbedding", 0, at, time, lambda: self._time_layers(kind, inputs, time)
        )
        self.block("class_embedding", "time", "class", 0, at, time, lambda: self._classes(inputs, time))
        self.block("add_embedding", "time", "addition", 0, at, time, lambda: self._addition(time))
        self.trace.hold(self.trace.batch * time)
        return time

    def _time_layers(self, kind: str, inputs: int, time: int) -> None:
        config, trace = self.config, self.trace
        if kind == "fourier":
            shape = (trace.batch, inputs)
            trace.extra(
                Leaf(
                    "time_proj", "GaussianFourierProjection", "embedding", (time // 2,), (), False, time // 2, shape, 0,
                    trace.batch * inputs,
                )
            )  # fmt: skip
        if config.get("time_cond_proj_dim") is not None:
            condition = number(config, "time_cond_proj_dim")
            trace.linear("time_embedding.cond_proj", condition, inputs, bias=False)
        self._two_linears("time_embedding", inputs, time)

    def _two_linears(self, name: str, inputs: int, time: int) -> None:
        self.trace.linear(f"{name}.linear_1", inputs, time)
        self.trace.linear(f"{name}.linear_2", time, time)

    def _classes(self, inputs: int, time: int) -> None:
        config, trace = self.config, self.trace
        kind = config.get("class_embed_type")
        if kind is None:
            if config.get("num_class_embeds") is not None:
                trace.embedding("class_embedding", number(config, "num_class_embeds"), time, (time,))
        elif kind == "timestep":
            self._two_linears("class_embedding", inputs, time)
        elif kind == "projection":
            self._two_linears("class_embedding", number(config, "projection_class_embeddings_input_dim"), time)
        elif kind == "simple_projection":
            trace.linear("class_embedding", number(config, "projection_class_embeddings_input_dim"), time)
        elif kind != "identity":
            raise _unsupported("class_embed_type", kind)

    def _addition(self, time: int) -> None:
        config, trace = self.config, self.trace
        kind = config.get("addition_embed_type")
        if kind == "text_time":
            number(config, "addition_time_embed_dim")
            self._two_linears("add_embedding", number(config, "projection_class_embeddings_input_dim"), time)
        elif kind == "text":
            width = number(config, "encoder_hid_dim", self.context[0])
            self._text_pooled(width, time)
        elif kind == "text_image":
            trace.linear("add_embedding.text_proj", self.context[0], time)
            trace.norm("add_embedding.text_norm", "LayerNorm", time, (time,))
            trace.linear("add_embedding.image_proj", self.context[0], time)
        elif kind == "image":
            trace.linear("add_embedding.image_proj", number(config, "encoder_hid_dim"), time)
            trace.norm("add_embedding.image_norm", "LayerNorm", time, (time,))
        elif kind is not None:
            raise _unsupported("addition_embed_type", kind)

    def _text_pooled(self, width: int, time: int) -> None:
        """DeepFloyd's: the text pooled by one attention, its query the mean token."""
        trace, tokens = self.trace, self.tokens
        heads = number(self.config, "addition_embed_type_num_heads", 64)
        trace.norm("add_embedding.norm1", "LayerNorm", width, (tokens, width))
        trace.linear("add_embedding.pool.q_proj", width, width, (1,))
        trace.linear("add_embedding.pool.k_proj", width, width, (tokens + 1,))
        trace.linear("add_embedding.pool.v_proj", width, width, (tokens + 1,))
        trace.attention("add_embedding.pool", heads, 1, tokens + 1, width // heads)
        trace.extra(
            Leaf(
                "add_embedding.pool", "AttentionPooling", "embedding", (1, width), (), False, width,
                (trace.batch, width), 0, trace.batch * width,
            )
        )  # fmt: skip
        trace.linear("add_embedding.proj", width, time)
        trace.norm("add_embedding.norm2", "LayerNorm", time, (time,))

    def _encoder_projection(self) -> None:
        config = self.config
        kind = config.get("encoder_hid_dim_type")
        self.text_channels = self.context[0]
        if kind is None and config.get("encoder_hid_dim") is not None:
            kind = "text_proj"
        if kind is None:
            return
        inputs, outputs = number(config, "encoder_hid_dim"), self.context[0]
        self.block(
            "encoder_hid_proj",
            "time",
            str(kind),
            0,
            Extent(inputs, 1, 1),
            outputs,
            lambda: self._encoder_layers(kind, inputs, outputs),
        )
        if kind in ("text_proj", "text_image_proj"):
            self.text_channels = inputs
        if kind == "text_image_proj":
            self.tokens += 10
        if kind == "image_proj":
            self.tokens = 32

    def _encoder_layers(self, kind: str, inputs: int, outputs: int) -> None:
        trace, tokens = self.trace, self.tokens
        if kind == "text_proj":
            trace.linear("encoder_hid_proj", inputs, outputs, (tokens,))
        elif kind == "text_image_proj":  # ten image tokens before the text
            trace.linear("encoder_hid_proj.image_embeds", outputs, 10 * outputs)
            trace.linear("encoder_hid_proj.text_proj", inputs, outputs, (tokens,))
        elif kind == "image_proj":
            trace.linear("encoder_hid_proj.image_embeds", inputs, 32 * outputs)
            trace.norm("encoder_hid_proj.norm", "LayerNorm", outputs, (32, outputs))
        else:
            raise _unsupported("encoder_hid_dim_type", kind)

    # down, middle, up

    def _down(self, level: int, kind: str, at: Extent) -> Extent:
        prefix, width = f"down_blocks.{level}", self.widths[level]
        for layer in range(self.layers[level]):
            name = f"{prefix}.resnets.{layer}"
            at = self._resnet(name, at, width)
            if "Attn" in kind:
                name = f"{prefix}.attentions.{layer}"
                depth = _of_layer(self.depths[level], layer, self.layers[level], prefix)
                at = self._attention(kind, name, at, level, depth, self.only_cross[level], self.heads[level])
            self.push(name, at)
        if level < self.levels - 1:
            name = f"{prefix}.downsamplers.0"
            if kind in RESAMPLED_BY_RESNET:
                at = self._resnet(name, at, width, "down")
            else:
                at = downsample(self.trace, name, at, width, _padding(self.config))
            if not at.pixels:
                raise Usage(f"too small: nothing is left of the image at {prefix}", hint=AT_A_USUAL_SIZE)
            self.push(name, at)
        return at

    def _mid(self, at: Extent) -> Extent:
        trace, kind, last = self.trace, str(self.mid_type), self.levels - 1
        at = self._resnet("mid_block.resnets.0", at, at.channels)
        if "Attn" not in kind:
            return at
        one = at.elements(trace.batch)
        only = self.mid_only_cross and "Simple" in kind
        depth = _of_layer(self.depths[last], 0, 1, "mid_block")
        at = self._attention(kind, "mid_block.attentions.0", at, last, depth, only, self.heads[last])
        at = self._resnet("mid_block.resnets.1", at, at.channels)
        trace.drop(one)  # what the attention returned
        return at

    def _up(self, index: int, kind: str, at: Extent, held: int) -> tuple[Extent, int]:
        """`held`: elements of the skips that the block before still references."""
        trace, level = self.trace, self.levels - 1 - index
        prefix, width, layers = f"up_blocks.{index}", self.widths[level], self.layers[level] + 1
        trace.drop(held)
        if len(self.waiting) < layers:
            raise BadFile(f"config: {prefix} wants {layers} skip connections, {len(self.waiting)} are left")
        entered = at.elements(trace.batch)  # the caller references the block's input until the block has returned
        if self.mid_type is None and index == 0:
            entered = 0  # it is itself the last skip
        held, inside = 0, 0
        for layer in range(layers):
            source, skip = self.waiting.pop()
            held += skip.elements(trace.batch)
            target = f"{prefix}.resnets.{layer}"
            at = self._joined(source, target, at, skip, width)
            trace.drop(inside)
            joined = at.elements(trace.batch)
            at = self._resnet(target, at, width)
            trace.drop(joined)
            if "Attn" in kind:
                # AttnUp and SimpleCrossAttnUp take their head width from the list as it is, not reversed
                heads = self.heads[level] if kind == "CrossAttnUpBlock2D" else self.heads[index]
                depth = _of_layer(self.up_depths[index], layer, layers, prefix)
                before = at.elements(trace.batch)
                name = f"{prefix}.attentions.{layer}"
                at = self._attention(kind, name, at, level, depth, self.only_cross[level], heads, drop=False)
                trace.drop(before)
            inside = at.elements(trace.batch)
        if index < self.levels - 1:
            at = self._upsampled(f"{prefix}.upsamplers.0", kind, at)
            trace.drop(inside)
        trace.drop(entered)
        return at, held

    def _joined(self, source: str, target: str, at: Extent, skip: Extent, width: int) -> Extent:
        if (at.height, at.width) != (skip.height, skip.width):
            raise Usage(
                f"this UNet cannot run at that size: {target} gets {at.width}×{at.height}, its skip connection is "
                f"{skip.width}×{skip.height}",
                hint=AT_A_USUAL_SIZE,
            )
        joined = at.with_channels(at.channels + skip.channels)
        self.skips.append(
            Skip(
                source=source,
                target=target,
                channels=skip.channels,
                resolution=(skip.height, skip.width),
                concatenated_channels=joined.channels,
            )
        )
        self.trace.hold(joined.elements(self.trace.batch))
        return joined

    def _upsampled(self, name: str, kind: str, at: Extent) -> Extent:
        if kind in RESAMPLED_BY_RESNET:
            return self._resnet(name, at, at.channels, "up")
        size = None
        step = 2 ** (self.levels - 1)
        odd = self.latent.height % step or self.latent.width % step
        if odd and kind != "AttnUpBlock2D":
            _, skip = self.waiting[-1]
            size = (skip.height, skip.width)
        return upsample(self.trace, name, at, size)

    # layers

    def _resnet(self, name: str, at: Extent, width: int, resample: str = "") -> Extent:
        self.time_enters += 1
        return resnet(self.trace, name, at, width, time=self.time, scale_shift=self.scale_shift, resample=resample)

    def _attention(
        self, kind: str, name: str, at: Extent, level: int, depth: int, only: bool, heads: int, drop: bool = True
    ) -> Extent:
        """The attention of this block type over `at`, whose own elements are dropped afterwards if `drop`."""
        if "SimpleCrossAttn" in kind:
            self._added_attention(name, at, self.context[level], at.channels // heads, heads, only)
        elif kind in ("AttnDownBlock2D", "AttnUpBlock2D"):
            pixel_attention(self.trace, name, at, at.channels // heads, heads)
        else:
            self._transformer(name, at, self.context[level], heads, depth, only)
        if drop:
            self.trace.drop(at.elements(self.trace.batch))
        return at

    def _added_attention(self, name: str, at: Extent, context: int, heads: int, head_width: int, only: bool) -> None:
        """Pixels and text as keys of one attention (DeepFloyd, Kandinsky)."""
        trace, pixels, channels, tokens = self.trace, at.pixels, at.channels, self.tokens
        if not heads:
            raise BadFile(f"config: {name} has {channels} channels, fewer than one head of {head_width}")
        inner = heads * head_width
        self._cross_norm(name, context, channels, tokens)
        trace.norm(f"{name}.group_norm", "GroupNorm", channels, (channels, pixels))
        trace.linear(f"{name}.to_q", channels, inner, (pixels,))
        trace.linear(f"{name}.add_k_proj", context, inner, (tokens,))
        trace.linear(f"{name}.add_v_proj", context, inner, (tokens,))
        if not only:
            trace.linear(f"{name}.to_k", channels, inner, (pixels,))
            trace.linear(f"{name}.to_v", channels, inner, (pixels,))
        keys = tokens if only else tokens + pixels
        trace.attention(name, heads, pixels, keys, head_width)
        trace.linear(f"{name}.to_out.0", inner, channels, (pixels,))
        one = at.elements(trace.batch)
        text, wide = trace.batch * tokens * inner, trace.batch * pixels * inner
        joined = 2 * trace.batch * keys * inner if not only else 0
        self.text_enters += 1
        # normed input, query, the text's two, the pixels' two, the joined two
        trace.touch(one + wide + 2 * text + joined + (0 if only else 2 * wide))
        trace.touch(2 * wide + 2 * text + joined + 2 * one)
        trace.hold(one)

    def _cross_norm(self, name: str, context: int, channels: int, tokens: int) -> None:
        if self.cross_norm == "layer_norm":
            self.trace.norm(f"{name}.norm_cross", "LayerNorm", channels, (tokens, context))
        elif self.cross_norm == "group_norm":
            self.trace.norm(f"{name}.norm_cross", "GroupNorm", context, (context, tokens))

    def _transformer(self, name: str, at: Extent, context: int, heads: int, depth: int, only: bool) -> None:
        trace, channels, pixels = self.trace, at.channels, at.pixels
        head_width = channels // heads
        if not head_width:
            raise BadFile(f"config: {name} has {channels} channels for {heads} heads")
        inner = heads * head_width
        one, wide = at.elements(trace.batch), trace.batch * pixels * inner
        trace.norm(f"{name}.norm", "GroupNorm", channels, (channels, at.height, at.width))
        if self.linear:
            trace.linear(f"{name}.proj_in", channels, inner, (pixels,))
        else:
            trace.conv(f"{name}.proj_in", channels, inner, 1, at.height, at.width)
        trace.touch(one + max(one, wide))
        trace.hold(wide)  # the rows of tokens, referenced outside the blocks until each has returned
        for index in range(depth):
            self._transformer_block(f"{name}.transformer_blocks.{index}", pixels, inner, heads, context, only)
        if self.linear:
            trace.linear(f"{name}.proj_out", inner, channels, (pixels,))
        else:
            trace.conv(f"{name}.proj_out", inner, channels, 1, at.height, at.width)
        trace.touch(max(wide + one, 2 * one))  # beside the rows: their copy, the projection, the sum with the input
        trace.drop(wide)
        trace.hold(one)

    def _transformer_block(self, name: str, pixels: int, inner: int, heads: int, context: int, only: bool) -> None:
        """norm, attention between pixels, norm, attention to the text, norm, feed-forward gated by GELU."""
        trace, tokens = self.trace, self.tokens
        wide, text = trace.batch * pixels * inner, trace.batch * tokens * inner
        rows = (pixels,)
        trace.norm(f"{name}.norm1", "LayerNorm", inner, (pixels, inner))
        self._attend(f"{name}.attn1", pixels, inner, heads, context if only else 0)
        trace.norm(f"{name}.norm2", "LayerNorm", inner, (pixels, inner))
        self._attend(f"{name}.attn2", pixels, inner, heads, context)
        trace.norm(f"{name}.norm3", "LayerNorm", inner, (pixels, inner))
        trace.linear(f"{name}.ff.net.0.proj", inner, 8 * inner, rows)
        trace.linear(f"{name}.ff.net.2", 4 * inner, inner, rows)
        keys = text if only else wide
        # normed, query, keys, values, the product, its projection
        trace.touch(4 * wide + 2 * keys)
        # normed, attn1's output, the sum; then as above with the text's keys and values
        trace.touch(6 * wide + 2 * text)
        # normed, attn2's output, the sum; 8 from the projection, 4 of the gate, 4 of the product
        trace.touch(3 * wide + 16 * wide)

    def _attend(self, name: str, pixels: int, inner: int, heads: int, context: int) -> None:
        """context 0: between pixels; else the width of the text attended to."""
        trace, tokens = self.trace, self.tokens
        keys = tokens if context else pixels
        inputs = context or inner
        self.text_enters += 1 if context else 0
        trace.linear(f"{name}.to_q", inner, inner, (pixels,), bias=False)
        trace.linear(f"{name}.to_k", inputs, inner, (keys,), bias=False)
        trace.linear(f"{name}.to_v", inputs, inner, (keys,), bias=False)
        trace.attention(name, heads, pixels, keys, inner // heads)
        trace.linear(f"{name}.to_out.0", inner, inner, (pixels,))


def _types(config: Mapping[str, Any], key: str, legal: tuple[str, ...], attending: str, plain: str) -> tuple[str, ...]:
    usual = (attending, attending, attending, plain) if key.startswith("down") else (plain, *[attending] * 3)
    types = []
    for kind in names(config, key, usual):
        kind = kind.removeprefix("UNetRes")
        if kind not in legal:
            raise _unsupported(key, kind)
        types.append(kind)
    return tuple(types)


def _unsupported(key: str, value: object) -> BadFile:
    return BadFile(f"config: {key} {show(value, 60)} is not supported", hint="sdcli inspect-unet sd15")


def _depth(value: object) -> Any:
    if isinstance(value, (list, tuple)):
        return [number({"transformer_layers_per_block": item}, "transformer_layers_per_block") for item in value]
    return number({"transformer_layers_per_block": value}, "transformer_layers_per_block")


def _of_layer(depth: Any, layer: int, layers: int, where: str) -> int:
    if isinstance(depth, list):
        if len(depth) < layers:
            raise BadFile(f"config: transformer_layers_per_block gives {len(depth)} depths to the {layers} of {where}")
        return int(depth[layer])
    return int(depth)


def _padding(config: Mapping[str, Any]) -> int:
    value = config.get("downsample_padding", 1)
    if value not in (0, 1, 2) or isinstance(value, bool):
        raise _unsupported("downsample_padding", value)
    return int(value)


def _convolved(at: Extent, channels: int, kernel: int) -> Extent:
    grown = 2 * ((kernel - 1) // 2) - kernel + 1
    if at.height + grown < 1 or at.width + grown < 1:
        raise Usage(f"too small for a convolution of {kernel}×{kernel}", hint=AT_A_USUAL_SIZE)
    return Extent(channels, at.height + grown, at.width + grown)
