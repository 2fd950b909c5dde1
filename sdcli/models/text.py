"""The analytic CLIP text encoder (CLIPTextModel, CLIPTextModelWithProjection): parameters, work, memory peak.

`analyse(config, tokens=77, batch=1)` gives a `TextEncoder`. It has a projection if the config's `architectures`
say so. Peaks are live elements without weights and inputs, the hidden states that a pipeline asks for included.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.errors import BadFile, Usage
from sdcli.models.trace import AT_A_USUAL_SIZE, Trace, Traced, check_size, key_of, number
from sdcli.terminal import show


@dataclass(frozen=True, kw_only=True)
class TextEncoder(Traced):
    """One call over `batch` rows of tokens."""

    hidden: int  # channels of its output
    projection: int  # channels of the pooled output, 0 without a projection


def analyse(config: Mapping[str, Any], *, tokens: int = 77, batch: int = 1) -> TextEncoder:
    """What one call of this text encoder costs, all hidden states kept (as diffusers' pipelines ask)."""
    check_size("tokens", tokens)
    check_size("batch", batch)
    return _analyse(key_of(config, "text encoder"), tokens, batch)


def parameters(config: Mapping[str, Any]) -> int:
    """123,060,480 for CLIP ViT-L; 694,659,840 for OpenCLIP bigG with its projection."""
    return analyse(config).parameters


@functools.lru_cache(maxsize=32)
def _analyse(key: str, tokens: int, batch: int) -> TextEncoder:
    config: dict[str, Any] = json.loads(key)
    projected = _projected(config)
    trace = Trace(batch)
    hidden = number(config, "hidden_size", 512)
    inner = number(config, "intermediate_size", 4 * hidden)
    layers = number(config, "num_hidden_layers", 12)
    heads = number(config, "num_attention_heads", 8)
    if hidden % heads:
        raise BadFile(f"config: hidden_size {hidden} does not divide into {heads} heads")
    start = "text_model." if projected else ""
    one = batch * tokens * hidden
    _embeddings(trace, config, start, tokens, hidden)
    trace.hold(one)
    for layer in range(layers):
        _layer(trace, f"{start}encoder.layers.{layer}", tokens, hidden, inner, heads)
        trace.hold(one)  # every layer's output is kept: prompts skip layers, SDXL takes the last but one
    trace.norm(f"{start}final_layer_norm", "LayerNorm", hidden, (tokens, hidden))
    trace.hold(one)
    width = 0
    if projected:
        width = number(config, "projection_dim", 512)
        trace.linear("text_projection", hidden, width, bias=False)
    return TextEncoder(
        parameters=sum([leaf.parameters for leaf in trace.leaves]),
        macs=sum([leaf.macs for leaf in trace.leaves]),
        peak_elements=trace.peak,
        hidden=hidden,
        projection=width,
        leaves=tuple(trace.leaves),
        spans=trace.spans(),
    )


def _projected(config: Mapping[str, Any]) -> bool:
    kinds = config.get("architectures") or ["CLIPTextModel"]
    kind = kinds[0] if isinstance(kinds, list) and kinds else kinds
    if kind not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        raise BadFile(f"{show(kind, 60)} is not a text encoder that sdcli supports")
    return bool(kind == "CLIPTextModelWithProjection")


def _embeddings(trace: Trace, config: Mapping[str, Any], start: str, tokens: int, hidden: int) -> None:
    longest = number(config, "max_position_embeddings", 77)
    if tokens > longest:
        raise Usage(f"{tokens} tokens, but this text encoder reads at most {longest} at once", hint=AT_A_USUAL_SIZE)
    entries = number(config, "vocab_size", 49408)
    trace.embedding(f"{start}embeddings.token_embedding", entries, hidden, (tokens, hidden))
    trace.embedding(f"{start}embeddings.position_embedding", longest, hidden, (tokens, hidden))
    trace.touch(3 * trace.batch * tokens * hidden)


def _layer(trace: Trace, name: str, tokens: int, hidden: int, inner: int, heads: int) -> None:
    """norm, attention to the tokens before, norm, two Linears; live beside its input at most both and the residual."""
    rows = (tokens,)
    trace.norm(f"{name}.layer_norm1", "LayerNorm", hidden, (tokens, hidden))
    for part in ("q_proj", "k_proj", "v_proj"):
        trace.linear(f"{name}.self_attn.{part}", hidden, hidden, rows)
    trace.attention(f"{name}.self_attn", heads, tokens, tokens, hidden // heads)
    trace.linear(f"{name}.self_attn.out_proj", hidden, hidden, rows)
    trace.norm(f"{name}.layer_norm2", "LayerNorm", hidden, (tokens, hidden))
    trace.linear(f"{name}.mlp.fc1", hidden, inner, rows)
    trace.linear(f"{name}.mlp.fc2", inner, hidden, rows)
    one, wide = trace.batch * tokens * hidden, trace.batch * tokens * inner
    trace.touch(6 * one)
    trace.touch(2 * one + 3 * wide)  # quick GELU writes its sigmoid and the product beside its input
