"""Prompts into the UNet's input: CLIP's hidden states, chunk by chunk, with weights; for SDXL pooled vectors too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdcli.draw.denoise import Conditioning, Guidance
from sdcli.models.families.sdxl import is_told_a_score
from sdcli.request.prompt import CHUNK, Chunk
from sdcli.request.tokenizer import Vocabulary


@dataclass(frozen=True)
class Encoder:
    """One CLIP text encoder. `pad` is the token that fills up chunks, by default the end mark; SDXL's encoders are read
    one layer below the last."""

    module: Any
    device: torch.device  # where it computes, not necessarily where its weights are now
    vocabulary: Vocabulary
    pad: int | None = None
    penultimate: bool = False
    vectors: Tensor | None = None  # of embeddings: row n is token vocabulary.size + n


@dataclass(frozen=True)
class Text:
    """One encoded prompt: embeds [1, 77 × chunks, width], pooled [1, width] where an encoder returns it."""

    embeds: Tensor
    pooled: Tensor | None
    tokens: int = 0

    @property
    def chunks(self) -> int:
        return int(self.embeds.shape[1]) // (CHUNK + 2)

    def zeros(self) -> Text:
        """What SDXL takes for a missing negative prompt."""
        return Text(torch.zeros_like(self.embeds), None if self.pooled is None else torch.zeros_like(self.pooled))


@torch.no_grad()
def encode(encoder: Encoder, chunks: Sequence[Chunk], *, clip_skip: int, emphasis: str) -> Text:
    """Encodes chunk by chunk: the same chunk gives the same values in any prompt. `pooled` is the first chunk's."""
    parts: list[Tensor] = []
    pooled: list[Tensor | None] = []
    for chunk in chunks:
        states, vector = _states(encoder, [token for token, _ in chunk], clip_skip)
        parts.append(_weighted(encoder, states, [weight for _, weight in chunk], clip_skip, emphasis))
        pooled.append(vector)
    return Text(torch.cat(parts, dim=1), pooled[0], tokens=sum(len(chunk) for chunk in chunks))


def joined(parts: Sequence[Text]) -> Text:
    """SDXL reads its encoders' states side by side, and the last encoder's pooled vector."""
    if len(parts) == 1:
        return parts[0]
    return Text(torch.cat([part.embeds for part in parts], dim=-1), parts[-1].pooled, parts[0].tokens)


def padded(text: Text, empty: Text, chunks: int) -> Text:
    """`text` with empty chunks appended: both sides of guidance, and all images of a batch, need the same length."""
    missing = chunks - text.chunks
    if missing <= 0:
        return text
    return Text(torch.cat([text.embeds, *[empty.embeds] * missing], dim=1), text.pooled, text.tokens)


def conditioning(
    prompts: Sequence[Text], negatives: Sequence[Text], *, guidance: Guidance, size: tuple[int, int],
    unet: Mapping[str, Any], groups: tuple[Tensor, ...] = (), chunks: Sequence[int] = (),
) -> Conditioning:  # fmt: skip
    """One row per image and side of guidance; and the other inputs that this UNet's config asks for. `chunks` are those
    of each image's own texts, where these are filled up to the longest of all."""
    texts = guidance.rows(prompts, negatives)
    embeds = torch.cat([text.embeds for text in texts])
    rows, added = {"encoder_hidden_states": embeds}, {}
    if unet.get("addition_embed_type") == "text_time":
        added["text_embeds"] = torch.cat([text.pooled for text in texts if text.pooled is not None])
        added["time_ids"] = _told(size, len(texts), len(texts) - len(prompts), embeds, unet)
    if unet.get("time_cond_proj_dim"):
        rows["timestep_cond"] = guidance_row(guidance.scale, unet["time_cond_proj_dim"], embeds).repeat(len(texts), 1)
    lengths = [(CHUNK + 2) * chunks[int(group[0]) % len(prompts)] for group in groups] if len(set(chunks)) > 1 else []
    return Conditioning(guidance=guidance, rows=rows, added=added, groups=groups, lengths=tuple(lengths))


def guidance_row(guidance: float, width: int, like: Tensor) -> Tensor:
    """UNets distilled for few steps have guidance built in and take its strength as an input, as sinusoids."""
    half = width // 2
    lengths = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = torch.tensor([guidance - 1]).float()[:, None] * 1000.0 * lengths[None, :]
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2)).to(like)


def size_row(width: int, height: int, like: Tensor) -> Tensor:
    """SDXL's inputs: the original image's size, the corner it was cropped at, and the size to draw."""
    return torch.tensor([[height, width, 0, 0, height, width]]).to(like)


_SCORE, _NEGATIVE_SCORE = 6.0, 2.5  # as diffusers has them


def _told(size: tuple[int, int], rows: int, negative: int, like: Tensor, unet: Mapping[str, Any]) -> Tensor:
    """What SDXL is told beside the prompt, a row each, those of negative prompts first. A refiner is told how beautiful
    the image is where base models are told the size to draw."""
    sizes = size_row(*size, like).repeat(rows, 1)
    if not is_told_a_score(unet):
        return sizes
    scores = torch.tensor([_NEGATIVE_SCORE] * negative + [_SCORE] * (rows - negative))
    return torch.cat([sizes[:, :4], scores[:, None].to(like)], dim=1)


def _states(encoder: Encoder, tokens: Sequence[int], clip_skip: int) -> tuple[Tensor, Tensor | None]:
    """Hidden states [1, 77, width] of the layer `clip_skip` selects, and the pooled vector if the encoder has one."""
    module, vocabulary = encoder.module, encoder.vocabulary
    pad = vocabulary.end if encoder.pad is None else encoder.pad
    filled = [vocabulary.start, *tokens, vocabulary.end] + [pad] * (CHUNK - len(tokens))
    # embeddings go in as token 0 and are inserted after the look-up: encoders that search for the highest token would
    # take a number above the end mark's for the end of the prompt
    ids = torch.tensor([[token if token < vocabulary.size else 0 for token in filled]], device=encoder.device)
    with _learned(encoder, filled):
        if clip_skip <= 1 and not encoder.penultimate:
            return module(ids)[0], None
        output = module(ids, output_hidden_states=True)
    vector = output[0] if output[0].ndim == 2 else None
    # Counted as in A1111: N is the Nth state from the end. SDXL was trained on the second, so 1 and 2 both mean that.
    states = output.hidden_states[-max(clip_skip, 2)]
    return (states if encoder.penultimate else _final_norm(module, states)), vector


@contextmanager
def _learned(encoder: Encoder, tokens: Sequence[int]) -> Iterator[None]:
    """Replaces what the encoder looks up for embeddings among `tokens` by their vectors."""
    size = encoder.vocabulary.size
    positions = [(position, token - size) for position, token in enumerate(tokens) if token >= size]
    if not positions or encoder.vectors is None:
        yield
        return
    vectors = encoder.vectors[[row for _, row in positions]]

    def insert(module: Any, inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[0, [position for position, _ in positions]] = vectors.to(output)
        return output

    handle = encoder.module.get_input_embeddings().register_forward_hook(insert)
    try:
        yield
    finally:
        handle.remove()


def _final_norm(module: Any, states: Tensor) -> Tensor:
    """SD1.5's UNet expects normalised states from any layer. Applied by its weights and not as a module, since they may
    be offloaded once the encoder's pass is over."""
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
    else:  # a1111: scaled, then rescaled to their original mean
        moved = exact * row
        moved = moved * (exact.mean() / moved.mean())
    return moved.to(states.dtype)
