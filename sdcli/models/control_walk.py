"""The analytic ControlNet: the down half of a UNet, what embeds its image, and a convolution for every result. A
T2I-Adapter is only something that embeds an image.

`analyse` is to a ControlNet what that of unet.py is to a UNet, and walks the same blocks.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.errors import BadFile
from sdcli.models import t2i_walk
from sdcli.models.blocks import Extent
from sdcli.models.trace import Leaf, Trace, check_size, key_of, number, numbers
from sdcli.models.unet import UNetWalk
from sdcli.models.walk import Unet

CLASS, UNION = "ControlNetModel", "ControlNetUnionModel"
EDGE = 8  # pixels of a control image along the edge of a latent
EMBEDDING = (16, 32, 96, 256)  # the usual widths of what embeds the image
_UNION_EMBEDDING = (48, 96, 192, 384)  # a Union's, where its config says nothing
KINDS, HEADS, CHANNELS = 6, 8, 320  # the same: of images, of its attention, and through that
_UP = {"DownBlock2D": "UpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}
# Of a UNet's config, what its ControlNets share with it.
_SHARED = (
    "in_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "mid_block_type", "only_cross_attention",
    "block_out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn",
    "norm_num_groups", "norm_eps", "cross_attention_dim", "transformer_layers_per_block", "encoder_hid_dim",
    "encoder_hid_dim_type", "attention_head_dim", "use_linear_projection", "class_embed_type", "num_class_embeds",
    "upcast_attention", "resnet_time_scale_shift", "projection_class_embeddings_input_dim", "addition_embed_type",
    "addition_time_embed_dim",
)  # fmt: skip


def config_of(unet: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The config of a ControlNet made from a UNet, as diffusers makes it. It never sees a mask."""
    shared = {name: unet[name] for name in _SHARED if name in unet}
    usual = {
        "_class_name": CLASS, "conditioning_channels": 3, "conditioning_embedding_out_channels": list(EMBEDDING),
        "controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": False,
    }  # fmt: skip
    return {**shared, "in_channels": 4, **usual, **changes}


