"""The analytic CLIP image encoder (CLIPVisionModelWithProjection): parameters, work, memory peak of one image.

`analyse(config)` gives an `ImageEncoder`. With `states` the output of every layer is kept until the end. Peaks are live
elements without weights and the image.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.errors import BadFile
from sdcli.models.trace import Leaf, Trace, Traced, key_of, number

CLASS = "CLIPVisionModelWithProjection"
CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class ImageEncoder(Traced):
    positions: int  # rows of what it makes of an image: one for each patch, and one for all of it
    hidden: int  # numbers in each
    projection: int  # numbers in what it makes of all of it


def analyse(config: Mapping[str, Any], *, states: bool = False) -> ImageEncoder:
    return _analyse(key_of(config, "image encoder"), states)


def parameters(config: Mapping[str, Any]) -> int:
    """632,076,800 for OpenCLIP ViT-H/14, 1,844,907,264 for ViT-bigG/14."""
    return analyse(config).parameters


def side(config: Mapping[str, Any]) -> int:
    """Pixels along each edge of the image that it takes."""
    return number(config, "image_size", 224)


@functools.lru_cache(maxsize=16)
def _analyse(key: str, states: bool) -> ImageEncoder:
    config: dict[str, Any] = json.loads(key)
    hidden, inner = number(config, "hidden_size", 768), number(config, "intermediate_size", 3072)
    layers, heads = number(config, "num_hidden_layers", 12), number(config, "num_attention_heads", 12)
    patch, projection = number(config, "patch_size", 32), number(config, "projection_dim", 512)
    edge = side(config) // patch
    if hidden % heads or not edge:
        what = f"hidden_size {hidden} does not divide into {heads} heads" if edge else "patch_size is too large"
        raise BadFile(f"config: {what}")
    trace, positions = Trace(1), edge * edge + 1
    one = positions * hidden
    _embeddings(trace, hidden, patch, edge)
    trace.hold(one)
    trace.norm("vision_model.pre_layrnorm", "LayerNorm", hidden, (positions, hidden))
    trace.touch(one)
    trace.hold(0 if states else one)  # what goes into the first layer is referenced until the last is done
    sigmoids = 3 if config.get("hidden_act", "quick_gelu") == "quick_gelu" else 2
    for layer in range(layers):
        _layer(trace, f"vision_model.encoder.layers.{layer}", positions, hidden, inner, heads, sigmoids)
        trace.hold(one if states else 0)
    trace.norm("vision_model.post_layernorm", "LayerNorm", hidden, (hidden,))
    trace.linear("visual_projection", hidden, projection, bias=False)
    return ImageEncoder(
        parameters=sum(leaf.parameters for leaf in trace.leaves), macs=sum(leaf.macs for leaf in trace.leaves),
        peak_elements=trace.peak, positions=positions, hidden=hidden, projection=projection,
        leaves=tuple(trace.leaves), spans=trace.spans(),
    )  # fmt: skip


def _embeddings(trace: Trace, hidden: int, patch: int, edge: int) -> None:
    """A convolution over patches, without a bias; a row of its own before them; where each is."""
    start, patches = "vision_model.embeddings.", edge * edge
    weights, shape = CHANNELS * hidden * patch * patch, (hidden, CHANNELS, patch, patch)
    trace.extra(
        Leaf(
            f"{start}patch_embedding", "Conv2d", "convolution", shape, (patch, patch), False, weights,
            (1, hidden, edge, edge), patches * weights, patches * hidden,
        )
    )  # fmt: skip
    trace.extra(
        Leaf(
            f"{start}class_embedding", "Parameter", "embedding", (hidden,), (), False, hidden, (1, 1, hidden), 0, hidden
        )
    )
    trace.embedding(f"{start}position_embedding", patches + 1, hidden, (patches + 1, hidden))
    trace.touch((4 * patches + 3) * hidden)  # the patches, all rows, where they are, and the sum


def _layer(trace: Trace, name: str, rows: int, hidden: int, inner: int, heads: int, gelu: int) -> None:
    """norm, attention, norm, two Linears; live beside its input at most both and the residual."""
    trace.norm(f"{name}.layer_norm1", "LayerNorm", hidden, (rows, hidden))
    for part in ("q_proj", "k_proj", "v_proj"):
        trace.linear(f"{name}.self_attn.{part}", hidden, hidden, (rows,))
    trace.attention(f"{name}.self_attn", heads, rows, rows, hidden // heads)
    trace.linear(f"{name}.self_attn.out_proj", hidden, hidden, (rows,))
    trace.touch(6 * rows * hidden)
    trace.norm(f"{name}.layer_norm2", "LayerNorm", hidden, (rows, hidden))
    # the activation in the middle, when no layer computes; quick GELU writes its sigmoid too
    trace.touch(2 * rows * hidden + gelu * rows * inner)
    trace.linear(f"{name}.mlp.fc1", hidden, inner, (rows,))
    trace.linear(f"{name}.mlp.fc2", inner, hidden, (rows,))
    trace.touch(3 * rows * hidden + rows * inner)
