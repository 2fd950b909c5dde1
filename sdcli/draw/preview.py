"""A rough image of latents at an eighth of the size: one colour per latent pixel, by a linear map."""

from __future__ import annotations

import torch
from torch import Tensor

Rows = tuple[tuple[float, float, float], ...]


@torch.no_grad()
def preview(latents: Tensor, rows: Rows) -> tuple[int, int, bytes]:
    """Width, height and RGB8 rows of one image's latents [channels, h, w], which may still be noisy. `rows` has the
    colours of each channel, and optionally one more row that is added to every pixel."""
    map_ = torch.tensor(rows)
    values = latents[: len(map_)].float().cpu()
    values = values / values.std().clamp(min=1.0)  # samplers differ in how much larger the noise is than the image
    if len(map_) > len(values):
        values = torch.cat([values, torch.ones_like(values[:1])])
    shares = torch.einsum("chw,cr->hwr", values, map_) * 0.5 + 0.5
    pixels = (torch.nan_to_num(shares).clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
    return pixels.shape[1], pixels.shape[0], pixels.numpy().tobytes()
