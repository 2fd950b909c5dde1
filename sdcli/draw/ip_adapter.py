"""An IP-Adapter's own layers, with diffusers' modules for what turns an encoded image into tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sdcli.models.reference_walk import FULL, PLAIN


class IPAdapter(nn.Module):
    """Encoded images into the keys and values of each of the UNet's layers that attends to text. These depend on no
    step: they are computed once, and nothing of this is needed while the UNet is called."""

    def __init__(self, image_proj: nn.Module, width: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.image_proj = image_proj
        self.to_k = nn.ModuleList(nn.Linear(width, outward, bias=False) for outward in layers)
        self.to_v = nn.ModuleList(nn.Linear(width, outward, bias=False) for outward in layers)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> IPAdapter:
        """That of models/reference.py."""
        return cls(_projection(config), config["width"], config["layers"])

    def forward(self, encoded: Tensor) -> list[tuple[Tensor, Tensor]]:
        """[rows, images, …] of an image encoder; for each layer [rows, images, tokens, width] twice."""
        rows, images = encoded.shape[:2]
        tokens = self.image_proj(encoded.flatten(0, 1))
        tokens = tokens.reshape(rows, images, *tokens.shape[1:])
        return [(to_k(tokens), to_v(tokens)) for to_k, to_v in zip(self.to_k, self.to_v, strict=True)]


def _projection(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models import embeddings

    inward, width = config["embedding"], config["width"]
    made: nn.Module
    if config["kind"] == PLAIN:
        made = embeddings.ImageProjection(
            image_embed_dim=inward, cross_attention_dim=width, num_image_text_embeds=config["tokens"]
        )
    elif config["kind"] == FULL:
        made = embeddings.IPAdapterFullImageProjection(image_embed_dim=inward, cross_attention_dim=width)
    else:
        made = embeddings.IPAdapterPlusImageProjection(
            embed_dims=inward, output_dims=width, hidden_dims=config["hidden"], depth=config["depth"],
            heads=config["heads"], num_queries=config["tokens"],
        )  # fmt: skip
    return made
