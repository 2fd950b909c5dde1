"""Three kinds of attention: torch's fused kernel, blocks of queries that stay in the cache, and diffusers' slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdcli.machine.hardware import QueryBlock
from sdcli.plan.techniques.attention import Blocks, blocks

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # query, key and value as [batch, heads, tokens, width]


def set_attention(module: Any, choice: str, attend: Attend, *, named: bool = False) -> None:
    """`fused`, `blocked` or `sliced`, for a UNet or a VAE as diffusers makes them. `attend` does the first two.

    `named`: each layer knows its name, by which it finds what it sees of reference images."""
    if choice == "sliced" and hasattr(module, "set_attention_slice"):
        module.set_attention_slice("auto")
    elif named:
        names = [path.removesuffix(".processor") for path in module.attn_processors]
        module.set_attn_processor({f"{name}.processor": Attention(attend, name) for name in names})
    else:
        module.set_attn_processor(Attention(attend))


def attend(choice: str, threads: int, measured: Sequence[QueryBlock] = ()) -> Attend:
    """How attention is computed, fused or `blocked`."""

    def in_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        block = blocks(query.shape[0] * query.shape[1], key.shape[2], threads, measured)
        if block is None:
            return functional.scaled_dot_product_attention(query, key, value)
        return blocked(query, key, value, block)

    return in_blocks if choice == "blocked" else functional.scaled_dot_product_attention


def blocked(query: Tensor, key: Tensor, value: Tensor, block: Blocks) -> Tensor:
    """Attention over [batch, heads, tokens, width] as two matrix products around a softmax, block by block.

    Faster than torch's fused bf16 kernel on some CPUs; the whole matrix at once would leave the cache.
    """
    batch, heads, tokens, width = query.shape
    rows = batch * heads
    queries = (query * width**-0.5).reshape(rows, tokens, width)
    keys = key.reshape(rows, -1, width).transpose(1, 2)
    values = value.reshape(rows, -1, value.shape[-1])
    out = torch.empty((rows, tokens, values.shape[-1]), dtype=query.dtype, device=query.device)
    for row in range(0, rows, block.rows):
        side = slice(row, row + block.rows)
        for first in range(0, tokens, block.queries):
            part = slice(first, first + block.queries)
            scores = torch.bmm(queries[side, part], keys[side]).softmax(-1)
            out[side, part] = torch.bmm(scores, values[side])
    return out.view(batch, heads, tokens, -1)


Referred = Mapping[str, Mapping[str, Any]]  # as reference.py makes it


def with_references(mixed: Tensor, query: Tensor, attend: Attend, layer: str, references: Referred) -> Tensor:
    """With what the same queries find in reference images, those that this layer sees, each by its weight."""
    batch, heads, tokens, width = query.shape
    for seen in references.values():
        if layer in seen["keys"]:
            key, value = (
                seen[part][layer].view(batch, -1, heads, width).transpose(1, 2) for part in ("keys", "values")
            )
            found = attend(query, key, value)
            if "masks" in seen:
                found = found * seen["masks"][str(tokens)]
            mixed = mixed + seen["weight"] * found
    return mixed


class Attention:
    """diffusers' attention layer with `attend` in the middle, and without its division of every result by 1."""

    def __init__(self, attend: Attend, layer: str = "") -> None:
        self.attend, self.layer = attend, layer

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, references: Referred | None = None,
        **ignored: Any,
    ) -> Tensor:  # fmt: skip
        residual, shape = hidden_states, hidden_states.shape
        if len(shape) == 4:  # the VAE passes images, not tokens
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        batch, tokens, _ = query.shape
        query, key, value = (
            part.view(batch, -1, attn.heads, part.shape[-1] // attn.heads).transpose(1, 2)
            for part in (query, key, value)
        )
        if attention_mask is None:
            mixed: Tensor = self.attend(query, key, value)
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        if references is not None:
            mixed = with_references(mixed, query, self.attend, self.layer, references)
        mixed = attn.to_out[0](mixed.transpose(1, 2).reshape(batch, tokens, -1))
        if len(shape) == 4:
            mixed = mixed.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            mixed = mixed + residual
        return mixed / attn.rescale_output_factor if attn.rescale_output_factor != 1.0 else mixed
