"""A rough picture of latents, an eighth of the size: one colour per latent pixel, by a linear map, in no time."""

from __future__ import annotations

import torch
from torch import Tensor

Rows = tuple[tuple[float, float, float], ...]


@torch.no_grad()
def preview(latents: Tensor, rows: Rows) -> tuple[int, int, bytes]:
    """Width, height and RGB8 rows of one image's latents [channels, h, w], still noisy ones too. `rows` has the colours
    of each channel, and perhaps one row more, which every latent pixel has."""
    map_ = torch.tensor(rows)
    values = latents[: len(map_)].float().cpu()
    values = values / values.std().clamp(min=1.0)  # samplers differ in how much larger than the picture noise is
    if len(map_) > len(values):
        values = torch.cat([values, torch.ones_like(values[:1])])
    shares = torch.einsum("chw,cr->hwr", values, map_) * 0.5 + 0.5
    pixels = (torch.nan_to_num(shares).clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
    return pixels.shape[1], pixels.shape[0], pixels.numpy().tobytes()
