"""Prompts into what the UNet reads: CLIP's hidden states, chunk by chunk, with weights; for SDXL pooled vectors too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdcli.draw.denoise import Conditioning
from sdcli.request.prompt import CHUNK, Chunk
from sdcli.request.tokenizer import Vocabulary


@dataclass(frozen=True)
class Encoder:
    """One CLIP text encoder. `pad` fills the chunks, the end mark if not given; SDXL's encoders are read one layer
    below the last."""

    module: Any
    device: torch.device  # where it computes, which need not be where its weights are now
    vocabulary: Vocabulary
    pad: int | None = None
    penultimate: bool = False
    vectors: Tensor | None = None  # of learned words: row n is token vocabulary.size + n


@dataclass(frozen=True)
class Text:
    """One prompt, encoded: embeds [1, 77 × chunks, width], pooled [1, width] where an encoder gives it."""

    embeds: Tensor
    pooled: Tensor | None
    tokens: int = 0

    @property
    def chunks(self) -> int:
        return int(self.embeds.shape[1]) // (CHUNK + 2)

    def zeros(self) -> Text:
        """SDXL's "nothing", when no negative prompt was given."""
        return Text(torch.zeros_like(self.embeds), None if self.pooled is None else torch.zeros_like(self.pooled))


@torch.no_grad()
def encode(encoder: Encoder, chunks: Sequence[Chunk], *, clip_skip: int, emphasis: str) -> Text:
    """Chunks go through one by one: the same chunk gives the same values in any prompt. Pooled is the first one's."""
    parts: list[Tensor] = []
    pooled: list[Tensor | None] = []
    for chunk in chunks:
        states, vector = _states(encoder, [token for token, _ in chunk], clip_skip)
        parts.append(_weighted(encoder, states, [weight for _, weight in chunk], clip_skip, emphasis))
        pooled.append(vector)
    return Text(torch.cat(parts, dim=1), pooled[0], tokens=sum(len(chunk) for chunk in chunks))


def joined(parts: Sequence[Text]) -> Text:
    """SDXL reads its encoders' widths side by side, and the last one's pooled vector."""
    if len(parts) == 1:
        return parts[0]
    return Text(torch.cat([part.embeds for part in parts], dim=-1), parts[-1].pooled, parts[0].tokens)


def padded(text: Text, empty: Text, chunks: int) -> Text:
    """`text` with empty chunks behind it: both sides of guidance, and all images of a batch, need the same length."""
    missing = chunks - text.chunks
    if missing <= 0:
        return text
    return Text(torch.cat([text.embeds, *[empty.embeds] * missing], dim=1), text.pooled, text.tokens)


def conditioning(
    prompts: Sequence[Text], negatives: Sequence[Text], *, guidance: float, guided: bool, size: tuple[int, int],
    unet: Mapping[str, Any], groups: tuple[Tensor, ...] = (),
) -> Conditioning:  # fmt: skip
    """One row per image, the negative prompts first; what else this UNet (its config) wants to be told."""
    texts = [*(negatives if guided else ()), *prompts]
    embeds = torch.cat([text.embeds for text in texts])
    rows, added = {"encoder_hidden_states": embeds}, {}
    if unet.get("addition_embed_type") == "text_time":
        added["text_embeds"] = torch.cat([text.pooled for text in texts if text.pooled is not None])
        added["time_ids"] = size_row(*size, embeds).repeat(len(texts), 1)
    if unet.get("time_cond_proj_dim"):
        rows["timestep_cond"] = guidance_row(guidance, unet["time_cond_proj_dim"], embeds).repeat(len(texts), 1)
    return Conditioning(guidance=guidance, guided=guided, rows=rows, added=added, groups=groups)


def guidance_row(guidance: float, width: int, like: Tensor) -> Tensor:
    """UNets distilled for few steps hold guidance inside and are told its strength, as waves of many lengths."""
    half = width // 2
    lengths = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = torch.tensor([guidance - 1]).float()[:, None] * 1000.0 * lengths[None, :]
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2)).to(like)


def size_row(width: int, height: int, like: Tensor) -> Tensor:
    """SDXL is told the size of the original, the corner it was cropped at, and the size wanted."""
    return torch.tensor([[height, width, 0, 0, height, width]]).to(like)


def _states(encoder: Encoder, tokens: Sequence[int], clip_skip: int) -> tuple[Tensor, Tensor | None]:
    """Hidden states [1, 77, width] of the layer asked for, and the pooled vector if this encoder projects one."""
    module, known = encoder.module, encoder.vocabulary
    pad = known.end if encoder.pad is None else encoder.pad
    filled = [known.start, *tokens, known.end] + [pad] * (CHUNK - len(tokens))
    # learned words go in as token 0 and are put in place after the look-up: a number above the end mark's would be
    # taken for the end of the prompt by encoders that look for the highest
    ids = torch.tensor([[token if token < known.size else 0 for token in filled]], device=encoder.device)
    with _learned(encoder, filled):
        if clip_skip <= 1 and not encoder.penultimate:
            return module(ids)[0], None
        output = module(ids, output_hidden_states=True)
    vector = output[0] if output[0].ndim == 2 else None
    # A1111's count: N is the Nth state from the end. SDXL was trained on the second, so 1 and 2 both mean that one.
    states = output.hidden_states[-max(clip_skip, 2)]
    return (states if encoder.penultimate else _final_norm(module, states)), vector


@contextmanager
def _learned(encoder: Encoder, tokens: Sequence[int]) -> Iterator[None]:
    """The vectors of learned words among what the encoder looks up for `tokens`."""
    size = encoder.vocabulary.size
    places = [(place, token - size) for place, token in enumerate(tokens) if token >= size]
    if not places or encoder.vectors is None:
        yield
        return
    vectors = encoder.vectors[[row for _, row in places]]

    def put(module: Any, given: Any, found: Tensor) -> Tensor:
        found = found.clone()
        found[0, [place for place, _ in places]] = vectors.to(found)
        return found

    handle = encoder.module.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _final_norm(module: Any, states: Tensor) -> Tensor:
    """SD1.5's UNet expects normalised states from any layer. Called by its weights and not as a module, since the
    weights may wait elsewhere once the encoder's own pass is over."""
    norm = getattr(module, "text_model", module).final_layer_norm
    weight, bias = norm.weight.to(states), norm.bias.to(states)
    return functional.layer_norm(states, norm.normalized_shape, weight, bias, norm.eps)


def _weighted(encoder: Encoder, states: Tensor, weights: Sequence[float], clip_skip: int, emphasis: str) -> Tensor:
    if emphasis == "none" or all(weight == 1.0 for weight in weights):
        return states
    row = torch.ones((1, CHUNK + 2, 1), device=states.device)
    row[0, 1 : 1 + len(weights), 0] = torch.tensor(weights, device=states.device)
    exact = states.float()
    if emphasis == "comfy":
        empty, _ = _states(encoder, (), clip_skip)
        moved = empty.float() + (exact - empty.float()) * row
    else:  # a1111: scaled, then brought back to the mean they had together
        moved = exact * row
        moved = moved * (exact.mean() / moved.mean())
    return moved.to(states.dtype)
