"""Three kinds of attention: torch's fused kernel, blocks of queries that stay in the cache, and diffusers' slices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdcli.plan.techniques.attention import FEWEST_KEYS, blocks


def set_attention(module: Any, choice: str, threads: int) -> None:
    """`fused`, `blocked` or `sliced`, for a UNet or a VAE. `threads` decide how large a block is."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    if choice == "sliced" and hasattr(module, "set_attention_slice"):
        module.set_attention_slice("auto")
    elif choice == "blocked":
        module.set_attn_processor(Blocked(threads))
    elif any(type(processor) is not AttnProcessor2_0 for processor in module.attn_processors.values()):
        module.set_attn_processor(AttnProcessor2_0())


def blocked(query: Tensor, key: Tensor, value: Tensor, threads: int) -> Tensor:
    """Attention over [batch, heads, tokens, width] as two matrix products around a softmax, block by block.

    torch's fused bf16 kernel for CPUs takes twice as long; the whole matrix at once would leave the cache.
    """
    batch, heads, tokens, width = query.shape
    rows = batch * heads
    queries = (query * width**-0.5).reshape(rows, tokens, width)
    keys = key.reshape(rows, -1, width).transpose(1, 2)
    values = value.reshape(rows, -1, value.shape[-1])
    out = torch.empty((rows, tokens, values.shape[-1]), dtype=query.dtype, device=query.device)
    block = blocks(rows, keys.shape[-1], threads)
    for row in range(0, rows, block.rows):
        side = slice(row, row + block.rows)
        for first in range(0, tokens, block.queries):
            part = slice(first, first + block.queries)
            scores = torch.bmm(queries[side, part], keys[side]).softmax(-1)
            out[side, part] = torch.bmm(scores, values[side])
    return out.view(batch, heads, tokens, -1)


class Blocked:
    """diffusers' attention layer, with `blocked` in the middle where there are many keys."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, **ignored: Any,
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
        if attention_mask is None and key.shape[2] >= FEWEST_KEYS:
            mixed: Tensor = blocked(query, key, value, self.threads)
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        mixed = attn.to_out[0](mixed.transpose(1, 2).reshape(batch, tokens, -1))
        if len(shape) == 4:
            mixed = mixed.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            mixed = mixed + residual
        return mixed / attn.rescale_output_factor if attn.rescale_output_factor != 1.0 else mixed
