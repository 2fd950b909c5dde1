"""The analytic IP-Adapter: what turns an encoded image into tokens, and these into the keys and values of each layer.

Its config is sdcli's own, read from a file's tensors by reference.py: `kind` (plain, plus or full), `embedding` (the
numbers in each row that the image encoder gives), `positions` (its rows), `tokens` and their `width`, of a resampler
`hidden`, `heads` and `depth`, and the width of each of the UNet's `layers`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.errors import BadFile
from sdcli.models.trace import Leaf, Trace, Traced, key_of, number, numbers

PLAIN, PLUS, FULL = "plain", "plus", "full"
HEAD = 64  # numbers in a resampler's head, in all of them


@dataclass(frozen=True, kw_only=True)
class AdapterWork(Traced):
    """One call for some images, once with and once without each, if guided. The result is among what is live."""

    kept_elements: int  # keys and values


def analyse(config: Mapping[str, Any], *, images: int = 1, guided: bool = True) -> AdapterWork:
    return _analyse(key_of(config, "IP-Adapter"), images * (2 if guided else 1))


def parameters(config: Mapping[str, Any]) -> int:
    return analyse(config).parameters


@functools.lru_cache(maxsize=32)
def _analyse(key: str, rows: int) -> AdapterWork:
    config: dict[str, Any] = json.loads(key)
    trace, tokens, width = Trace(rows), number(config, "tokens"), number(config, "width")
    project = {PLAIN: _plain, PLUS: _resampled, FULL: _full}.get(str(config.get("kind")))
    if project is None:
        raise BadFile("config: an IP-Adapter of an unknown kind")
    project(trace, config, tokens, width)
    trace.hold(rows * tokens * width)
    before = trace.live
    for index, outward in enumerate(numbers(config, "layers", len(config["layers"]))):
        for part in ("to_k", "to_v"):
            trace.linear(f"{part}.{index}", width, outward, (tokens,), bias=False)
            trace.hold(rows * tokens * outward)
    return AdapterWork(
        parameters=sum(leaf.parameters for leaf in trace.leaves), macs=sum(leaf.macs for leaf in trace.leaves),
        peak_elements=trace.peak, kept_elements=trace.live - before, leaves=tuple(trace.leaves), spans=trace.spans(),
    )  # fmt: skip


def _plain(trace: Trace, config: Mapping[str, Any], tokens: int, width: int) -> None:
    trace.linear("image_proj.image_embeds", number(config, "embedding"), tokens * width)
    trace.norm("image_proj.norm", "LayerNorm", width, (tokens, width))
    trace.touch(2 * trace.batch * tokens * width)


def _full(trace: Trace, config: Mapping[str, Any], tokens: int, width: int) -> None:
    inward = number(config, "embedding")
    trace.linear("image_proj.ff.net.0.proj", inward, inward, (tokens,))
    trace.linear("image_proj.ff.net.2", inward, width, (tokens,))
    trace.norm("image_proj.norm", "LayerNorm", width, (tokens, width))
    one = trace.batch * tokens
    trace.touch(one * (2 * inward))
    trace.touch(one * (inward + 2 * width))


def _resampled(trace: Trace, config: Mapping[str, Any], tokens: int, width: int) -> None:
    """Learned queries that look at every row of the image, and at each other, again and again."""
    rows, hidden = number(config, "positions"), number(config, "hidden")
    inner = number(config, "heads") * HEAD
    start = "image_proj."
    trace.extra(Leaf(f"{start}latents", "Parameter", "embedding", (1, tokens, hidden), (), False, tokens * hidden,
                     (1, tokens, hidden), 0, tokens * hidden))  # fmt: skip
    trace.linear(f"{start}proj_in", number(config, "embedding"), hidden, (rows,))
    seen, own = trace.batch * rows * hidden, trace.batch * tokens * hidden
    trace.hold(seen + own)
    for index in range(number(config, "depth")):
        _resample(trace, f"{start}layers.{index}", rows, tokens, hidden, inner)
    trace.linear(f"{start}proj_out", hidden, width, (tokens,))
    trace.norm(f"{start}norm_out", "LayerNorm", width, (tokens, width))
    trace.touch(2 * trace.batch * tokens * width)
    trace.drop(seen + own)


def _resample(trace: Trace, name: str, rows: int, tokens: int, hidden: int, inner: int) -> None:
    batch, keys = trace.batch, rows + tokens
    trace.norm(f"{name}.ln0", "LayerNorm", hidden, (rows, hidden))
    trace.norm(f"{name}.ln1", "LayerNorm", hidden, (tokens, hidden))
    trace.linear(f"{name}.attn.to_q", hidden, inner, (tokens,), bias=False)
    trace.linear(f"{name}.attn.to_k", hidden, inner, (keys,), bias=False)
    trace.linear(f"{name}.attn.to_v", hidden, inner, (keys,), bias=False)
    trace.attention(f"{name}.attn", inner // HEAD, tokens, keys, HEAD)
    trace.linear(f"{name}.attn.to_out.0", inner, hidden, (tokens,), bias=False)
    # normed queries, all rows normed and joined, then keys, values, queries and the product
    trace.touch(batch * (tokens * hidden + (rows + keys) * hidden))
    trace.touch(batch * (tokens * hidden + keys * hidden + 2 * keys * inner + 2 * tokens * inner))
    trace.norm(f"{name}.ff.0", "LayerNorm", hidden, (tokens, hidden))
    trace.linear(f"{name}.ff.1.net.0.proj", hidden, 4 * hidden, (tokens,), bias=False)
    trace.linear(f"{name}.ff.1.net.2", 4 * hidden, hidden, (tokens,), bias=False)
    trace.touch(batch * tokens * 10 * hidden)