def union_config_of(unet: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The same of a ControlNet Union, whose middle always attends."""
    usual = config_of(unet, _class_name=UNION)
    usual.pop("mid_block_type", None)
    first = usual.get("block_out_channels", [CHANNELS])[0]
    own = {"num_trans_channel": first, "num_trans_head": HEADS, "num_trans_layer": 1, "num_proj_channel": first}
    return {**usual, "num_control_type": KINDS, **own, **changes}


@dataclass(frozen=True, kw_only=True)
class Hint:
    """What embeds the image, once for all steps."""

    parameters: int
    macs: int
    peak_elements: int  # live at once while it is made, without weights and the image
    elements: int  # of the result, which stays


@dataclass(frozen=True, kw_only=True)
class ControlWork:
    """What a ControlNet does for `batch` rows; or a T2I-Adapter for one image, which is all in its hint."""

    call: Unet | None  # one call, the image embedded before
    hint: Hint
    residual_elements: int  # of what it gives the UNet, there until the UNet's call is over

    @property
    def parameters(self) -> int:
        return (self.call.parameters if self.call else 0) + self.hint.parameters

    @property
    def macs(self) -> int:
        """Of one call."""
        return self.call.macs if self.call else 0

    @property
    def layers(self) -> int:
        """That are launched in one call."""
        return sum(1 for leaf in self.call.leaves if leaf.parameters and leaf.kind != "norm") if self.call else 0


def analyse(config: Mapping[str, Any], *, height: int, width: int, batch: int = 1, tokens: int = 77) -> ControlWork:
    """For latents of height × width and a control image EDGE times as large."""
    for name, value in (("height", height), ("width", width), ("batch", batch), ("tokens", tokens)):
        check_size(name, value)
    return _analyse(key_of(config, "ControlNet"), height, width, batch, tokens)


@functools.lru_cache(maxsize=64)
def _analyse(key: str, height: int, width: int, batch: int, tokens: int) -> ControlWork:
    config: dict[str, Any] = json.loads(key)
    if config.get("_class_name") == t2i_walk.CLASS:
        return _once(t2i_walk.analyse(config, height=height, width=width))
    kind = _UnionWalk if config.get("_class_name") == UNION else _ControlWalk
    walk = kind(config, height, width, batch, tokens)
    call = walk.run()
    return ControlWork(call=call, hint=_hint(config, height, width, batch), residual_elements=walk.residuals)


def _once(adapter: t2i_walk.Adapter) -> ControlWork:
    hint = Hint(
        parameters=adapter.parameters, macs=adapter.macs, peak_elements=adapter.peak_elements,
        elements=adapter.elements,
    )  # fmt: skip
    return ControlWork(call=None, hint=hint, residual_elements=0)


class _ControlWalk(UNetWalk):
    """The forward pass of diffusers' ControlNetModel. `residuals` counts the elements of its results."""

    residuals = 0

    def __init__(self, config: Mapping[str, Any], height: int, width: int, batch: int, tokens: int) -> None:
        down = config.get("down_block_types") or ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
        unsupported = [kind for kind in down if kind not in _UP] if isinstance(down, (list, tuple)) else [down]
        if unsupported:
            raise BadFile(f"config: down_block_types {unsupported[0]!r:.60} is not supported")
        up = [_UP[kind] for kind in down[::-1]]
        super().__init__({**config, "up_block_types": up}, height, width, batch, tokens)
        self.config = config

    def _depths(self) -> list[Any]:
        """Some of SDXL's have attentions with no layer in them."""
        key = "transformer_layers_per_block"
        value = self.config.get(key, 1)
        if not isinstance(value, (list, tuple)) or len(value) != self.levels:
            return super()._depths()
        return [0 if one == 0 else number({key: one}, key) for one in value]

    def _up_depths(self) -> list[Any]:
        return self.depths[::-1]

    def run(self) -> Unet:
        trace = self.trace
        self.time = self._time()
        at = self.block("conv_in", "in", "Conv2d", 0, self.latent, self.widths[0], self._conv_in)
        self._shown(at)
        for level, kind in enumerate(self.down_types):
            walk = functools.partial(self._down, level, kind, at)
            at = self.block(f"down_blocks.{level}", "down", kind, level, at, self.widths[level], walk)
        last = self.levels - 1
        if self.mid_type is not None:
            walk = functools.partial(self._mid, at)
            at = self.block("mid_block", "mid", self.mid_type, last, at, at.channels, walk)
        self.block("controlnet_blocks", "out", "Conv2d", last, at, at.channels, lambda: self._results(at))
        trace.drop(trace.live)
        return self.finish(
            self.latent, self.tokens, time_channels=self.time,
            text_channels=self.context[0] if self.text_enters else 0,
            time_enters=self.time_enters, text_enters=self.text_enters,
        )  # fmt: skip

    def _shown(self, at: Extent) -> None:
        """The embedded image is added."""
        self.trace.touch(at.elements(self.trace.batch))

    def _results(self, at: Extent) -> None:
        """A convolution of each, then, beside those, each times the weight."""
        trace, last = self.trace, self.layers[-1]
        for index, (_, extent) in enumerate(self.waiting):
            self._result(f"controlnet_down_blocks.{index}", extent)
        self._result("controlnet_mid_block", at)
        # what was convolved is gone by then, but for what the last block gave, which is still referenced
        trace.drop(sum(extent.elements(trace.batch) for _, extent in self.waiting[:-last]))
        trace.touch(self.residuals)

    def _result(self, name: str, at: Extent) -> None:
        self.trace.conv(name, at.channels, at.channels, 1, at.height, at.width)
        self.trace.hold(at.elements(self.trace.batch))
        self.residuals += at.elements(self.trace.batch)


class _UnionWalk(_ControlWalk):
    """That of diffusers' ControlNetUnionModel with one image: what it shows is told with the time, and a transformer
    compares the means of images and latents."""

    def _addition(self, time: int) -> None:
        super()._addition(time)
        inputs = number(self.config, "addition_time_embed_dim") * number(self.config, "num_control_type", KINDS)
        self._two_linears("control_add_embedding", inputs, time)

    def _shown(self, at: Extent) -> None:
        """The latents before and the sum of what is added to them are referenced as long as the call lasts."""
        self.block("transformer_layes", "in", "ResidualAttentionBlock", 0, at, at.channels, self._compared)
        one = at.elements(self.trace.batch)
        self.trace.hold(2 * one)
        self.trace.touch(one)

    def _compared(self) -> None:
        trace, kinds = self.trace, number(self.config, "num_control_type", KINDS)
        width, rows = number(self.config, "num_trans_channel", CHANNELS), (2,)  # the image's and the latents'
        shape = (trace.batch, width)
        trace.extra(
            Leaf("task_embedding", "Parameter", "embedding", (kinds, width), (), False, kinds * width, shape, 0, 0)
        )
        for layer in range(number(self.config, "num_trans_layer", 1)):
            name = f"transformer_layes.{layer}"
            trace.norm(f"{name}.ln_1", "LayerNorm", width, (*rows, width))
            trace.linear(f"{name}.attn.inward", width, 3 * width, rows)
            trace.linear(f"{name}.attn.outward", width, width, rows)
            trace.norm(f"{name}.ln_2", "LayerNorm", width, (*rows, width))
            trace.linear(f"{name}.mlp.c_fc", width, 4 * width, rows)
            trace.linear(f"{name}.mlp.c_proj", 4 * width, width, rows)
        trace.linear("spatial_ch_projs", width, number(self.config, "num_proj_channel", CHANNELS))


def _hint(config: Mapping[str, Any], height: int, width: int, batch: int) -> Hint:
    trace, widths = Trace(batch), _embedding_widths(config)
    at = Extent(number(config, "conditioning_channels", 3), height * EDGE, width * EDGE)
    for name, channels, stride in _layers(widths, numbers(config, "block_out_channels", len(_levels(config)))[0]):
        before, at = at, Extent(channels, -(-at.height // stride), -(-at.width // stride))
        trace.conv(f"controlnet_cond_embedding.{name}", before.channels, channels, 3, at.height, at.width)
        entering = before.elements(batch) if name != "conv_in" else 0  # the image itself stays
        trace.touch(at.elements(batch) + max(entering, at.elements(batch)))  # a convolution, then its activation
    return Hint(
        parameters=sum(leaf.parameters for leaf in trace.leaves), macs=sum(leaf.macs for leaf in trace.leaves),
        peak_elements=trace.peak, elements=at.elements(batch),
    )  # fmt: skip


def _layers(widths: list[int], result: int) -> list[tuple[str, int, int]]:
    """Name, output channels and stride of each convolution."""
    pairs = itertools.pairwise(widths)
    between = [layer for narrow, wide in pairs for layer in ((narrow, 1), (wide, 2))]
    named = [(f"blocks.{index}", channels, stride) for index, (channels, stride) in enumerate(between)]
    return [("conv_in", widths[0], 1), *named, ("conv_out", result, 1)]


def _levels(config: Mapping[str, Any]) -> list[Any]:
    return list(config.get("down_block_types") or [None] * 4)


def _embedding_widths(config: Mapping[str, Any]) -> list[int]:
    usual = _UNION_EMBEDDING if config.get("_class_name") == UNION else EMBEDDING
    return numbers(config, "conditioning_embedding_out_channels", len(EMBEDDING), list(usual))
